"""ImageSpec: what the codec makes of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from datafetch.model.fields import check_types, invalid, require_in_range
from datafetch.model.options import Effect, Option, OptionGroup, option

_MAX_DECODE_TIMEOUT_S = 3600.0
_MAX_SIDE_PX = 2**31 - 1  # Pillow's sizes are C integers
_MAX_PIXELS = 2**32  # what a JPEG can hold
DEFAULT_QUALITY = 75  # Pillow's, and the recipe's
_MAX_QUALITY = 95  # higher values only make JPEGs larger (Pillow's documentation)
_MAX_WEBP_QUALITY = 100

RESIZER = "cykooz-resizer 4"
"""What computes the pixels of ``fast_resize``, as a job's identity names it; it changes if and only if the bytes do."""

_ImageOption = partial(Option, group=OptionGroup.IMAGES)
_OptionOmittedByDefault = partial(_ImageOption, omitted_if_default=True)


class Pixels(StrEnum):
    """Which pixels are written."""

    RECIPE = "recipe"
    """Those of the published recipe, whatever a viewer would show."""
    CORRECT = "correct"
    """Those that a viewer shows: upright, over white, in sRGB, with 16 bits scaled to 8."""


class Resize(StrEnum):
    """How an image is shrunk."""

    EXACT = "exact"
    """By Pillow, from all of its pixels."""
    FAST = "fast"
    """By cykooz-resizer; a JPEG from a half, a quarter or an eighth of its pixels per side, where that is enough
    (docs/fidelity.md)."""


class ResizeMode(StrEnum):
    """How an image is fitted to a size; the names are those of img2dataset. What each does is in docs/fidelity.md."""

    KEEP_RATIO = "keep-ratio"
    """The shorter side gets the size, and the longer one follows."""
    KEEP_RATIO_LARGEST = "keep-ratio-largest"
    """The longer side gets the size, and the shorter one follows."""
    CENTER_CROP = "center-crop"
    """The shorter side gets the size, and the longer one is cut to it at both ends: a square."""
    BORDER = "border"
    """The longer side gets the size, and white is added at both sides of the shorter one: a square."""

    @property
    def is_of_shorter_side(self) -> bool:
        """Whether it is the shorter side that gets the size."""
        return self in (ResizeMode.KEEP_RATIO, ResizeMode.CENTER_CROP)

    @property
    def makes_squares(self) -> bool:
        """Whether each image that is fitted becomes a square."""
        return self in (ResizeMode.CENTER_CROP, ResizeMode.BORDER)


class ImageFormat(StrEnum):
    """The format of images that are encoded."""

    JPG = "jpg"
    PNG = "png"
    WEBP = "webp"

    @property
    def name_in_pillow(self) -> str:
        """Its name as ``Encoded.source_format`` has it."""
        return "JPEG" if self is ImageFormat.JPG else self.value.upper()


class BodyCheck(StrEnum):
    """How far an image that is kept as received is examined."""

    FULL = "full"
    """It is decoded the way the trainer decodes it."""
    HEADER = "header"
    """Its format, its size and its end are found in the file; nothing is decoded."""


class Encoding(StrEnum):
    """Which images are encoded again, and which are kept byte for byte."""

    RECIPE = "recipe"
    """Every image is encoded again."""
    ORIGINAL = "original"
    """An intact 8-bit JPEG in grey or RGB that needs no change is kept; all others are encoded again. If these become
    another format, so does each JPEG."""
    RECEIVED = "received"
    """Every image that passes the ``BodyCheck`` is kept, in any format on the allow-list."""


