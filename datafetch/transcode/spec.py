"""ImageSpec: what the codec makes of an image."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from datafetch.model.fields import check_types, invalid, require_in_range
from datafetch.model.options import Effect, Option, OptionGroup, option

_MAX_DECODE_TIMEOUT_S = 3600.0
_MAX_SIDE_PX = 2**31 - 1  # Pillow's sizes are C integers; images are never enlarged
_MAX_PIXELS = 2**32  # what a JPEG can hold
_MAX_QUALITY = 95  # higher values only make files larger (Pillow's documentation)

RESIZER = "cykooz-resizer 4"
"""What computes the pixels of ``fast_resize``, as a job's identity names it; it changes if and only if the bytes do."""

_ImageOption = partial(Option, group=OptionGroup.IMAGES)


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


class Encoding(StrEnum):
    """Which images are encoded again, and which are kept byte for byte."""

    RECIPE = "recipe"
    """Every image is encoded again."""
    ORIGINAL = "original"
    """An intact 8-bit JPEG in grey or RGB that needs no change is kept; all others are encoded again."""
    RECEIVED = "received"
    """Every image that decodes the way the trainer decodes it is kept, in any format on the allow-list."""


DEFAULT_MAX_PIXELS = 89_478_485
"""The size from which on Pillow warns. Larger images are accepted only if the operator permits them."""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What an image becomes. Validated when created, and picklable, because it is sent to the codec processes.

    Attributes:
        short_side_px: Shrink so that the shorter side has this many pixels; None keeps the size. Never enlarges.
        quality: JPEG quality, 1 to 95; 75 is the default of Pillow and of the recipe.
        pixels: Which pixels are written.
        resize: How an image is shrunk; fast needs the extra of that name.
        encode: Which images are encoded again, and which are kept.
        max_pixels: Images with more are refused, judging by their header.
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
    quality: int = option(75, _ImageOption(help="JPEG quality, 1 to 95.", metavar="Q"))
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
    max_pixels: int = option(
        DEFAULT_MAX_PIXELS,
        _ImageOption(
            help="Refuse images whose header says that they have more pixels.", effect=Effect.PERMITS, metavar="N"
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
        require_in_range(self, "quality", 1, _MAX_QUALITY)
        require_in_range(self, "max_pixels", 1, _MAX_PIXELS)
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise invalid(self, f"{{min_pixels}} must be from 1 to {{max_pixels}}, not {self.min_pixels}")
        if self.encode is Encoding.RECEIVED and (self.short_side_px is not None or self.pixels is not Pixels.RECIPE):
            raise invalid(
                self,
                "{encode:received} keeps images as they are: it takes {short_side_px:none} and {pixels:recipe}",
            )
        seconds = self.decode_timeout_s
        if not 0 < seconds <= _MAX_DECODE_TIMEOUT_S:
            raise invalid(self, f"{{decode_timeout_s}} must be above 0 seconds and at most an hour, not {seconds!r}")

    @property
    def shrinks_fast(self) -> bool:
        """Whether images are shrunk fast, if at all."""
        return self.short_side_px is not None and self.resize is Resize.FAST
