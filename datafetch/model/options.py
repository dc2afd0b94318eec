"""Options, declared once: fields of frozen dataclasses that say how the command line offers them.

Rules: the command line, the identity of a job and the library all iterate over these fields, so that an option can't be
forgotten in one of them. An option that does not say otherwise decides the rows: to forget that would mix them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum, StrEnum, auto
from typing import TypeVar

from datafetch.errors import ConfigurationError, refuse_outside

MOST_COUNT = 2**31 - 1
"""Of any option of a dataset that is a whole number."""
_METADATA_KEY = "datafetch.option"
_Value = TypeVar("_Value")


class OptionGroup(StrEnum):
    """The titles under which help lists options, in this order."""

    SELECTION = "What to fetch"
    NETWORK = "Network"
    IMAGES = "Images"
    OUTPUT = "Output"
    BEHAVIOUR = "Behaviour"


class Effect(Enum):
    """What an option has to do with the rows of an output."""

    ROWS = auto()
    """Its value decides them, and is part of a job's identity."""
    MANIFEST = auto()
    """It decides them by what the manifest makes of it, which ``Manifest.identity_fields`` has."""
    PERMITS = auto()
    """It permits what would fail or stop the run without it, and changes no row that there would be anyway."""
    NONE = auto()
    """None: how fast, from where, by which way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """How a field is offered on the command line.

    Attributes:
        help: What it does, in a sentence.
        group: Under which title it is listed.
        effect: What it has to do with the rows.
        name: What it is called, with underscores and without dashes before it; None is the field's name.
        metavar: What help shows for its value; None is derived from the field's type.
        unset: What no value stands for, as help shows it.
        none_word: The word that stands for None, for a whole number that may be left open.
        is_bytes: Whether it is a number of bytes, which may be given as ``32MiB``.
        least: The smallest whole number that a dataset takes; None checks nothing.
    """

    help: str
    group: OptionGroup = OptionGroup.SELECTION
    effect: Effect = Effect.ROWS
    name: str | None = None
    metavar: str | None = None
    unset: str = ""
    none_word: str | None = None
    is_bytes: bool = False
    least: int | None = None


def option(default: _Value, declared: Option) -> _Value:
    """A field of a dataclass that is an option, to be written in the place of its default."""
    return field(default=default, metadata={_METADATA_KEY: declared})


@dataclass(frozen=True, slots=True)
class OptionField:
    """An option with the field that it is.

    Attributes:
        field: The field's name.
        name: What the option is called, with underscores.
        default: The field's default.
        option: How it is offered.
    """

    field: str
    name: str
    default: object
    option: Option

    @property
    def flag(self) -> str:
        """As on the command line."""
        return f"--{self.name.replace('_', '-')}"


def options_of(cls: type) -> Iterator[OptionField]:
    """The options among the fields of a dataclass, in the order of their declaration."""
    for one in fields(cls):
        declared = one.metadata.get(_METADATA_KEY)
        if isinstance(declared, Option):
            default = None if one.default is MISSING else one.default
            yield OptionField(one.name, declared.name or one.name, default, declared)


def row_options(values: object) -> dict[str, object]:
    """The values of those options that decide the rows, by the options' names."""
    return {
        one.name: getattr(values, one.field) for one in options_of(type(values)) if one.option.effect is Effect.ROWS
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOptions:
    """What may be set for one dataset besides its source and id list; a dataset with options derives its own.

    Frozen, checked when made, and picklable.
    """

    def __post_init__(self) -> None:
        """Refuse numbers that can't be meant, before anything is read.

        Raises:
            ConfigurationError: One is out of its bounds, or not a number at all; it names the option.
        """
        for one in options_of(type(self)):
            value, least = getattr(self, one.field), one.option.least
            if isinstance(value, int) and least is not None:
                refuse_outside(one.flag, value, least, MOST_COUNT)
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigurationError(f"{one.flag} must be a number, not {value}")
