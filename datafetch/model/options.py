"""Options, declared once: fields of frozen dataclasses that say how the command line offers them.

Rules: the command line, the identity of a job and the library all iterate over these fields, so an option can't be
forgotten in one of them. By default, an option is assumed to decide the rows, because forgetting that would mix rows of
different settings.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum, StrEnum, auto
from typing import TypeVar

from datafetch.model.fields import check_types, invalid, require_in_range

MAX_COUNT = 2**31 - 1
"""The maximum of every integer option of a dataset."""
_METADATA_KEY = "datafetch.option"
_Value = TypeVar("_Value")


class OptionGroup(StrEnum):
    """The titles under which help lists options, in this order."""

    SELECTION = "What to fetch"
    OUTPUT = "Output"
    NETWORK = "Network"
    IMAGES = "Images"
    BEHAVIOUR = "Behaviour"


class Effect(Enum):
    """How an option affects the rows of an output."""

    ROWS = auto()
    """Its value decides the rows, and is part of a job's identity."""
    MANIFEST = auto()
    """It decides the rows by a value that the manifest derives from it (``Manifest.identity_fields``)."""
    PERMITS = auto()
    """It permits what would otherwise fail or stop the run, and changes no other row."""
    NONE = auto()
    """It does not affect the rows, only for example the speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """How a field is offered on the command line.

    Attributes:
        help: What it does, in one sentence.
        group: The title under which it is listed.
        effect: How it affects the rows.
        name: Its name, with underscores and without leading dashes; None for the field's name.
        metavar: The placeholder for its value in the help; None derives it from the field's type.
        unset: What the help shows as the default if the default is no value.
        none_word: The word for None, for an integer that may be unset.
        none_flag: The switch that sets None, if it is not an option's value that does.
        is_file: Whether its value says where a file or a folder is, which holds for one operator alone.
        is_bytes: Whether it is a size in bytes, which may be given as ``32MiB``.
        is_rate: Whether it is such a size a second, which may also be given as ``10MB/s``.
        is_time: Whether it is a time, which may be given as ``07:00``, ``2030-12-31T07:00`` or ``6h`` from now.
        is_of_one_run: Whether it holds for one run, and so is not stored with the job.
        minimum: The minimum of an integer option of a dataset; None for no check.
        omitted_if_default: Whether the option is left out of a job's identity, and of what is said of its defaults,
            while it has its default, so that identities from before it existed stay the same.
    """

    help: str
    group: OptionGroup = OptionGroup.SELECTION
    effect: Effect = Effect.ROWS
    name: str | None = None
    metavar: str | None = None
    unset: str = ""
    none_word: str | None = None
    none_flag: str = ""
    is_file: bool = False
    is_bytes: bool = False
    is_rate: bool = False
    is_time: bool = False
    is_of_one_run: bool = False
    minimum: int | None = None
    omitted_if_default: bool = False


def option(default: _Value, declared: Option) -> _Value:
    """Declare a field of a dataclass as an option; used in place of the field's default."""
    return field(default=default, metadata={_METADATA_KEY: declared})


@dataclass(frozen=True, slots=True)
class OptionField:
    """An option and the field that declares it.

    Attributes:
        field: The field's name.
        name: The option's name, with underscores.
        default: The field's default.
        option: How the field is offered on the command line.
    """

    field: str
    name: str
    default: object
    option: Option

    @property
    def flag(self) -> str:
        """The option as it is written on the command line."""
        return f"--{self.name.replace('_', '-')}"

    def is_default_of(self, values: object) -> bool:
        """Whether an instance of the dataclass has the default here."""
        return bool(getattr(values, self.field) == self.default)


def options_of(cls: type) -> Iterator[OptionField]:
    """The options among the fields of a dataclass, in the order of their declaration."""
    for one in fields(cls):
        declared = one.metadata.get(_METADATA_KEY)
        if isinstance(declared, Option):
            default = None if one.default is MISSING else one.default
            yield OptionField(one.name, declared.name or one.name, default, declared)


def row_options(values: object) -> dict[str, object]:
    """The values of the options that decide the rows, by the options' names."""
    return {
        one.name: getattr(values, one.field) for one in options_of(type(values)) if one.option.effect is Effect.ROWS
    }


def as_given(one: OptionField, value: object) -> Iterator[str]:
    """An option as it is given to a command, quoted for the shell. The arguments are those of ``words_of``."""
    return map(shlex.join, words_of(one, value))


def words_of(one: OptionField, value: object) -> Iterator[tuple[str, ...]]:
    """An option as it is given to a command: the words of each of several values.

    Args:
        one: The option.
        value: Its value; one that is unset, or a switch that is off, is not given at all.
    """
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from words_of(one, part)
    elif value is True:
        yield (one.flag,)
    elif value is None and one.option.none_flag:
        yield (one.option.none_flag,)
    elif value is None and one.option.none_word:
        yield one.flag, one.option.none_word
    elif value is not None and value is not False and value != "":
        text = str(value).removesuffix(".0") if isinstance(value, float) else str(value)
        yield (f"{one.flag}={text}",) if text.startswith("-") else (one.flag, text)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOptions:
    """The options of a dataset besides its source and id list; a dataset with options defines a subclass.

    Frozen, validated when created, and picklable.
    """

    def inputs(self, source: str) -> tuple[str, ...]:
        """The places of the files that a job reads, in order.

        Args:
            source: What the job gives as its source.
        """
        return (source,)

    def __post_init__(self) -> None:
        """Check all values before anything is read.

        Raises:
            ConfigurationError: An option is out of its bounds, or of another type; the message names it.
        """
        check_types(self)
        for one in options_of(type(self)):
            value = getattr(self, one.field)
            if one.option.minimum is not None:
                require_in_range(self, one.field, one.option.minimum, MAX_COUNT)
            if value == "":
                raise invalid(self, f"{{{one.field}}} is empty; give a value, or leave it out")
            if isinstance(value, float) and not math.isfinite(value):
                raise invalid(self, f"{{{one.field}}} must be a number, not {value}")
