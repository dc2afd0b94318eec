"""JPEGs that can stay as they are."""

from __future__ import annotations

import re

from PIL import ImageFile

from datafetch.transcode.image.resize import shrunk_size_px
from datafetch.transcode.image.viewer_pixels import is_correct
from datafetch.transcode.spec import Encoding, ImageSpec, Pixels

_START_OF_SCAN, _END = 0xDA, 0xD9  # where entropy-coded data starts, and where the image ends
_WITHOUT_SEGMENT = frozenset({0x01, 0xD8})
# Within entropy-coded data, zeros are stuffed behind what would be a marker, and restarts are part of it.
_MARKER = re.compile(rb"\xff([^\0\xff\xd0-\xd7])")
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

    All entropy-coded data is read, as ever; what is spared is most of the arithmetic that turns it into pixels. What
    stands behind the end, as the video of a motion photo does, is not looked at.

    Args:
        source: The JPEG, not loaded yet.
        body: The file.
    """
    # Pillow lets some files pass that end right before the marker of their end.
    if not _has_end(body):
        return False
    width_px, height_px = source.size
    source.draft(None, (max(1, width_px // _COARSEST), max(1, height_px // _COARSEST)))
    try:
        source.load()
    except OSError:  # truncated or corrupt: the normal way has the last word, and the failure's text
        return False
    return True


def _has_end(jpeg: bytes) -> bool:
    """Whether the marker of the end stands behind a scan, where a reader comes to it from the start.

    Looked for from the file's end it would not be told from the bytes of whatever was put behind the image.
    """
    at, has_scan = len(b"\xff\xd8"), False
    while found := _MARKER.search(jpeg, at):
        marker, at = found[1][0], found.end()
        if marker == _END:
            return has_scan
        has_scan |= marker == _START_OF_SCAN
        if marker not in _WITHOUT_SEGMENT:
            at += int.from_bytes(jpeg[at : at + 2], "big")
    return False
