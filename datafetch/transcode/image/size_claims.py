"""Sizes that a body claims, and that Pillow would allocate while opening it or does not report for an opened image.

Rules: everything is parsed by hand, from a few bytes, and nothing here raises for a corrupt body. No ordinary file
exceeds these limits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from PIL import JpegImagePlugin

from datafetch.transcode.image.tiff_tags import first_tags, values_exceed

_TILE_WIDTH = 322  # TIFF tags
_TILE_LENGTH = 323
_14_BITS = 0x3FFF
_APP1, _APP2, _START_OF_SCAN = 0xE1, 0xE2, 0xDA
_EXIF, _MPF = b"Exif\0\0", b"MPF\0"
_EXIF_PREFIX = re.compile(rb"(?:Exif\0\0)*")
_NEXT_MARKER = re.compile(rb"[^\xff]*\xff+([^\xff])")
_TIFF_HEADER = re.compile(rb"II\*\0|MM\0\*")
# The values of tags may overlap, and in carelessly written files they do.
_SLACK_BYTES = 1 << 20


def webp_canvas_pixels(body: bytes) -> int:
    """Return the number of pixels of a WebP's canvas; 0 if the body is no WebP.

    Pillow's decoder allocates the canvas twice when the file is opened, and Pillow 11.3 checks no limit before that.

    Source:
        RFC 9649, sections 2.5 to 2.7; RFC 6386, section 9.1.
    """
    if body[:4] != b"RIFF" or body[8:12] != b"WEBP":
        return 0
    match body[12:16]:
        case b"VP8X":
            return (_little_endian(body[24:27]) + 1) * (_little_endian(body[27:30]) + 1)
        case b"VP8L":
            bits = _little_endian(body[21:25])
            return ((bits & _14_BITS) + 1) * ((bits >> 14 & _14_BITS) + 1)
        case b"VP8 ":
            return (_little_endian(body[26:28]) & _14_BITS) * (_little_endian(body[28:30]) & _14_BITS)
        case _:
            return 0


def _little_endian(digits: bytes) -> int:
    return int.from_bytes(digits, "little")


def tiff_tile_pixels(body: bytes) -> int:
    """Return the number of pixels of a TIFF's tile, which the decoder allocates whole, however small the image; else 0.

    If the file gives a side twice, the longer one counts: Pillow up to 12 uses the last, and libtiff the first.
    """
    sides_px = {_TILE_WIDTH: 0, _TILE_LENGTH: 0}
    for tag in first_tags(memoryview(body)):
        if tag.number in sides_px:
            sides_px[tag.number] = max(sides_px[tag.number], tag.first_value)
    return sides_px[_TILE_WIDTH] * sides_px[_TILE_LENGTH]


def has_oversized_tags(body: bytes) -> bool:
    """Return whether the tags of a TIFF, or of a JPEG's or AVIF's EXIF or MPF, refer to more bytes than there are.

    Pillow up to 12 copies all values of a directory, and thousands of tags may refer to the same megabytes.
    """
    return any(values_exceed(file, len(file) + _SLACK_BYTES) for file in _embedded_tiffs(body))


def _embedded_tiffs(body: bytes) -> Iterator[memoryview]:
    """Yield the TIFF structures whose tags Pillow reads while it opens or decodes a body."""
    if body[:3] == b"\xff\xd8\xff":
        yield from _tiffs_of_jpeg(body)
    elif body[4:8] == b"ftyp":
        # EXIF may be anywhere in an AVIF. Data that only looks like a TIFF header is followed by hardly any tags.
        for start in _TIFF_HEADER.finditer(body):
            yield memoryview(body)[start.start() :]
    else:
        yield memoryview(body)


def _tiffs_of_jpeg(jpeg: bytes) -> Iterator[memoryview]:
    """Yield the EXIF of a JPEG, joined from its segments, and its last MPF, as Pillow reads them."""
    exif: list[bytes] = []
    mpf = b""
    for marker, start, end in jpeg_segments(jpeg):
        if marker == _APP1 and jpeg.startswith(_EXIF, start, end):
            exif.append(jpeg[start + len(_EXIF) if exif else start : end])
        elif marker == _APP2 and jpeg.startswith(_MPF, start, end):
            mpf = jpeg[start + len(_MPF) : end]
    joined = b"".join(exif)
    prefix = _EXIF_PREFIX.match(joined)
    yield memoryview(joined)[prefix.end() if prefix else 0 :]
    yield memoryview(mpf)


def jpeg_segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker and the content's start and end of each segment before the first scan, as Pillow finds them."""
    offset = len(b"\xff\xd8")
    while (found := _NEXT_MARKER.match(jpeg, offset)) and (marker := found[1][0]) != _START_OF_SCAN:
        offset = found.end()
        _, _, handler = JpegImagePlugin.MARKER.get(0xFF00 | marker, ("", "", None))
        if handler is None:  # a marker without content
            continue
        start, offset = offset + 2, offset + max(2, int.from_bytes(jpeg[offset : offset + 2], "big"))
        yield marker, start, offset
