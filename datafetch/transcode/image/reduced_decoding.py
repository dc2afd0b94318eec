"""From which of its pixels an image is shrunk: a large JPEG may be decoded at a reduced size."""

from __future__ import annotations

import math
from typing import TypeAlias

from PIL import ImageFile, JpegImagePlugin

from datafetch.transcode.image.fitting import Size

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels, as Pillow has them."""

# How many times the target size a reduced decode must have per side. With less, text suffers: its PSNR against exact
# resizing is 23 dB at 1, and 30 dB here. With more, images of 1,080 lines are no longer decoded at half their size for
# a target of 336 (docs/fidelity.md).
_MIN_REDUCED_RATIO = 1.6
# Where chroma is halved in one direction only (4:2:2, 4:4:0), libjpeg decodes it in that direction at half the scale of
# the luma, so it needs twice as many pixels. In 4:2:0 and 4:4:4 it decodes both at the same scale.
_UNEVEN_SUBSAMPLING_FACTOR = 2


def reduce_decoding(source: ImageFile.ImageFile, size_px: Size) -> Box | None:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8 of its size, if that leaves 1.6 times the target size per side.

    JPEGs in 4:2:2 and 4:4:0 must keep 3.2 times the target size.

    Args:
        source: Opened but not loaded.
        size_px: The target size.

    Returns:
        The box that the whole image fills within the pixels that will be decoded; None if all pixels are decoded.
    """
    if not isinstance(source, JpegImagePlugin.JpegImageFile) or source.size == size_px:
        return None
    ratio = _MIN_REDUCED_RATIO * (_UNEVEN_SUBSAMPLING_FACTOR if _has_uneven_subsampling(source) else 1)
    drafted = source.draft(None, (math.ceil(size_px[0] * ratio), math.ceil(size_px[1] * ratio)))
    # The box ends inside the last pixels if the size is not a multiple of 2, 4 or 8.
    return drafted[1] if drafted else None


def _has_uneven_subsampling(source: JpegImagePlugin.JpegImageFile) -> bool:
    """Return whether a component of a JPEG has fewer samples than the first in one direction only."""
    _, width, height, _ = source.layer[0]
    return any(width * high != height * wide for _, wide, high, _ in source.layer)
