"""The pixels that a viewer shows: upright, over white, in sRGB, of 8 bits."""

from __future__ import annotations

from PIL import Image, ImageFile

from datafetch.transcode.image.exif_orientation import UPRIGHT, orientation, turned_upright
from datafetch.transcode.image.flatten_alpha import opaque
from datafetch.transcode.image.icc import has_own_colours, to_srgb
from datafetch.transcode.image.resize import Box, Size, shrink


def is_correct(source: Image.Image) -> bool:
    """Whether the pixels of an opened JPEG, grey or in colour, are the correct ones already."""
    return orientation(source) == UPRIGHT and not has_own_colours(source.mode, _profile(source))


def correct_pixels(source: ImageFile.ImageFile, size_px: Size, box: Box | None) -> Image.Image:
    """Decode an opened image to what a viewer shows, in mode RGB, without metadata.

    Args:
        source: Opened, and not loaded yet.
        size_px: What to shrink it to, before it is turned.
        box: The picture within the decoded pixels, from ``decode_smaller``.
    """
    image = opaque(source)
    profile = _profile(source)
    if image.mode == "CMYK" and not has_own_colours(image.mode, profile):
        image = image.convert("RGB")  # Pillow's inks mix otherwise than they shrink, so in the recipe's order
    # Turning and colours come last, for they cost by the pixel.
    image = turned_upright(shrink(image, size_px, box), orientation(source))
    image = to_srgb(image, profile)
    image.info = {}  # Pillow writes comments, and older ones XMP, of the source into the JPEG
    return image


def _profile(source: Image.Image) -> object:
    return source.info.get("icc_profile")
