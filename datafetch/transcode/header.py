"""Sizes that a body claims beyond what an opened image tells, or before it can be opened."""

from __future__ import annotations

from PIL import Image

_TILE_WIDTH = 322  # tags of TIFF
_TILE_LENGTH = 323
_14_BITS = 0x3FFF


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


def tiff_tile_pixels(source: Image.Image) -> int:
    """Pixels of one tile of an opened TIFF, which the decoder allocates whole, however small the image; else 0."""
    tags = getattr(source, "tag_v2", {})
    width_px, height_px = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    return width_px * height_px if isinstance(width_px, int) and isinstance(height_px, int) else 0
