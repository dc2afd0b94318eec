"""``job.json``: what the run on an output is. Whatever decides the rows stands there, and what was asked for last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from datafetch.errors import ConfigurationError
from datafetch.model.bounds import Count, PathText, PlainName
from datafetch.store.layout import OutputLayout
from datafetch.store.state_file import read_state_file

FORMAT = 1
"""Of the file; one of another format is not read."""

_Format: TypeAlias = Annotated[int, Meta(ge=FORMAT, le=FORMAT)]


@dataclass(frozen=True, slots=True)
class LastRequest:
    """How a job was asked for last, as far as its own output needs it.

    Attributes:
        scratch: Where its spools were to lie; None is the state folder, also where an earlier version did not say.
    """

    scratch: PathText | None = None


@dataclass(frozen=True, slots=True)
class JobFile:
    """What every job has; each dataset adds fields of its own.

    Attributes:
        format: Of the file.
        dataset: Name of the dataset.
        shards: Of the manifest, by name: the manifest file that a shard is cut from, and what tells its content.
        limit: How many samples there are to be at most; None where all are wanted.
        asked: How it was asked for last; None where that is not known.
    """

    format: _Format
    dataset: str
    shards: dict[PlainName, list[Any]]
    limit: Count | None
    asked: LastRequest | None = None


def read_job_file(layout: OutputLayout) -> JobFile | None:
    """What the job of an output is; None where there is none.

    Raises:
        ConfigurationError: The file is not a job of this version, or can't be read.
    """
    return read_state_file(layout.job, JobFile, not_a_job(layout))


def read_job_fields(layout: OutputLayout) -> dict[str, Any]:
    """Everything that the job file of an output says.

    Raises:
        ConfigurationError: There is none, or it is not a job of this version, or it can't be read.
    """
    fields = read_state_file(layout.job, dict[str, Any], not_a_job(layout))
    try:
        msgspec.convert(fields, JobFile)
    except ValueError as error:
        raise not_a_job(layout) from error
    assert fields is not None  # which is no job
    return fields


def not_a_job(layout: OutputLayout) -> ConfigurationError:
    """The error for a job file that is none."""
    return ConfigurationError(
        f"{layout.job} is not a job of this version of datafetch; put back a copy, or move {layout.folder} and what "
        f"lies in {layout.out} away, and everything is fetched again"
    )
