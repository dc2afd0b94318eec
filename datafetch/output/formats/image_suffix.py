"""The suffix of an image file by its content."""

from __future__ import annotations

from collections.abc import Mapping

from datafetch.transcode.image.file_header import find_format

_SUFFIXES: Mapping[str, str] = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "AVIF": ".avif",
}
_UNKNOWN = ".img"
IMAGE_SUFFIXES = (*_SUFFIXES.values(), _UNKNOWN)
"""All suffixes; the last is of content that none of the others fits."""


def image_suffix(content: bytes) -> str:
    """The suffix of an image, with its dot; ``.img`` for a format that is not on the allow-list."""
    return _SUFFIXES.get(find_format(content) or "", _UNKNOWN)
