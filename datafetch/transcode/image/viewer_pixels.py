"""The pixels that a viewer shows: upright, over white, in sRGB, with 8 bits per channel."""

from __future__ import annotations

from PIL import Image, ImageFile

from datafetch.transcode.image.exif_orientation import UPRIGHT, apply_orientation, orientation
from datafetch.transcode.image.flatten_alpha import flatten_alpha
from datafetch.transcode.image.icc import differs_from_srgb, to_srgb
from datafetch.transcode.image.resize import Resizing


def is_correct(source: Image.Image) -> bool:
    """Return whether an opened JPEG in mode L or RGB already has the pixels that a viewer shows."""
    return orientation(source) == UPRIGHT and not differs_from_srgb(source.mode, _profile(source))


def correct_pixels(source: ImageFile.ImageFile, resizing: Resizing) -> Image.Image:
    """Decode an opened image to what a viewer shows, in mode RGB, without metadata.

    Args:
        source: Opened but not loaded.
        resizing: How it is resized, before the orientation is applied, and cut or framed afterwards.
    """
    image = flatten_alpha(source)
    profile = _profile(source)
    if image.mode == "CMYK" and not differs_from_srgb(image.mode, profile):
        image = image.convert("RGB")  # CMYK gives other pixels if it is shrunk first, so in the recipe's order
    # Orientation and colours come last, because their cost is per pixel.
    image = apply_orientation(resizing.apply(image), orientation(source))
    image = resizing.frame(to_srgb(image, profile))
    image.info = {}  # otherwise Pillow writes the source's comments, and older versions its XMP, into the JPEG
    return image


def _profile(source: Image.Image) -> object:
    return source.info.get("icc_profile")
