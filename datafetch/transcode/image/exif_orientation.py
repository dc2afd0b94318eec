"""EXIF orientation: how an image must be rotated or mirrored to be upright.

Rules: the one tag is read by hand. Pillow's reader copies every value that the EXIF refers to, and 65,535 tags may all
refer to the same megabytes. It also raises on corrupt EXIF, and no image may fail for that.
"""

from __future__ import annotations

import re
import struct

from PIL import Image

UPRIGHT = 1
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PREFIX = re.compile(rb"(?:Exif\0\0){0,2}")  # belongs to JPEG; some writers of WebP and PNG keep it, or double it
_TAG_BYTES = 12
_ORIENTATION = 0x0112
_SHORT = 3


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image, 1 to 8; 1 (upright) if there is none or it can't be read.

    It is always 1 for a TIFF, which Pillow rotates while it decodes. For AVIF, Pillow derives it from the file's
    rotation and mirroring.
    """
    exif = image.info.get("exif")
    if not isinstance(exif, bytes):
        return UPRIGHT
    try:
        return _orientation(memoryview(exif))
    except struct.error:
        return UPRIGHT


def _orientation(exif: memoryview) -> int:
    prefix = _PREFIX.match(exif)
    tiff = exif[prefix.end() if prefix else 0 :]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(tiff[:4]))
    if order is None:
        return UPRIGHT
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (tags,) = struct.unpack_from(f"{order}H", tiff, start)
    directory = tiff[start + 2 :][: tags * _TAG_BYTES]
    whole = directory[: len(directory) // _TAG_BYTES * _TAG_BYTES]  # the complete tags of one that is cut off
    for tag, kind, count, value in struct.iter_unpack(f"{order}HHIHxx", whole):
        if (tag, kind, count) == (_ORIENTATION, _SHORT, 1):
            return value if value in _TRANSPOSITIONS else UPRIGHT
    return UPRIGHT


def apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    """Rotate and mirror an image as its orientation, 1 to 8, demands."""
    return image if orientation == UPRIGHT else image.transpose(_TRANSPOSITIONS[orientation])
