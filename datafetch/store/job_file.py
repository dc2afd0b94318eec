"""``job.json``: the settings of the run on an output, with everything that decides the rows."""

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
"""The version of the file format; files of another version are refused."""

_Format: TypeAlias = Annotated[int, Meta(ge=FORMAT, le=FORMAT)]


@dataclass(frozen=True, slots=True)
class LastSettings:
    """Those settings of the last run that the next one needs although they don't decide the rows.

    Attributes:
        scratch: The folder for spools; None is the state folder, and the default for files of earlier versions.
    """

    scratch: PathText | None = None


@dataclass(frozen=True, slots=True)
class JobFile:
    """The fields that every job file has; each dataset adds its own.

    Attributes:
        format: The version of the file format.
        dataset: Name of the dataset.
        shards: The manifest's shards by name: for each, the manifest file and the fingerprint of its content.
        limit: The maximum number of samples; None for all.
        asked: Settings of the last run; None in files of earlier versions.
    """

    format: _Format
    dataset: str
    shards: dict[PlainName, list[Any]]
    limit: Count | None
    asked: LastSettings | None = None


def read_job_file(layout: OutputLayout) -> JobFile | None:
    """The job of an output; None if there is none.

    Raises:
        ConfigurationError: The file is not a job of this version, or can't be read.
    """
    return read_state_file(layout.job, JobFile, not_a_job(layout))


def read_job_fields(layout: OutputLayout) -> dict[str, Any]:
    """All fields of the job file of an output.

    Raises:
        ConfigurationError: There is no job file, or it is not a job of this version, or can't be read.
    """
    fields = read_state_file(layout.job, dict[str, Any], not_a_job(layout))
    try:
        msgspec.convert(fields, JobFile)
    except ValueError as error:
        raise not_a_job(layout) from error
    assert fields is not None  # None would have been refused as not a job
    return fields


def not_a_job(layout: OutputLayout) -> ConfigurationError:
    """The error for a file that is not a job."""
    return ConfigurationError(
        f"{layout.job} is not a job of this version of datafetch; put back a copy, or move {layout.state_folder} and "
        f"what lies in {layout.out} away, and everything is fetched again"
    )
