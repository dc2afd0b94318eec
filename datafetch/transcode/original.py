"""JPEGs that can stay as they are."""

from __future__ import annotations

from PIL import ImageFile

from datafetch.transcode.correct import is_correct
from datafetch.transcode.shrink import shrunk_size_px
from datafetch.transcode.spec import Encoding, ImageSpec, Pixels

_SCAN, _END = b"\xff\xda", b"\xff\xd9"  # where entropy-coded data starts, and where the file ends
_COARSEST = 8  # what libjpeg can decode at least: one pixel of 64


def may_stay(source: ImageFile.ImageFile, spec: ImageSpec) -> bool:
    """Whether an opened image is a JPEG of the size and the pixels that are asked for, by its header.

    Grey or in colour: with four components it is CMYK, which other readers take for its negative. Pillow opens no
    JPEG of other than 8 bits.
    """
    return (
        spec.encode is Encoding.ORIGINAL
        and source.format == "JPEG"
        and source.mode in {"L", "RGB"}
        and source.size == shrunk_size_px(source.size, spec.short_side_px)
        and (spec.pixels is Pixels.RECIPE or is_correct(source))
    )


def is_sound(source: ImageFile.ImageFile, body: bytes) -> bool:
    """Whether an opened JPEG can be read to its end. Afterwards it is no use for anything else.

    All entropy-coded data is read, as ever; what is spared is most of the arithmetic that turns it into pixels.

    Args:
        source: The JPEG, not loaded yet.
        body: The file.
    """
    # Pillow lets some files pass that end right before the marker of their end.
    if body.rfind(_END) < body.rfind(_SCAN):
        return False
    width_px, height_px = source.size
    source.draft(None, (max(1, width_px // _COARSEST), max(1, height_px // _COARSEST)))
    try:
        source.load()
    except OSError:  # truncated or corrupt: the normal way has the last word, and the failure's text
        return False
    return True
