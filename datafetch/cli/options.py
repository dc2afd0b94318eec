"""The options of the command line, which are fields of values: fields → parameters → a job, a check or a request.

Rules: a field declares its option's name, help, values and effect. Only what no value has is declared here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer
from msgspec import UNSET

from datafetch.engine.job import Job
from datafetch.errors import ConfigurationError, unknown_name
from datafetch.fetch import FetchPolicy, OptOut
from datafetch.model.advice import KINDS_ON_THE_WAY
from datafetch.model.options import Effect, OptionField, OptionGroup, options_of
from datafetch.model.outcome import FailureKind, Permission
from datafetch.transcode import ImageSpec

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# More digits than any option takes, so that a number that is too large is refused where its maximum is known.
_SIZE = re.compile(r"([0-9]{1,100})(\.[0-9]{1,9})?\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_PER_SECOND = re.compile(r"\s*/\s*s\s*$", re.IGNORECASE)
_NUMBER = re.compile(r"-?[0-9]{1,100}")
_STATUS = re.compile(r"[1-9][0-9]{2}")
_TIME_OF_DAY = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
_TIME_SPAN = re.compile(r"(?:([0-9]{1,3})d)?(?:([0-9]{1,4})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,7})s)?")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_UNITS = ("GiB", "MiB", "KiB")
_Values = TypeVar("_Values", bound="DataclassInstance")

PERMISSIONS: Mapping[str, Permission] = {permission.replace("-", "_"): permission for permission in Permission}
"""Options that permit what is refused by default, by name."""

Root = Annotated[
    str,
    typer.Option(
        metavar="DIR",
        help="The trainer's data folder, or a place in a bucket: s3://BUCKET/FOLDER.",
        rich_help_panel=OptionGroup.OUTPUT,
    ),
]
"""The option of commands that build datasets."""
NoReshard = Annotated[
    bool,
    typer.Option(
        "--no-reshard",
        help="Keep the manifest's shards and row order; do not reshard.",
        rich_help_panel=OptionGroup.OUTPUT,
    ),
]
"""The option of commands that build datasets."""
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="One JSON object on standard output at the end.", rich_help_panel=OptionGroup.BEHAVIOUR
    ),
]
"""The option of all commands."""
CheckSources = Annotated[
    bool,
    typer.Option(
        "--check-sources",
        help="Only ask each source whether it can be read, and how large it is; download nothing.",
        rich_help_panel=OptionGroup.BEHAVIOUR,
    ),
]
"""The option of commands that know where datasets are published."""
JobOfAnother = Annotated[
    Path | None,
    typer.Option(
        "--job",
        metavar="FILE|OUT",
        help="Repeat the job of this job.json, or of this output: take all that decides the rows, and nothing else.",
        rich_help_panel=OptionGroup.SELECTION,
    ),
]
"""The option of a command that builds one dataset."""
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Say what the run would do: rows, hosts, disk, settings; ask nobody, and write nothing.",
        rich_help_panel=OptionGroup.BEHAVIOUR,
    ),
]
"""The option of commands that build datasets."""
MinSuccess = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        help="Exit with 3 if a smaller share of the images arrives.  [default: 0]",
        show_default=False,
        rich_help_panel=OptionGroup.BEHAVIOUR,
    ),
]
"""The option of commands that fetch."""


def parse_bytes(flag: str, text: str) -> int:
    """Parse a size, such as ``33554432``, ``32M`` or ``32MiB``, into bytes; units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"{flag} takes bytes, such as 500000, 500K, 32MiB or 1.5G, not {text!r}")
    unit_bytes: int = 1024 ** _POWERS[match[3].lower()]
    return int(match[1]) * unit_bytes + int(float(match[2] or 0) * unit_bytes)


def parse_rate(flag: str, text: str) -> int:
    """Parse a size a second, such as ``10M`` or ``10MB/s``, into bytes a second.

    Raises:
        ConfigurationError: It is no such size.
    """
    try:
        return parse_bytes(flag, _PER_SECOND.sub("", text))
    except ConfigurationError:
        raise ConfigurationError(f"{flag} takes bytes a second, such as 500000, 500K or 10MB/s, not {text!r}") from None