DEFAULT_MAX_PIXELS = 89_478_485
"""The size from which on Pillow warns. Larger images are accepted only if the operator permits them."""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What an image becomes. Validated when created, and picklable, because it is sent to the codec processes.

    Attributes:
        short_side_px: Shrink so that the shorter side has this many pixels; None keeps the size. Never enlarges.
        resize_mode: How an image is fitted to ``size_px``; None fits none.
        size_px: The size of the side that ``resize_mode`` names; given if and only if that is.
        only_if_bigger: Fit only images of which that side is larger, and leave all others as they are. Otherwise
            smaller ones are enlarged.
        image_format: The format of images that are encoded.
        quality: Quality of JPEG, 1 to 95, and of WebP, 1 to 100; 75 is the default of Pillow and of the recipe. PNG
            has none, and takes the default.
        pixels: Which pixels are written.
        resize: How an image is shrunk; fast needs the extra of that name.
        encode: Which images are encoded again, and which are kept.
        check: How far images that are kept as received are examined.
        min_size_px: Images whose shorter side has fewer pixels are refused, judging by their header; None for none.
        max_aspect_ratio: So are images whose longer side is more than this many times the shorter one.
        max_area_px: So are images with more pixels than this.
        max_pixels: Images that have more, or would have once they are enlarged, are refused, judging by their header.
        min_pixels: Images with fewer are refused, judging by their header, as placeholders for images that are gone.
        decode_timeout_s: CPU seconds that one image may take.
        repairs_png: Whether a PNG that Pillow refuses only for its ancillary chunks is decoded without them. Off where
            the question is what the trainer's own Pillow would do.
    """

    short_side_px: int | None = option(
        None,
        _ImageOption(
            name="short_side",
            help="Shrink so that the shorter side is PX; never enlarge.",
            metavar="PX|none",
            none_word="none",
        ),
    )
    resize_mode: ResizeMode | None = option(
        None,
        _OptionOmittedByDefault(
            help="How to fit each image to --size: scale the shorter side to it (keep-ratio), or the longer one "
            "(keep-ratio-largest); scale the shorter side and crop to a square (center-crop); scale the longer side "
            "and pad with white to a square (border).",
            unset="none",
        ),
    )
    size_px: int | None = option(
        None, _OptionOmittedByDefault(name="size", help="The size for --resize-mode.", metavar="PX")
    )
    only_if_bigger: bool = option(
        False, _OptionOmittedByDefault(help="Fit only images that are larger than --size; others stay as they are.")
    )
    image_format: ImageFormat = option(
        ImageFormat.JPG, _OptionOmittedByDefault(help="The format of images that are encoded.")
    )
    quality: int = option(
        DEFAULT_QUALITY, _ImageOption(help="Quality of JPEG (1 to 95) and WebP (1 to 100); PNG has none.", metavar="Q")
    )
    pixels: Pixels = option(
        Pixels.RECIPE,
        _ImageOption(help="Pixels as in the recipe, or correct: upright, over white, sRGB, 16 bits scaled."),
    )
    resize: Resize = option(
        Resize.EXACT,
        _ImageOption(
            help=(
                "Shrink exactly as Pillow does, or several times faster (needs the extra 'fast'; PSNR of photographs: "
                "median 74 dB, and 53 where a large JPEG is decoded at reduced size; at least 39)."
            ),
        ),
    )
    encode: Encoding = option(
        Encoding.RECIPE,
        _ImageOption(
            help="Encode every image again, keep JPEGs that need no change, or keep every image that decodes."
        ),
    )
    check: BodyCheck = option(
        BodyCheck.FULL,
        _OptionOmittedByDefault(
            help="With --encode received: decode every image, or only look at its header and whether its end is there.",
        ),
    )
    min_size_px: int | None = option(
        None,
        _OptionOmittedByDefault(
            name="min_size", help="Leave out images whose shorter side has fewer pixels.", metavar="PX", unset="none"
        ),
    )
    max_aspect_ratio: float | None = option(
        None,
        _OptionOmittedByDefault(
            help="Leave out images whose longer side is more than R times the shorter one.", metavar="R", unset="none"
        ),
    )
    max_area_px: int | None = option(
        None,
        _OptionOmittedByDefault(
            name="max_area", help="Leave out images with more than N pixels.", metavar="N", unset="none"
        ),
    )
    max_pixels: int = option(
        DEFAULT_MAX_PIXELS,
        _ImageOption(
            help="Refuse images that have more pixels by their header, or would have once they are enlarged.",
            effect=Effect.PERMITS,
            metavar="N",
        ),
    )
    min_pixels: int = 1
    decode_timeout_s: float = option(
        20.0,
        _ImageOption(
            name="decode_timeout",
            help="CPU seconds that one image may take in the codec.",
            effect=Effect.NONE,
            metavar="S",
        ),
    )
    repairs_png: bool = True

    def __post_init__(self) -> None:
        """Refuse invalid values before anything is fetched. A choice may be given as a plain string."""
        check_types(self)
        require_in_range(self, "short_side_px", 1, _MAX_SIDE_PX)
        require_in_range(self, "size_px", 1, _MAX_SIDE_PX)
        self._check_quality()
        require_in_range(self, "min_size_px", 1, _MAX_SIDE_PX)
        require_in_range(self, "max_area_px", 1, _MAX_PIXELS)
        require_in_range(self, "max_pixels", 1, _MAX_PIXELS)
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise invalid(self, f"{{min_pixels}} must be from 1 to {{max_pixels}}, not {self.min_pixels}")
        ratio = self.max_aspect_ratio
        if ratio is not None and not (math.isfinite(ratio) and ratio >= 1):
            raise invalid(self, f"{{max_aspect_ratio}} must be a number from 1 on, not {ratio!r}")
        if ratio is not None:
            object.__setattr__(self, "max_aspect_ratio", float(ratio))  # so that 3 and 3.0 are the same in an identity
        self._check_fitting()
        if self.encode is Encoding.RECEIVED:
            self._check_kept()
        if self.check is BodyCheck.HEADER and self.encode is not Encoding.RECEIVED:
            raise invalid(self, "{check:header} is for images that are kept as they are: it takes {encode:received}")
        seconds = self.decode_timeout_s
        if not 0 < seconds <= _MAX_DECODE_TIMEOUT_S:
            raise invalid(self, f"{{decode_timeout_s}} must be above 0 seconds and at most an hour, not {seconds!r}")

    def _check_quality(self) -> None:
        require_in_range(
            self, "quality", 1, _MAX_WEBP_QUALITY if self.image_format is ImageFormat.WEBP else _MAX_QUALITY
        )
        if self.image_format is ImageFormat.PNG and self.quality != DEFAULT_QUALITY:
            raise invalid(self, "{image_format:png} is lossless and has no quality; leave out {quality}")

    def _check_fitting(self) -> None:
        if (self.resize_mode is None) is not (self.size_px is None):
            raise invalid(self, "{resize_mode} and {size_px} must be given together")
        if self.only_if_bigger and self.resize_mode is None:
            raise invalid(self, "{only_if_bigger} is for {resize_mode} and {size_px}; give these, too")
        if self.resize_mode is None:
            return
        if self.short_side_px is not None:
            raise invalid(
                self, "{short_side_px} and {resize_mode} both resize; give {short_side_px:none}, or leave one out"
            )
        if self.resize_mode.makes_squares and self.size_px is not None and self.size_px**2 > self.max_pixels:
            raise invalid(self, "squares of {size_px} have more pixels than {max_pixels}; give a smaller {size_px}")

    def _check_kept(self) -> None:
        if self.short_side_px is not None or self.pixels is not Pixels.RECIPE:
            raise invalid(
                self,
                "{encode:received} keeps images as they are: it takes {short_side_px:none} and {pixels:recipe}",
            )
        if self.resize_mode is not None or self.image_format is not ImageFormat.JPG:
            raise invalid(
                self, "{encode:received} keeps images as they are: it takes neither {resize_mode} nor {image_format}"
            )

    @property
    def resizes(self) -> bool:
        """Whether there are images that are resized."""
        return self.short_side_px is not None or self.resize_mode is not None

    @property
    def shrinks_fast(self) -> bool:
        """Whether images are shrunk fast, if at all."""
        return self.resizes and self.resize is Resize.FAST
