"""The command line that a job is started with: a job → words for a shell.

Rules: settings that have their default are left out. What a job file does not hold, or no option can say, is told in
words instead, so that nobody takes the command for more than it is.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from datafetch.datasets import find_dataset
from datafetch.datasets.recipes import part_of
from datafetch.engine.job import Job, own_spec
from datafetch.fetch import FetchPolicy
from datafetch.model.interfaces import Dataset
from datafetch.model.location import is_remote, is_url
from datafetch.model.options import OptionField, options_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_OF_ONE_RUN = ("fresh", "no_lock")
_SECRET_LOCATION = "the URL"  # noqa: S105 - what job files have in place of a location with a password


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A command, and what it can't say.

    Attributes:
        words: The command and its arguments.
        remarks: What is unknown of the run, or can't be given by an option.
    """

    words: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def text(self) -> str:
        """The command, quoted for the shell."""
        return shlex.join(self.words)


def command_line_of(job: Job, out: Path) -> CommandLine:
    """The command that starts a job.

    Args:
        job: The job, as its file has it.
        out: Where its output lies now, as an absolute path.
    """
    dataset = find_dataset(job.dataset)
    root = _root_of(out, dataset)
    words = ["datafetch", "prepare", job.dataset]
    if job.source not in (part_of(job.dataset).readable_place, _SECRET_LOCATION):
        words += _option("--source", job.source)
    if root is not None:
        words += _option("--root", str(root))
    for one, value, default in _settings(job, dataset):
        if value not in (default, _SECRET_LOCATION):
            words += _words(one, value)
    if job.world_size is None:
        words.append("--no-reshard")
    return CommandLine(tuple(words), tuple(_remarks(job, dataset, has_root=root is not None)))


def _root_of(out: Path, dataset: Dataset) -> Path | None:
    """The trainer's data folder of an output; None if the output does not lie where ``prepare`` would place it."""
    path = Path(dataset.path).parts
    return Path(*out.parts[: -len(path)]) if out.parts[-len(path) :] == path else None


def _parts(job: Job, dataset: Dataset) -> Iterator[tuple[DataclassInstance, DataclassInstance]]:
    """The parts of a job that have options, each with its default."""
    yield job, Job("", "", "")
    yield job.fetch, FetchPolicy()
    yield job.image or own_spec(dataset), own_spec(dataset)
    yield job.options or dataset.options, dataset.options


def _settings(job: Job, dataset: Dataset) -> Iterator[tuple[OptionField, object, object]]:
    """The options of a job, each with its value and its default."""
    for values, defaults in _parts(job, dataset):
        for one in options_of(type(values)):
            if one.name not in _OF_ONE_RUN:
                yield one, getattr(values, one.field), getattr(defaults, one.field)


def _words(one: OptionField, value: object) -> list[str]:
    if value is True:
        return [one.flag]
    if value is None:
        return [] if one.option.none_word is None else _option(one.flag, one.option.none_word)
    if isinstance(value, tuple):
        return [word for each in value for word in _option(one.flag, str(each))]
    return _option(one.flag, str(value))


def _option(flag: str, value: str) -> list[str]:
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]


def _remarks(job: Job, dataset: Dataset, *, has_root: bool) -> Iterator[str]:
    """What is unknown of a job, or can't be given by an option."""
    given = [(one, value) for one, value, default in _settings(job, dataset) if value != default]
    locations = [("--source", job.source), *((one.flag, value) for one, value in given if isinstance(value, str))]
    for flag, location in locations:
        if location == _SECRET_LOCATION:
            yield f"{flag} was a URL with credentials, and is not stored; give it again"
        elif is_url(location):
            yield f"credentials and a query that {flag} may have had are not stored; give them again"
    for one, value in given:
        paths = value if isinstance(value, tuple) else (str(value),)
        is_relative = any(not is_remote(path) and not Path(path).is_absolute() for path in paths)
        if one.option.metavar == "FILE" and is_relative and value != _SECRET_LOCATION:
            yield f"{one.flag} is relative to the folder in which the run was started"
    if not has_root:
        yield f"--root can't be told, since the output does not end with {dataset.path}"
    for part, default_part in ((job.fetch, FetchPolicy()), (job.image or own_spec(dataset), own_spec(dataset))):
        own = {one.field for one in options_of(type(part))}
        for name in (one.name for one in fields(part) if one.name not in own):
            if (value := getattr(part, name)) != getattr(default_part, name):
                yield f"{name} was {value!r}, which no option sets"
