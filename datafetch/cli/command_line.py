"""The command line that a job is started with: a job → words for a shell.

Rules: settings that have their default are left out. What a job file does not hold, or no option can say, is told in
words instead, so that nobody takes the command for more than it is.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from datafetch.datasets import find_dataset
from datafetch.datasets.recipes import part_of
from datafetch.engine.choices import settings_in
from datafetch.engine.job import Job, inputs_of, own_spec
from datafetch.fetch import FetchPolicy
from datafetch.model.dataset import Dataset
from datafetch.model.location import HIDDEN_URL, is_remote, is_url
from datafetch.model.options import options_of


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


def command_line_of(job: Job, out: Path | str) -> CommandLine:
    """The command that starts a job.

    Args:
        job: The job, as its file has it.
        out: Where its output lies now, as an absolute path or its place in a bucket.
    """
    dataset = find_dataset(job.dataset)
    root = _root_of(out, dataset)
    if dataset.takes_inputs:
        inputs = [place for place in inputs_of(job) if place != HIDDEN_URL]
        words = ["datafetch", "get", *inputs, "--out", str(out)]
    else:
        words = ["datafetch", "prepare", job.dataset]
        if job.source not in (part_of(job.dataset).readable_place, HIDDEN_URL):
            words += ["--source", job.source]
        if root is not None:
            words += ["--root", str(root)]
    for one in settings_in(job):
        if not one.is_default and one.value != HIDDEN_URL:
            words += one.words()
    return CommandLine(tuple(words), tuple(_remarks(job, dataset, has_root=root is not None or dataset.takes_inputs)))


def _root_of(out: Path | str, dataset: Dataset) -> Path | str | None:
    """The trainer's data folder of an output; None if the output does not lie where ``prepare`` would place it."""
    if isinstance(out, str):
        return out.removesuffix(f"/{dataset.path}") if out.endswith(f"/{dataset.path}") else None
    path = Path(dataset.path).parts
    return Path(*out.parts[: -len(path)]) if out.parts[-len(path) :] == path else None


def _places(job: Job, dataset: Dataset) -> list[tuple[str, str]]:
    """What a job reads, each with how a remark names it."""
    return [("an input", place) for place in inputs_of(job)] if dataset.takes_inputs else [("--source", job.source)]


def _remarks(job: Job, dataset: Dataset, *, has_root: bool) -> Iterator[str]:
    """What is unknown of a job, or can't be given by an option."""
    given = [one for one in settings_in(job) if not one.is_default]
    locations = [*_places(job, dataset), *((one.option.flag, str(one.value)) for one in given if one.is_location)]
    for flag, location in locations:
        if location == HIDDEN_URL:
            yield f"{flag} was a URL with credentials, and is not stored; give it again"
        elif is_url(location):
            yield f"credentials and a query that {flag} may have had are not stored; give them again"
    for one in given:
        paths = one.value if isinstance(one.value, tuple) else (str(one.value),)
        is_relative = any(not is_remote(path) and not Path(path).is_absolute() for path in paths)
        if one.option.option.is_file and is_relative and one.value != HIDDEN_URL:
            yield f"{one.option.flag} is relative to the folder in which the run was started"
    if not has_root:
        yield f"--root can't be told, since the output does not end with {dataset.path}"
    for part, default_part in ((job.fetch, FetchPolicy()), (job.image or own_spec(dataset), own_spec(dataset))):
        declared = {one.field for one in options_of(type(part))}
        for name in (one.name for one in fields(part) if one.name not in declared):
            if (value := getattr(part, name)) != getattr(default_part, name):
                yield f"{name} was {value!r}, which no option sets"
