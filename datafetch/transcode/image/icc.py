"""ICC profiles: conversion of an image's colours to sRGB.

Rules: a profile that is broken, too large, or for another colour space than the image's is ignored, as browsers do. So
is every profile if Pillow was built without Little CMS. A profile that is equivalent to sRGB changes no pixel.
"""

from __future__ import annotations

import functools
import itertools
from io import BytesIO

from PIL import Image, ImageChops, ImageCms, features

MAX_PROFILE_BYTES = 4 * 1024 * 1024
"""Larger profiles are ignored. The largest in common use, for CMYK in print, have 2.7 MB."""
_CACHED_PROFILES = 16  # in a crawl a few profiles recur and many don't; this holds at most 64 MiB and their tables
_COLOUR_SPACES = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}
_COLOUR_SPACE_FIELD = slice(16, 20)  # in a profile's header
# The intent that browsers use; Little CMS falls back to it for profiles with one table or none (docs/fidelity.md).
_INTENT = ImageCms.Intent.PERCEPTUAL
_MAX_ROUNDING = 1  # of 255


def differs_from_srgb(mode: str, profile: object) -> bool:
    """Return whether a profile gives an image other colours than sRGB would.

    Args:
        mode: The image's mode: L, RGB or CMYK.
        profile: What Pillow found in the file: bytes, or None.
    """
    return _transform_of(mode, profile) is not None


def to_srgb(image: Image.Image, profile: object) -> Image.Image:
    """Apply its profile to an image in mode L, RGB or CMYK, and return it in mode RGB."""
    transform = _transform_of(image.mode, profile)
    if transform is not None:
        return transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _transform_of(mode: str, profile: object) -> ImageCms.ImageCmsTransform | None:
    if not isinstance(profile, bytes) or not 0 < len(profile) <= MAX_PROFILE_BYTES:
        return None
    return _transform(profile, mode)


@functools.lru_cache(maxsize=_CACHED_PROFILES)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the transform from a profile to sRGB; None for a profile that can't be used or that changes nothing."""
    # Compared as bytes, because Pillow raises if the field is not ASCII.
    if mode not in _COLOUR_SPACES or profile[_COLOUR_SPACE_FIELD] != _COLOUR_SPACES[mode]:
        return None
    if not features.check("littlecms2"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, _srgb(), mode, "RGB", _INTENT)
    except (ImageCms.PyCMSError, OSError, ValueError):  # the errors that Pillow raises when Little CMS refuses
        return None
    return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether none of 4,096 colours, or of all greys, changes by more than a rounding error.

    There are dozens of sRGB profiles with different names, texts and roundings, so a profile is judged by its effect.
    """
    probe = _probe(mode)
    moved = ImageChops.difference(transform.apply(probe), probe.convert("RGB"))
    return moved.point([step > _MAX_ROUNDING for step in range(256)] * 3).getbbox() is None


@functools.cache
def _probe(mode: str) -> Image.Image:
    if mode == "L":
        return Image.frombytes("L", (256, 1), bytes(range(256)))
    colours = bytes(itertools.chain.from_iterable(itertools.product(range(0, 256, 17), repeat=3)))
    return Image.frombytes("RGB", (256, 16), colours)


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
