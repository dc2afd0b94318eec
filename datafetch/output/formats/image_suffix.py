"""The suffix of an image file by its content."""

from __future__ import annotations

import re

IMAGE_SUFFIXES = (".jpg", ".png", ".webp", ".gif", ".bmp", ".tif", ".avif", ".img")
"""All suffixes; the last is of content that none of the others fits."""
_SIGNATURE = re.compile(
    rb"(?P<jpg>\xff\xd8\xff)|(?P<png>\x89PNG\r\n\x1a\n)|(?P<webp>RIFF.{4}WEBP)|(?P<gif>GIF8[79]a)"
    rb"|(?P<avif>.{4}ftypavi[fs])|(?P<tif>II\*\0|MM\0\*)|(?P<bmp>BM)",
    re.DOTALL,
)


def image_suffix(content: bytes) -> str:
    """The suffix of an image, with its dot; ``.img`` for a format that the codec does not read."""
    matched = _SIGNATURE.match(content)
    return f".{matched.lastgroup}" if matched else IMAGE_SUFFIXES[-1]