def parse_kinds(values: Sequence[str] | None) -> frozenset[FailureKind]:
    """Parse failure kinds, of which each value has several, separated by commas.

    Raises:
        ConfigurationError: There is no such kind; the message names the nearest.
    """
    names = parse_names(values)
    for name in names:
        if name not in tuple(FailureKind):
            raise unknown_name("failure kind", name, FailureKind)
    return frozenset(map(FailureKind, names))


def parse_names(values: Sequence[str] | None) -> tuple[str, ...]:
    """Parse a repeatable option of which each value may have several names, separated by commas."""
    return tuple(name.strip() for value in values or () for name in value.split(","))


def parse_statuses(flag: str, values: Sequence[str] | None) -> frozenset[int]:
    """Parse HTTP statuses, of which each value has several, separated by commas.

    Raises:
        ConfigurationError: One of them is not a number of three digits.
    """
    names = parse_names(values)
    for name in names:
        if not _STATUS.fullmatch(name):
            raise ConfigurationError(f"{flag} takes HTTP statuses, such as 404,503, not {name!r}")
    return frozenset(map(int, names))


def complete_kind(incomplete: str) -> list[str]:
    """Return the failure kinds that begin with what was typed, for the shell."""
    return [kind.value for kind in FailureKind if kind.startswith(incomplete)]


def parse_time(flag: str, text: str, now: datetime) -> datetime:
    """Parse a time: of the next day that has it (``07:00``), with its date (``2030-12-31T07:00``), or ``6h`` from now.

    Args:
        flag: The option.
        text: Its value; a time without a zone is a local one.
        now: The current time, with its zone.

    Raises:
        ConfigurationError: It is no such time, has passed, or is now.
    """
    if (of_day := _TIME_OF_DAY.fullmatch(text)) is not None:
        time = now.replace(hour=int(of_day[1]), minute=int(of_day[2]), second=0, microsecond=0, tzinfo=None)
        return (time if time > now.replace(tzinfo=None) else time + timedelta(days=1)).astimezone()
    if text and (span := _TIME_SPAN.fullmatch(text)) is not None:
        days, hours, minutes, seconds = (int(part or 0) for part in span.groups())
        if not (days or hours or minutes or seconds):
            raise ConfigurationError(f"{flag} {text} leaves no time; give a later time")
        return now + timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    try:
        time = datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"{flag} takes a time of day (07:00), a date and a time (2030-12-31T07:00), or a time from now "
            f"(6h, 90m, 90s), not {text!r}"
        ) from None
    if time <= now:
        raise ConfigurationError(f"{flag} {text} has passed; give a later time")
    return time


def parse_number(flag: str, text: str, word: str) -> int | None:
    """Parse a whole number; None for the word that stands for no number."""
    if text == word:
        return None
    if not _NUMBER.fullmatch(text):
        raise ConfigurationError(f"{flag} takes a whole number or {word!r}, not {text!r}")
    return int(text)


@dataclass(frozen=True, slots=True)
class GivenOptions:
    """The options that were given to a command; all others stay as in the job.

    Attributes:
        values: By name, as typer reads them.
        repeated: The values of options that are taken from the job of another, by name, unless they are given.
    """

    values: Mapping[str, Any]
    repeated: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, before: _Values) -> _Values:
        """Apply the options to a value with fields for them.

        Raises:
            ConfigurationError: A value can't be read, or is not allowed.
        """
        own = list(options_of(type(before)))
        repeated = {one.field: self.repeated[one.name] for one in own if one.name in self.repeated}
        given = {one.field: _read(one, self.values[one.name]) for one in own if one.name in self.values}
        return replace(before, **{**repeated, **given})

    def change(self, job: Job) -> Job:
        """Apply the options to a job and its parts. Networks are added to those that it already allows.

        Raises:
            ConfigurationError: A value can't be read, or is not allowed.
        """
        fetch = self.apply(job.fetch)
        networks = dict.fromkeys((*job.fetch.allow_net, *fetch.allow_net))
        return replace(
            self.apply(job),
            fetch=replace(fetch, allow_net=tuple(networks)),
            image=self.apply(job.image or ImageSpec()),
            options=None if job.options is None else self.apply(job.options),
        )

    @property
    def permitted_kinds(self) -> frozenset[FailureKind]:
        """The failure kinds of images that the permissions given here may let through; a retry requests those too."""
        return frozenset(
            permission.failure_kind
            for name, permission in PERMISSIONS.items()
            if self.values.get(name) and self.values[name] != OptOut.OBEY
        )

    @property
    def kinds_on_the_way(self) -> frozenset[FailureKind]:
        """The failure kinds that another way to the web, given here, may help against: a proxy or name servers."""
        given = (one for one in options_of(FetchPolicy) if self.values.get(one.name))
        return frozenset().union(*(KINDS_ON_THE_WAY.get(one.field, ()) for one in given))


