"""ImageSpec: what comes out of the codec."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TypeVar

from datafetch.errors import ConfigurationError, refuse_outside
from datafetch.model.options import Effect, Option, OptionGroup, option

_MAX_DECODE_TIMEOUT_S = 3600.0
_MOST_SIDE_PX = 2**31 - 1  # Pillow's sizes are C integers; images are never enlarged
_MOST_PIXELS = 2**32  # what a JPEG can hold
_MAX_QUALITY = 95  # above it libjpeg-turbo only makes files larger (Pillow's documentation)

_Setting = partial(Option, group=OptionGroup.IMAGES)


class Pixels(StrEnum):
    """Whose pixels are written."""

    RECIPE = "recipe"
    """Those of the published recipe, whatever a viewer would show."""
    CORRECT = "correct"
    """Those that a viewer shows: upright, over white, in sRGB, 16 bits scaled."""


class Resize(StrEnum):
    """How an image is shrunk."""

    EXACT = "exact"
    """From all of its pixels."""
    FAST = "fast"
    """A JPEG from a half, a quarter or an eighth of its pixels a side, where that serves (docs/fidelity.md)."""


class Encoding(StrEnum):
    """What becomes of an image that could stay as it is."""

    RECIPE = "recipe"
    """Everything is encoded again."""
    ORIGINAL = "original"
    """A sound 8-bit JPEG, grey or in colour, that needs no change is kept byte for byte."""
    RECEIVED = "received"
    """Whatever decodes as the trainer decodes it is kept byte for byte, in any format on the list."""


DEFAULT_MAX_PIXELS = 89_478_485
"""Pillow's own, from which on it warns. An image with more is taken by the operator's permission alone."""

_Choice = TypeVar("_Choice", bound=StrEnum)


def _choice(choices: type[_Choice], option: str, word: str) -> _Choice:
    try:
        return choices(word)
    except ValueError:
        raise ConfigurationError(f"{option} must be {' or '.join(choices)}, not {word!r}") from None


def _whole(option: str, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise ConfigurationError(f"{option} must be a whole number, not {number!r}")


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What an image becomes. Checked when made; it pickles, for the codec's processes get it.

    Attributes:
        short_side_px: Shrink so that the shorter side has this many pixels, never enlarge; None leaves sizes alone.
        quality: JPEG quality, 1 to 95; 75 is Pillow's default and the recipe's.
        pixels: Whose pixels are written.
        resize: How an image is shrunk; None is exact for the recipe's pixels and fast for others.
        encode: What becomes of an image that could stay as it is.
        max_pixels: Images with more are refused from their header.
        least_pixels: Images with fewer are refused from their header, as stand-ins for images that are gone.
        decode_timeout_s: CPU seconds that one image may take.
        mends: Whether an image is taken without its ancillary chunks, where Pillow refuses it for those alone;
            not where the question is what the trainer's own Pillow would say.
    """

    short_side_px: int | None = option(
        None,
        _Setting(
            name="short_side",
            help="Shrink so that the shorter side is PX; never enlarge.",
            metavar="PX|none",
            none_word="none",
        ),
    )
    quality: int = option(75, _Setting(help="JPEG quality, 1 to 95.", metavar="Q"))
    pixels: Pixels = option(
        Pixels.RECIPE,
        _Setting(help="The recipe's, or correct ones: upright, over white, sRGB, 16 bits scaled."),
    )
    resize: Resize | None = option(
        None,
        _Setting(
            help=(
                "Shrink from all pixels, or decode large JPEGs at reduced size first "
                "(photographs: median 53 dB, at least 39)."
            ),
            unset="exact for recipe pixels, else fast",
        ),
    )
    encode: Encoding = option(
        Encoding.RECIPE,
        _Setting(help="Encode every image again, keep JPEGs that need no change, or keep every image that decodes."),
    )
    max_pixels: int = option(
        DEFAULT_MAX_PIXELS,
        _Setting(help="Refuse larger images, from their header.", effect=Effect.PERMITS, metavar="N"),
    )
    least_pixels: int = 1
    decode_timeout_s: float = option(
        20.0,
        _Setting(
            name="decode_timeout",
            help="CPU seconds one image may take in the codec.",
            effect=Effect.NONE,
            metavar="S",
        ),
    )
    mends: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is fetched; a choice may be given as its plain word."""
        object.__setattr__(self, "pixels", _choice(Pixels, "--pixels", self.pixels))
        object.__setattr__(self, "encode", _choice(Encoding, "--encode", self.encode))
        if self.resize is not None:
            object.__setattr__(self, "resize", _choice(Resize, "--resize", self.resize))
        if self.short_side_px is not None:
            _whole("--short-side", self.short_side_px)
        _whole("--quality", self.quality)
        _whole("--max-pixels", self.max_pixels)
        _whole("least_pixels", self.least_pixels)
        if self.short_side_px is not None:
            refuse_outside("--short-side", self.short_side_px, 1, _MOST_SIDE_PX)
        refuse_outside("--quality", self.quality, 1, _MAX_QUALITY)
        refuse_outside("--max-pixels", self.max_pixels, 1, _MOST_PIXELS)
        if not 1 <= self.least_pixels <= self.max_pixels:
            raise ConfigurationError(f"least_pixels must be from 1 to --max-pixels, not {self.least_pixels}")
        if self.encode is Encoding.RECEIVED and (self.short_side_px is not None or self.pixels is not Pixels.RECIPE):
            raise ConfigurationError(
                "--encode received keeps images as they are: it takes --short-side none and --pixels recipe"
            )
        seconds: object = self.decode_timeout_s
        if (
            isinstance(seconds, bool)
            or not isinstance(seconds, int | float)
            or not 0 < seconds <= _MAX_DECODE_TIMEOUT_S
        ):
            raise ConfigurationError(f"--decode-timeout must be above 0 seconds and at most an hour, not {seconds!r}")

    @property
    def shrinks_fast(self) -> bool:
        """Whether a JPEG may be shrunk from fewer than all of its pixels."""
        if self.resize is None:
            return self.pixels is not Pixels.RECIPE
        return self.resize is Resize.FAST
