"""Colours of any space, made sRGB.

Rules: a profile that is broken, too large, or of another kind of colour than the image is ignored, as browsers do; so
is every profile where Pillow was built without Little CMS. A profile that is sRGB's in effect changes nothing.
"""

from __future__ import annotations

import functools
import itertools
from io import BytesIO

from PIL import Image, ImageChops, ImageCms, features

MAX_PROFILE_BYTES = 4 * 1024 * 1024
"""Larger profiles are ignored; the largest in common use, for CMYK in print, have 2.7 MB."""
_CACHED_PROFILES = 16  # a crawl has a few that return and many that don't; so they hold at most 64 MiB, and tables
_SPACES = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}
_SPACE = slice(16, 20)  # where a profile names its own
# What browsers take, and Little CMS takes for those profiles that have just one table or none: see docs/fidelity.md.
_INTENT = ImageCms.Intent.PERCEPTUAL
_INVISIBLE = 1  # of 255


def has_own_colours(mode: str, profile: object) -> bool:
    """Whether this profile makes the colours of an image in this mode (L, RGB, CMYK) others than sRGB's.

    Args:
        mode: The image's.
        profile: What Pillow found in the file: bytes, or None.
    """
    return _transform_of(mode, profile) is not None


def to_srgb(image: Image.Image, profile: object) -> Image.Image:
    """The image, in mode L, RGB or CMYK, with its profile applied, in mode RGB."""
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
    """From the profile's colours to sRGB; None for a profile that can't be used or that changes nothing."""
    # By the bytes: Pillow raises on a name that is not ASCII.
    if mode not in _SPACES or profile[_SPACE] != _SPACES[mode] or not features.check("littlecms2"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, _srgb(), mode, "RGB", _INTENT)
    except (ImageCms.PyCMSError, OSError, ValueError):  # all that Pillow makes of Little CMS's refusals
        return None
    return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether none of 4,096 colours, or of all greys, moves by more than can be rounding.

    There are dozens of profiles of sRGB, with other names, texts and roundings: what they do is what they share.
    """
    probe = _probe(mode)
    moved = ImageChops.difference(transform.apply(probe), probe.convert("RGB"))
    return moved.point([step > _INVISIBLE for step in range(256)] * 3).getbbox() is None


@functools.cache
def _probe(mode: str) -> Image.Image:
    if mode == "L":
        return Image.frombytes("L", (256, 1), bytes(range(256)))
    colours = bytes(itertools.chain.from_iterable(itertools.product(range(0, 256, 17), repeat=3)))
    return Image.frombytes("RGB", (256, 16), colours)


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
