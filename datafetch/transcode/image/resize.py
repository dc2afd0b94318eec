"""How an image is shrunk: to which size, and from which of its pixels.

Rules: the size comes from the file's own size and never from a smaller decode of it, so exact and fast give the same
one; nothing is enlarged.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from PIL import Image, ImageFile, JpegImagePlugin

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""
Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels, as Pillow has them."""

# Less, and lettering suffers: it keeps 23 dB of the exact way at 1, and 30 dB here; more, and images of 1,080 lines are
# no longer decoded at a half when 336 are asked for (docs/fidelity.md).
_PIXELS_LEFT_TO_SHRINK = 1.6
# Where colours are halved in one direction alone (4:2:2, 4:4:0), libjpeg decodes them at half the scale of the grey in
# that direction, and they need as many pixels left; in 4:2:0 and 4:4:4 it decodes them at the same.
_MORE_FOR_UNEVEN_COLOURS = 2


def shrunk_size_px(size_px: Size, short_side_px: int | None) -> Size:
    """Width and height with the shorter side shrunk to ``short_side_px``; an image at or under that keeps its own.

    Turning an image by a quarter before or after makes no difference to the size.

    Source:
        VILA's data_prepare/coyo/coyo_downloader.py: the long side is cut to a whole number, not rounded.
    """
    short_px, long_px = sorted(size_px)
    if short_side_px is None or short_px <= short_side_px:
        return size_px
    long_side_px = int(short_side_px * long_px / short_px)
    width_px, height_px = size_px
    return (long_side_px, short_side_px) if height_px < width_px else (short_side_px, long_side_px)


def decode_smaller(source: ImageFile.ImageFile, size_px: Size) -> Box | None:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8, as far as it keeps 1.6 times the pixels a side that are asked for.

    In 4:2:2 and 4:4:0 it keeps 3.2 times as many.

    Args:
        source: Opened, and not loaded yet.
        size_px: What it will be shrunk to.

    Returns:
        What the whole image is in the pixels that will be decoded; None where they are all decoded.
    """
    if not isinstance(source, JpegImagePlugin.JpegImageFile) or source.size == size_px:
        return None
    left = _PIXELS_LEFT_TO_SHRINK * (_MORE_FOR_UNEVEN_COLOURS if _has_uneven_colours(source) else 1)
    drafted = source.draft(None, (math.ceil(size_px[0] * left), math.ceil(size_px[1] * left)))
    # The box ends within the last pixels where the size is no multiple of 2, 4 or 8.
    return drafted[1] if drafted else None


def _has_uneven_colours(source: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether the components of a JPEG have fewer samples than the first in one direction, but not in the other."""
    _, width, height, _ = source.layer[0]
    return any(width * high != height * wide for _, wide, high, _ in source.layer)


def shrink(image: Image.Image, size_px: Size, box: Box | None = None) -> Image.Image:
    """The image at this size, by Pillow's default filter, as the recipe has it.

    Args:
        image: Its pixels.
        size_px: What to make of it; its own size gives the image itself.
        box: The part of ``image`` that holds the picture, from ``decode_smaller``.
    """
    if image.size == size_px:
        return image
    return image.resize(size_px, box=box)
