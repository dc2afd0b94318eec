"""Conversion of grey images with more than 8 bits per pixel to 8 bits.

Pillow's own conversion clips: of 65,536 greys it keeps the darkest 255 and turns all others white.
"""

from __future__ import annotations

import functools
import math

from PIL import Image

DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
_WHITE_16_BIT = 0xFFFF
_WHITE_12_BIT = 0xFFF
_BITS_PER_SAMPLE = 258  # a TIFF tag, like the next one
_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0


def to_8_bit_grey(image: Image.Image) -> Image.Image:
    """Convert an image of a deep mode to mode L, with its greys scaled and rounded.

    Integers from 0 to 65,535 are greys of 16 bits, or of 12 if a TIFF says so. Other numbers don't define what is
    white: fractions from 0 to 1 are scaled as such, and all others are stretched between the darkest and the brightest.
    """
    if image.mode == "F":
        return _stretch(image, *_range_of_fractions(image))
    tags = getattr(image, "tag_v2", {})
    if image.mode != "I":
        image = image.convert("I")
    darkest, brightest = _extrema(image)
    if darkest < 0 or brightest > _WHITE_16_BIT:
        return _stretch(image.convert("F"), darkest, brightest)
    white = _WHITE_12_BIT if tags.get(_BITS_PER_SAMPLE) == (12,) else _WHITE_16_BIT
    eight_bit = image.point(_scale(white), "L")
    # Pillow inverts such a TIFF if it has 8 bits, but not if it has more.
    return eight_bit.point(range(255, -1, -1)) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else eight_bit


def mask_all_but(image: Image.Image, transparent: int) -> Image.Image:
    """Return a mask that is 0 where an image of an integer deep mode has exactly this grey, and 255 elsewhere."""
    table = [255] * (_WHITE_16_BIT + 1)
    table[transparent & _WHITE_16_BIT] = 0
    return image.convert("I").point(table, "L")


@functools.cache
def _scale(white: int) -> list[int]:
    return [min(255, (value * 255 + white // 2) // white) for value in range(_WHITE_16_BIT + 1)]


def _extrema(image: Image.Image) -> tuple[float, float]:
    extrema = image.getextrema()
    match extrema:
        case (int() | float() as darkest, int() | float() as brightest):
            return darkest, brightest
        case _:
            raise AssertionError(image.mode)


def _range_of_fractions(image: Image.Image) -> tuple[float, float]:
    darkest, brightest = _extrema(image)
    return (0.0, 1.0) if darkest >= 0 and brightest <= 1 else (darkest, brightest)


def _stretch(image: Image.Image, black: float, white: float) -> Image.Image:
    """Stretch an image of mode F to mode L. If its range is empty or infinite, Pillow's own conversion applies."""
    span = white - black
    if not (math.isfinite(span) and span > 0):
        return image.convert("L")
    factor, offset = 255 / span, 0.5 - black * 255 / span  # the conversion truncates, so adding a half rounds
    return image.point(lambda value: value * factor + offset).convert("L")
