"""What a body claims beyond what an opened image tells, or before it can be opened.

Rules: everything is read by hand, from a few bytes, and nothing here raises for a corrupt body. What an ordinary file
may hold is never too much.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from PIL import JpegImagePlugin

from datafetch.transcode.image.tiff_tags import copies_more_than, first_tags

_TILE_WIDTH = 322  # tags of TIFF
_TILE_LENGTH = 323
_14_BITS = 0x3FFF
_APP1, _APP2, _START_OF_SCAN = 0xE1, 0xE2, 0xDA
_EXIF, _MPF = b"Exif\0\0", b"MPF\0"
_EXIF_PREFIX = re.compile(rb"(?:Exif\0\0)*")
_NEXT_MARKER = re.compile(rb"[^\xff]*\xff+([^\xff])")
_START_OF_TAGS = re.compile(rb"II\*\0|MM\0\*")
# Values of tags may overlap, and do where somebody was careless.
_SLACK_BYTES = 1 << 20


def webp_canvas_pixels(body: bytes) -> int:
    """Pixels of a WebP's canvas; 0 for what is no WebP.

    Pillow's decoder allocates the canvas twice as the file is opened, and Pillow 11.3 even looks at no limit before.

    Source:
        RFC 9649, sections 2.5 to 2.7; RFC 6386, section 9.1.
    """
    if body[:4] != b"RIFF" or body[8:12] != b"WEBP":
        return 0
    match body[12:16]:
        case b"VP8X":
            return (_number(body[24:27]) + 1) * (_number(body[27:30]) + 1)
        case b"VP8L":
            bits = _number(body[21:25])
            return ((bits & _14_BITS) + 1) * ((bits >> 14 & _14_BITS) + 1)
        case b"VP8 ":
            return (_number(body[26:28]) & _14_BITS) * (_number(body[28:30]) & _14_BITS)
        case _:
            return 0


def _number(digits: bytes) -> int:
    return int.from_bytes(digits, "little")


def tiff_tile_pixels(body: bytes) -> int:
    """Pixels of one tile of a TIFF, which the decoder allocates whole, however small the image; else 0.

    Of a side that is named twice the longer counts: up to 12, Pillow takes the last, and libtiff takes the first.
    """
    sides_px = {_TILE_WIDTH: 0, _TILE_LENGTH: 0}
    for tag in first_tags(memoryview(body)):
        if tag.number in sides_px:
            sides_px[tag.number] = max(sides_px[tag.number], tag.first_value)
    return sides_px[_TILE_WIDTH] * sides_px[_TILE_LENGTH]


def has_crowded_tags(body: bytes) -> bool:
    """Whether the tags of a TIFF, or of a JPEG's or AVIF's EXIF or MPF, have more bytes of values than there are.

    Up to 12, Pillow copies all values of a directory, and thousands of tags may share the same megabytes.
    """
    return any(copies_more_than(file, len(file) + _SLACK_BYTES) for file in _tagged_files(body))


def _tagged_files(body: bytes) -> Iterator[memoryview]:
    """What Pillow reads tags of as it opens or decodes a body: TIFFs of their own."""
    if body[:3] == b"\xff\xd8\xff":
        yield from _tagged_segments(body)
    elif body[4:8] == b"ftyp":
        # EXIF may be anywhere in an AVIF. What only looks like tags has next to none.
        for start in _START_OF_TAGS.finditer(body):
            yield memoryview(body)[start.start() :]
    else:
        yield memoryview(body)


def _tagged_segments(jpeg: bytes) -> Iterator[memoryview]:
    """The EXIF of a JPEG, joined of its segments, and its last MPF: as Pillow has them."""
    exif: list[bytes] = []
    mpf = b""
    for marker, start, end in _segments(jpeg):
        if marker == _APP1 and jpeg.startswith(_EXIF, start, end):
            exif.append(jpeg[start + len(_EXIF) if exif else start : end])
        elif marker == _APP2 and jpeg.startswith(_MPF, start, end):
            mpf = jpeg[start + len(_MPF) : end]
    joined = b"".join(exif)
    prefix = _EXIF_PREFIX.match(joined)
    yield memoryview(joined)[prefix.end() if prefix else 0 :]
    yield memoryview(mpf)


def _segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of what the segments before the first scan contain, found as Pillow finds them."""
    at = len(b"\xff\xd8")
    while (found := _NEXT_MARKER.match(jpeg, at)) and (marker := found[1][0]) != _START_OF_SCAN:
        at = found.end()
        _, _, handler = JpegImagePlugin.MARKER.get(0xFF00 | marker, ("", "", None))
        if handler is None:  # a marker that nothing belongs to
            continue
        start, at = at + 2, at + max(2, int.from_bytes(jpeg[at : at + 2], "big"))
        yield marker, start, at
