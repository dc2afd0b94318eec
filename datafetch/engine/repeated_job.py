"""RepeatedJob: the job of another output, of which what decides the rows is taken, and nothing else.

Rules: the file may be anybody's. Which options are taken follows from how they are declared: those whose value decides
the rows, and those from which the manifest derives what does, unless they name a file. Whom to ask, what to permit and
where files are comes from the operator alone. That the rows are the same is a promise: what is taken may not be given
with another value, and the whole identity is compared once the manifest is open.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datafetch.datasets import find_dataset
from datafetch.engine.choices import Setting, settings_in
from datafetch.engine.differences import describe_differences
from datafetch.engine.job import Job, inputs_of, job_in, settings_of
from datafetch.errors import ConfigurationError
from datafetch.model.location import without_secrets
from datafetch.model.options import Effect
from datafetch.store.job_file import Identity, JobFile, read_foreign_job_file
from datafetch.store.layout import OutputLayout, output_of
from datafetch.transcode import ImageSpec

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RepeatedJob:
    """A job to be repeated.

    Attributes:
        path: Its file.
        job: The job; only ``row_values`` of it are used.
        file: All that the file has.
    """

    path: Path
    job: Job
    file: JobFile

    @property
    def row_values(self) -> Mapping[str, Any]:
        """The values of the options that decide the rows, by the options' names."""
        return {one.option.name: one.value for one in settings_in(self.job) if _is_taken(one)}

    def log_left_out(self) -> None:
        """Log what the job had besides that, as options."""
        word = "" if find_dataset(self.job.dataset).takes_inputs else "--source "
        left_out = [f"{word}{shlex.quote(without_secrets(place))}" for place in inputs_of(self.job)]
        for one in settings_in(self.job):
            left_out += () if one.is_default or _is_taken(one) else one.as_given()
        _log.info("not taken from %s: %s", self.path, ", ".join(left_out))

    def refuse_missing(self, given: Collection[str]) -> None:
        """Check that files are given that decide the rows, since they are not taken from the job.

        Args:
            given: The names of the options that are given.

        Raises:
            ConfigurationError: The job had one that is not given.
        """
        for one in settings_in(self.job):
            is_file = one.effect is Effect.MANIFEST and not _is_taken(one)
            if is_file and not one.is_default and one.option.name not in given:
                raise ConfigurationError(
                    f"the rows of {self.path} follow from {', '.join(one.as_given())}; give {one.option.flag}, with "
                    "that file or a copy of it"
                )

    def refuse_contradiction(self, job: Job) -> None:
        """Check that a job has the values that were taken.

        Raises:
            ConfigurationError: An option was given with another value.
        """
        before = {one.option.name: one for one in settings_in(self.job) if _is_taken(one)}
        for one in settings_in(job):
            taken = before.get(one.option.name)
            if taken is not None and one.value != taken.value:
                raise ConfigurationError(
                    f"{_text(one)} contradicts {self.path}, which has {_text(taken)}; leave out {one.option.flag}, "
                    "or --job"
                )

    def refuse_other_rows(self, identity: Identity, job: Job, spec: ImageSpec) -> None:
        """Check that a job makes the same rows, by its manifest, its id list and everything else.

        Args:
            identity: The identity of the job.
            job: The job.
            spec: What an image becomes.

        Raises:
            ConfigurationError: Something differs; the message names it.
        """
        differences = describe_differences(
            self.file.identity, identity, self.file.settings or {}, settings_of(job, spec)
        )
        if differences:
            raise ConfigurationError(
                f"the rows would not be those of {self.path} ({differences}); give what that was made with, or leave "
                "out --job"
            )


def read_repeated_job(path: Path, dataset: str | None = None) -> RepeatedJob:
    """Read the job in a file, which may be anybody's.

    Args:
        path: The file; or an output or its state folder, which has it.
        dataset: The dataset that it has to be of; None takes any.

    Raises:
        ConfigurationError: There is no such file, it is not a job of this version, or one of another dataset.
    """
    path = OutputLayout(output_of(path)).job if path.is_dir() else path
    file = read_foreign_job_file(path)
    try:
        job = job_in(file)
        find_dataset(file.dataset)
    except (ValueError, RecursionError, ConfigurationError) as error:
        raise ConfigurationError(
            f"{path} is not a job of this version of datafetch; give the options that it was made with instead"
        ) from error
    if dataset not in (None, file.dataset) or job.dataset != file.dataset:
        raise ConfigurationError(f"{path} is a job of {file.dataset}; leave out the dataset, or --job")
    return RepeatedJob(path, job, file)


def _is_taken(one: Setting) -> bool:
    return one.effect is Effect.ROWS or (one.effect is Effect.MANIFEST and not one.option.option.is_file)


def _text(one: Setting) -> str:
    return " ".join(one.as_given()) or f"no {one.option.flag}"
