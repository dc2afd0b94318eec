"""To which size an image is brought, which images are left out for their size, and the refusals that follow.

Rules: everything follows from the size in the header, so it is known before anything is decoded, and exact and fast
resizing give the same size. This loads no decoder: images that are kept by their header are judged in the process that
fetches them.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from datafetch.model.outcome import FailureKind, Permission, Permissions
from datafetch.transcode.spec import DEFAULT_MAX_PIXELS, ImageFormat, ImageSpec

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""

_MAX_SIDES_PX = {ImageFormat.JPG: 65_500, ImageFormat.WEBP: 16_383}  # libjpeg's JPEG_MAX_DIMENSION, WEBP_MAX_DIMENSION


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an image is refused for what its header claims.

    Attributes:
        kind: The kind of failure.
        detail: The reason in words.
    """

    kind: FailureKind
    detail: str


@dataclass(frozen=True, slots=True)
class Fitting:
    """To which size an image is brought.

    Attributes:
        resized_px: Its size when it has been resized.
        written_px: Its size as it is written: the same, unless it is cut or gets a border.
    """

    resized_px: Size
    written_px: Size


def fit(size_px: Size, spec: ImageSpec) -> Fitting:
    """Determine the size of an image. Rotating it by 90 degrees before or after this gives the same size.

    Args:
        size_px: Its size as received.
        spec: What it becomes.
    """
    if spec.resize_mode is None or spec.size_px is None:
        shrunk_px = shrunk_size_px(size_px, spec.short_side_px)
        return Fitting(shrunk_px, shrunk_px)
    side_px = min(size_px) if spec.resize_mode.is_of_shorter_side else max(size_px)
    if spec.only_if_bigger and side_px <= spec.size_px:
        return Fitting(size_px, size_px)
    width_px, height_px = (max(1, round(Fraction(spec.size_px * one, side_px))) for one in size_px)
    square_px = (spec.size_px, spec.size_px)
    return Fitting((width_px, height_px), square_px if spec.resize_mode.makes_squares else (width_px, height_px))


def shrunk_size_px(size_px: Size, short_side_px: int | None) -> Size:
    """Return width and height with the shorter side shrunk to ``short_side_px``; a smaller image keeps its size.

    Source:
        VILA's data_prepare/coyo/coyo_downloader.py: the long side is truncated to an integer, not rounded.
    """
    short_px, long_px = sorted(size_px)
    if short_side_px is None or short_px <= short_side_px:
        return size_px
    long_side_px = int(short_side_px * long_px / short_px)
    width_px, height_px = size_px
    return (long_side_px, short_side_px) if height_px < width_px else (short_side_px, long_side_px)


def refuse_size(size_px: Size, spec: ImageSpec) -> Refusal | None:
    """Judge an image by the size in its header; None if it is not refused."""
    width_px, height_px = size_px
    if width_px * height_px > spec.max_pixels:
        return Refusal(FailureKind.TOO_MANY_PIXELS, f"over {spec.max_pixels:,} pixels")
    shorter_px, longer_px = sorted(size_px)
    if width_px * height_px < spec.min_pixels:
        return Refusal(
            FailureKind.PLACEHOLDER, f"{width_px}x{height_px} pixels, a placeholder for an image that is gone"
        )
    if spec.min_size_px is not None and shorter_px < spec.min_size_px:
        return Refusal(FailureKind.TOO_SMALL, f"a side of under {spec.min_size_px:,} pixels")
    if spec.max_area_px is not None and width_px * height_px > spec.max_area_px:
        return Refusal(FailureKind.AREA_TOO_LARGE, f"an area of over {spec.max_area_px:,} pixels")
    if spec.max_aspect_ratio is not None and longer_px > spec.max_aspect_ratio * shorter_px:
        return Refusal(
            FailureKind.ASPECT_RATIO_TOO_LARGE, f"over {spec.max_aspect_ratio:g} times as long on one side as the other"
        )
    return None


def refuse_fitted_size(fitting: Fitting, spec: ImageSpec) -> Refusal | None:
    """Judge an image that is encoded by the size to which it is brought; None if it is not refused."""
    width_px, height_px = fitting.resized_px
    if width_px * height_px > spec.max_pixels:
        return Refusal(FailureKind.TOO_MANY_PIXELS, f"over {spec.max_pixels:,} pixels once it is enlarged")
    max_side_px = _MAX_SIDES_PX.get(spec.image_format)
    if max_side_px is not None and max(fitting.written_px) > max_side_px:
        name = spec.image_format.name_in_pillow
        return Refusal(FailureKind.TOO_MANY_PIXELS, f"a side of over {max_side_px:,} pixels, which no {name} can have")
    return None


def permissions_for(pixels: int, spec: ImageSpec) -> Permissions:
    """Return the permissions of the operator without which an image with this many pixels would be refused."""
    return (Permission.MAX_PIXELS,) if spec.max_pixels > DEFAULT_MAX_PIXELS and pixels > DEFAULT_MAX_PIXELS else ()
