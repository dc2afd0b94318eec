"""transcode(): one image, no I/O, nothing kept.

Rules: in the recipe's way the bytes that come out are the bytes that the recipe's snippet gives with the same Pillow
(docs/fidelity.md). Only formats on the list are tried, and the header is judged before pixels are allocated.
"""

from __future__ import annotations

import functools
import hashlib
import re
from io import BytesIO

from PIL import Image, UnidentifiedImageError, features

from datafetch.model import Encoded, Failure, FailureKind, Outcome
from datafetch.transcode.spec import ImageSpec

ALLOWED_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_MAX_JPEG_SIDE_PX = 65_500  # libjpeg's JPEG_MAX_DIMENSION
_MAX_DETAIL_CHARS = 200
_MAGIC_BYTES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|II\*\0|MM\0\*|RIFF.{4}WEBP|.{4}ftypavi[fs]", re.DOTALL
)


class _TooManyPixelsError(Exception):
    """The header promises more pixels than the spec allows."""


def transcode(body: bytes, spec: ImageSpec) -> Outcome:
    """Decode one image and encode it again as JPEG.

    Args:
        body: The response body as received.
        spec: Short side in pixels, JPEG quality, most pixels allowed.

    Returns:
        ``Encoded`` with width × height in pixels, or ``Failure`` of kind NOT_AN_IMAGE, TRUNCATED or TOO_MANY_PIXELS.
        Both carry the body's sha256. Never raises for a bad body.
    """
    sha256 = hashlib.sha256(body).hexdigest()
    try:
        return _transcode(body, spec, sha256)
    except Exception as error:  # noqa: BLE001 - on hostile data Pillow raises anything; classify() names it
        return classify(error, body, sha256)


def _transcode(body: bytes, spec: ImageSpec, sha256: str) -> Encoded:
    with Image.open(BytesIO(body), formats=supported_formats()) as source:
        width_px, height_px = source.size
        if width_px * height_px > spec.max_pixels:
            raise _TooManyPixelsError(f"{width_px}x{height_px} pixels")
        size_px = shrunk_size_px(source.size, spec.short_side_px)
        if max(size_px) > _MAX_JPEG_SIDE_PX:
            raise _TooManyPixelsError(f"{size_px[0]}x{size_px[1]}, a JPEG has at most {_MAX_JPEG_SIDE_PX} a side")
        source_format = str(source.format)
        image: Image.Image = source.convert("RGB")
    if image.size != size_px:
        image = image.resize(size_px)
    jpeg = BytesIO()
    image.save(jpeg, format="JPEG", quality=spec.quality)
    return Encoded(jpeg.getvalue(), image.width, image.height, source_format, sha256)


def shrunk_size_px(size_px: tuple[int, int], short_side_px: int | None) -> tuple[int, int]:
    """Width and height with the shorter side shrunk to ``short_side_px``; an image at or under that keeps its own.

    Source:
        VILA's data_prepare/coyo/coyo_downloader.py: the long side is cut to a whole number, not rounded.
    """
    short_px, long_px = sorted(size_px)
    if short_side_px is None or short_px <= short_side_px:
        return size_px
    long_side_px = int(short_side_px * long_px / short_px)
    width_px, height_px = size_px
    return (long_side_px, short_side_px) if height_px < width_px else (short_side_px, long_side_px)


@functools.cache
def supported_formats() -> tuple[str, ...]:
    """The formats of the allow-list that this build of Pillow reads."""
    Image.init()
    # The plugin of AVIF is there even where the library behind it is missing or too old.
    missing = () if features.check("avif") else ("AVIF",)
    return tuple(name for name in ALLOWED_FORMATS if name in Image.OPEN and name not in missing)


def classify(error: Exception, body: bytes, sha256: str) -> Failure:
    """Name the kind of failure behind an exception of Pillow.

    Args:
        error: What ``Image.open``, ``convert``, ``resize`` or ``save`` raised.
        body: The body it was raised for.
        sha256: Of the body, hex.
    """
    match error:
        case _TooManyPixelsError() | Image.DecompressionBombError() | Image.DecompressionBombWarning():
            kind = FailureKind.TOO_MANY_PIXELS
        case MemoryError():
            kind = FailureKind.WORKER_CRASHED
        case UnidentifiedImageError() if not _MAGIC_BYTES.match(body):
            # Pillow's own message quotes the buffer's memory address; the same outcome must read the same.
            return Failure(FailureKind.NOT_AN_IMAGE, "no format on the allow-list", sha256=sha256)
        case UnidentifiedImageError():
            return Failure(FailureKind.TRUNCATED, "the header is cut off or corrupt", sha256=sha256)
        case _:
            kind = FailureKind.TRUNCATED
    text = f"{type(error).__name__}: {error}".encode("utf-8", "replace").decode()
    return Failure(kind, " ".join(text.split())[:_MAX_DETAIL_CHARS], sha256=sha256)
