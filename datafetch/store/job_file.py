"""``job.json``: what decides the rows of an output, and all settings of the last run on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
import orjson
from msgspec import Meta

from datafetch.errors import ConfigurationError
from datafetch.model.bounds import Count, PathText, PlainName
from datafetch.store.atomic import write_atomically
from datafetch.store.layout import OutputLayout
from datafetch.store.state_file import read_state_file

FORMAT = 1
"""The version of the file format; files of another version are refused."""

MAX_FOREIGN_BYTES = 64 * 1024 * 1024
"""The size of the largest job that is read from another output: a hundred bytes a shard."""

Identity: TypeAlias = dict[str, Any]
"""What decides the rows, as JSON: names to values; ``shards`` has the manifest files by shard."""

_Format: TypeAlias = Annotated[int, Meta(ge=FORMAT, le=FORMAT)]
_SETTINGS_KEY = "asked"  # the name that it has had from the beginning
# Earlier versions counted some permissions as part of the identity.
_NO_IDENTITY = frozenset({_SETTINGS_KEY, "max_pixels", "insecure", "opt_out"})


@dataclass(frozen=True, slots=True)
class JobFile:
    """The job of an output, as its file has it.

    Attributes:
        dataset: Name of the dataset.
        shards: The manifest's shards by name: for each, the manifest file and the fingerprint of its content.
        limit: The maximum number of samples; None for all.
        scratch: The folder for spools; None is the state folder, and the default for files of earlier versions.
        ids: Where the id list was; None if there was none, and for files of earlier versions.
        fields: All fields of the file, as JSON values.
    """

    dataset: str
    shards: Mapping[str, list[Any]]
    limit: int | None
    scratch: Path | None
    ids: str | None
    fields: Mapping[str, Any]

    @property
    def identity(self) -> Identity:
        """Everything that decides the rows."""
        return {name: value for name, value in self.fields.items() if name not in _NO_IDENTITY}

    @property
    def settings(self) -> Mapping[str, Any] | None:
        """The settings of the last run, as ``engine.job.settings_of`` made them; None in files of earlier versions."""
        settings: Mapping[str, Any] | None = self.fields.get(_SETTINGS_KEY)
        return settings


@dataclass(frozen=True, slots=True)
class _CheckedSettings:
    """Those settings that are used as they are, with their bounds."""

    scratch: PathText | None = None
    ids: PathText | None = None


@dataclass(frozen=True, slots=True)
class _CheckedFields:
    """The fields that every job file has, with their bounds; each dataset adds its own."""

    format: _Format
    dataset: str
    shards: dict[PlainName, list[Any]]
    limit: Count | None
    asked: _CheckedSettings | None = None


def read_job_file(layout: OutputLayout) -> JobFile | None:
    """The job of an output; None if there is none.

    Raises:
        ConfigurationError: The file is not a job of this version, or can't be read.
    """
    fields = read_state_file(layout.job, dict[str, Any], not_a_job(layout))
    return None if fields is None else _check(fields, not_a_job(layout))


def read_foreign_job_file(path: Path) -> JobFile:
    """The job in a file that may be anybody's.

    Raises:
        ConfigurationError: There is no such file, it is not a job of this version, or is larger than any job.
    """
    damaged = ConfigurationError(
        f"{path} is not a job of this version of datafetch; --job takes the job.json in the state folder of an output"
    )
    fields = read_state_file(path, dict[str, Any], damaged, max_bytes=MAX_FOREIGN_BYTES)
    if fields is None:
        raise ConfigurationError(f"there is no {path}; --job takes the job.json in the state folder of an output")
    return _check(fields, damaged)


def _check(fields: dict[str, Any], damaged: ConfigurationError) -> JobFile:
    try:
        checked = msgspec.convert(fields, _CheckedFields)
    except ValueError as error:
        raise damaged from error
    settings = checked.asked or _CheckedSettings()
    scratch = Path(settings.scratch) if settings.scratch else None
    return JobFile(checked.dataset, checked.shards, checked.limit, scratch, settings.ids, fields)


def write_job_file(layout: OutputLayout, identity: Identity, settings: Mapping[str, object]) -> None:
    """Create or replace the job file of an output.

    Args:
        layout: The paths of the output.
        identity: Everything that decides the rows.
        settings: All settings, as JSON values (``engine.job.settings_of``).
    """
    write_atomically(layout.job, orjson.dumps({**identity, _SETTINGS_KEY: settings}, option=orjson.OPT_INDENT_2))


def replace_settings(layout: OutputLayout, settings: Mapping[str, object]) -> None:
    """Replace the settings in the job file of an output; all other fields stay.

    Raises:
        ConfigurationError: There is no job file, or it is not a job of this version, or can't be read.
    """
    job = read_job_file(layout)
    if job is None:
        raise not_a_job(layout)
    write_job_file(layout, {**job.fields}, settings)


def not_a_job(layout: OutputLayout) -> ConfigurationError:
    """The error for a file that is not a job."""
    return ConfigurationError(
        f"{layout.job} is not a job of this version of datafetch; put back a copy, or move {layout.state_folder} and "
        f"what lies in {layout.out} away, and everything is fetched again"
    )