def _read(one: OptionField, value: Any) -> Any:
    if one.option.is_bytes:
        parse = parse_rate if one.option.is_rate else parse_bytes
        return None if value == one.option.none_word else parse(one.flag, value)
    if one.option.is_time:
        return parse_time(one.flag, value, datetime.now().astimezone())
    if one.option.none_word is not None:
        return parse_number(one.flag, value, one.option.none_word)
    return tuple(value) if isinstance(value, list) else value


def parameters_of(
    candidates: Sequence[object],
    *,
    is_selected: Callable[[OptionField], bool] = lambda _: True,
    add_help: Callable[[OptionField], str] = lambda _: "",
    shows_defaults: bool = True,
) -> list[inspect.Parameter]:
    """Turn the options among the fields of a dataclass into parameters of a command.

    Args:
        candidates: Instances of one dataclass, whose values are the defaults; where they differ, help says so.
        is_selected: Selects the options.
        add_help: Returns a sentence to add to the help of an option; empty for none.
        shows_defaults: Whether help states the defaults.
    """
    cls = type(candidates[0])
    hints = get_type_hints(cls)
    parameters = []
    for one in filter(is_selected, options_of(cls)):
        texts = {_default_text(one, getattr(values, one.field)) for values in candidates}
        default = texts.pop() if len(texts) == 1 else "(the dataset's own)"
        sentences = [one.option.help, add_help(one), f" [default: {default}]" if shows_defaults and default else ""]
        declared = typer.Option(
            one.flag,
            metavar=one.option.metavar or ("BYTES" if one.option.is_bytes else None),
            help=" ".join(filter(None, sentences)),
            show_default=False,
            rich_help_panel=one.option.group.value,
        )
        annotation = _annotated(_kind(one, hints[one.field]) | None, declared)
        parameters.append(
            inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    return parameters


def may_differ_later(one: OptionField) -> bool:
    """Whether a retry may set an option to another value than the run, because no row depends on it."""
    return one.option.effect in {Effect.NONE, Effect.PERMITS}


def _kind(one: OptionField, hint: Any) -> Any:
    """The type with which typer parses and checks an option."""
    if one.option.is_bytes or one.option.is_time or one.option.none_word is not None:
        return str
    kind = next((kind for kind in get_args(hint) if kind is not NoneType), hint) if NoneType in get_args(hint) else hint
    return list[str] if get_origin(kind) is tuple else kind


def _default_text(one: OptionField, value: object) -> str:
    """The default of an option as help states it; empty for a switch that is off.

    A description that is not a value of the option is in parentheses, as in typer's own help.
    """
    if value is None or value in ((), "", UNSET):
        return f"({one.option.unset})" if one.option.unset else one.option.none_word or ""
    if isinstance(value, bool):
        return ""
    if one.option.is_bytes and isinstance(value, int):
        return next(_in_unit(value))
    return f"{value:g}" if isinstance(value, float) else str(value.value if isinstance(value, StrEnum) else value)


def _in_unit(number: int) -> Iterator[str]:
    for power, unit in zip((3, 2, 1), _UNITS, strict=True):
        if number and number % 1024**power == 0:
            yield f"{number // 1024**power}{unit}"
    yield str(number)


def _annotated(kind: Any, declared: object) -> object:
    """Make an ``Annotated`` type from a type that is known only at run time."""
    return Annotated[kind, declared]
