"""Grey of more than 8 bits, made grey of 8.

Pillow's own conversion clips: of 65,536 greys it shows the darkest 255, and everything else as white.
"""

from __future__ import annotations

import functools
import math

from PIL import Image

DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
_WHITE_16_BIT = 0xFFFF
_WHITE_12_BIT = 0xFFF
_BITS_PER_SAMPLE = 258  # a tag of TIFF, as the next is
_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0


def grey(image: Image.Image) -> Image.Image:
    """An image of a deep mode in mode L, its greys scaled and rounded.

    Whole numbers between 0 and 65,535 are greys of 16 bits (of 12, where a TIFF says so). Other numbers have no white
    of their own: fractions from 0 to 1 are taken as such, everything else is stretched between its least and greatest.
    """
    if image.mode == "F":
        return _stretched(image, *_range_of_fractions(image))
    tags = getattr(image, "tag_v2", {})
    if image.mode != "I":
        image = image.convert("I")
    least, most = _extrema(image)
    if least < 0 or most > _WHITE_16_BIT:
        return _stretched(image.convert("F"), least, most)
    white = _WHITE_12_BIT if tags.get(_BITS_PER_SAMPLE) == (12,) else _WHITE_16_BIT
    eight_bit = image.point(_scale(white), "L")
    # Pillow turns such a TIFF over for 8 bits, and not for more.
    return eight_bit.point(range(255, -1, -1)) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else eight_bit


def all_but(image: Image.Image, transparent: int) -> Image.Image:
    """A mask, 0 where an image of a whole-numbered deep mode has just this grey and 255 elsewhere."""
    table = [255] * (_WHITE_16_BIT + 1)
    table[transparent & _WHITE_16_BIT] = 0
    return image.convert("I").point(table, "L")


@functools.cache
def _scale(white: int) -> list[int]:
    return [min(255, (value * 255 + white // 2) // white) for value in range(_WHITE_16_BIT + 1)]


def _extrema(image: Image.Image) -> tuple[float, float]:
    extrema = image.getextrema()
    match extrema:
        case (int() | float() as least, int() | float() as most):
            return least, most
        case _:
            raise AssertionError(image.mode)


def _range_of_fractions(image: Image.Image) -> tuple[float, float]:
    least, most = _extrema(image)
    return (0.0, 1.0) if least >= 0 and most <= 1 else (least, most)


def _stretched(image: Image.Image, black: float, white: float) -> Image.Image:
    """An image of mode F in mode L; one that has no range, or an infinite one, as Pillow converts it."""
    span = white - black
    if not (math.isfinite(span) and span > 0):
        return image.convert("L")
    factor, offset = 255 / span, 0.5 - black * 255 / span  # converting cuts, so a half more rounds
    return image.point(lambda value: value * factor + offset).convert("L")
