"""The recipe: several datasets, one after the other, each with a job of its own.

An image set comes before the lists that name its images, and of it only those are fetched that these lists name. If one
dataset can't be built, the others are all the same; a list then has only the records whose images are there, and the
same command builds it again when there are more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from datafetch.datasets import find_dataset
from datafetch.datasets.recipes import RecipePart, default_source, expand_targets, part_of
from datafetch.engine.disk_estimate import log_recipe_estimate
from datafetch.engine.job import Job, own_spec
from datafetch.engine.published import download_source
from datafetch.engine.runner import run
from datafetch.errors import ConfigurationError, DatafetchError, ResourceError
from datafetch.model.location import is_bucket, output_below
from datafetch.model.observers import Observer
from datafetch.model.report import Report
from datafetch.model.statistics import Statistics
from datafetch.output.training_list import published_source
from datafetch.process.event_loop import run_to_end
from datafetch.process.threads import run_in_thread
from datafetch.store.layout import OutputLayout, resolve_parent

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlannedDataset:
    """A dataset that is to be built.

    Attributes:
        part: The dataset as the recipe uses it.
        out: The output folder.
        job: Its job; None if it can't be built.
        problem: Why it can't be built, and what to do; empty if it can.
        lists: The jobs of the training lists that name its images, if only those are fetched.
    """

    part: RecipePart
    out: str
    job: Job | None
    problem: str = ""
    lists: tuple[Job, ...] = ()

    @property
    def has_published_source(self) -> bool:
        """Whether its source is where it is published, so that the recipe's numbers hold for it."""
        return self.job is not None and self.job.source == self.part.readable_place

    @property
    def is_complete(self) -> bool:
        """Whether a run of it is complete, so that nothing is left but to look."""
        return OutputLayout(Path(self.out)).report.exists()

    @property
    def open_images(self) -> int | None:
        """About how many images it will have to fetch; None if that is not known."""
        if self.job is None or self.is_complete:
            return 0
        images = (self.part.listed_images if self.lists else 0) or self.part.images
        if not images or not self.has_published_source:
            return self.job.limit
        return images if self.job.limit is None else min(images, self.job.limit)


@dataclass(frozen=True, slots=True)
class BuiltDataset:
    """What became of a dataset.

    Attributes:
        part: The dataset as the recipe uses it.
        out: The output folder.
        report: What its run reported; None if it stopped.
        error: What stopped it; None if nothing did.
        advice: The error's message as it is to be shown; empty for the message itself.
    """

    part: RecipePart
    out: str
    report: Report | None
    error: DatafetchError | None
    advice: str = ""

    @property
    def problem(self) -> str:
        """What stopped it, for people; empty if nothing did."""
        return self.advice or ("" if self.error is None else str(self.error))

    def summary(self) -> dict[str, object]:
        """The result as a JSON object: the report, or the error."""
        if self.report is not None:
            return self.report.summary()
        return {"dataset": self.part.name, "out": self.out, "complete": False, "error": self.problem}


Observe: TypeAlias = Callable[[int, Sequence[PlannedDataset]], Iterable[Observer[Statistics]]]
"""Takes the position of a dataset and all that are planned, and returns the observers of its run."""

RunJob: TypeAlias = Callable[[Job, Iterable[Observer[Statistics]]], Report]
"""Runs a job, watched by observers."""


def plan_recipe(
    targets: Sequence[str],
    root: Path | str,
    sources: Mapping[str, str],
    ids: Mapping[str, str],
    change: Callable[[Job], Job] = lambda job: job,
) -> list[PlannedDataset]:
    """Plan the datasets that targets stand for. Nothing is read or written.

    Args:
        targets: Names of datasets and steps.
        root: The trainer's data root, or a place in a bucket.
        sources: Where their manifests or archives are, by dataset.
        ids: Their id lists, by dataset.
        change: Applies the operator's options to a job. A limit is also the number of rows that synthdog-ja takes.

    Returns:
        The datasets in the order in which they are to be built.

    Raises:
        ConfigurationError: There is no such target, something is given for a dataset that is not among the targets, or
            an option has a wrong value.
    """
    names = expand_targets(targets)
    for flag, given in (("--source", sources), ("--ids", ids)):
        if strange := next((name for name in given if name not in names), None):
            raise ConfigurationError(
                f"{flag} {strange}=… is given, and {strange} is not among the datasets: {', '.join(names)}"
            )
    if strange := next((name for name in ids if find_dataset(name).id_list is None), None):
        raise ConfigurationError(f"{strange} does not take --ids; leave it out")
    planned = []
    for part in map(part_of, names):
        out = output_below(root, find_dataset(part.name).path)
        try:
            job = _job(part.name, root, sources)
            lists = tuple(change(_job(name, root, sources)) for name in part.lists if name in names)
        except ConfigurationError as error:
            planned.append(PlannedDataset(part, out, None, str(error)))
        else:
            own_ids = part.ids if part.step_name in targets else None
            job = change(replace(job, ids=ids.get(part.name) or own_ids or None))
            planned.append(PlannedDataset(part, out, with_limited_rows(job), lists=lists))
    return planned


def _job(name: str, root: Path | str, sources: Mapping[str, str]) -> Job:
    """The job for a dataset, without the operator's options.

    Raises:
        ConfigurationError: A source has to be given.
    """
    dataset = find_dataset(name)
    source = sources.get(name) or default_source(name)
    return Job(name, source, output_below(root, dataset.path), image=own_spec(dataset), options=dataset.options)


def with_limited_rows(job: Job) -> Job:
    """The same job, with the options for its limit."""
    if job.limit is None:
        return job
    return replace(job, options=find_dataset(job.dataset, job.options).options_for_limit(job.limit))


def log_disk_space(planned: Sequence[PlannedDataset]) -> None:
    """Log how much of the disk the datasets will take that are not complete; a warning if it has less.

    What is read from elsewhere than where it is published may be of any size, and is left out, and so is a part by a
    limit. The line says of how many datasets it is true.
    """
    sizes = {
        one.part.name: one.part.gigabytes
        for one in planned
        if one.job is not None and one.job.limit is None and not one.is_complete and one.has_published_source
    }
    if sizes and not is_bucket(planned[0].out):
        log_recipe_estimate(Path(planned[0].out), sizes, len(planned))


def build_recipe(planned: Sequence[PlannedDataset], observe: Observe, run_job: RunJob = run) -> Iterator[BuiltDataset]:
    """Build datasets one after the other; what stops one does not stop the others.

    Args:
        planned: The datasets, in the order in which they are to be built.
        observe: Returns the observers of each run.
        run_job: Runs a job, on this machine or elsewhere.

    Yields:
        What became of each, as soon as it is known.

    Raises:
        KeyboardInterrupt: Ctrl-C; the same call resumes it.
    """
    for number, one in enumerate(planned):
        report, error = None, None
        if one.job is not None:
            _log.info("%d of %d: %s", number + 1, len(planned), one.part.name)
        try:
            if one.job is None:
                raise ConfigurationError(one.problem)
            report = run_job(run_to_end(with_lists(one, one.job)), observe(number, planned))
        except DatafetchError as stopped:
            error = stopped
        except OSError as stopped:
            error = ResourceError.from_disk_error(stopped, "continue")
        yield BuiltDataset(one.part, one.out, report, error)


async def with_lists(one: PlannedDataset, job: Job) -> Job:
    """The job of a dataset, with which only those images are fetched that its lists name."""
    if not one.lists:
        return job
    paths = [str(await _find_list(of_list)) for of_list in one.lists]
    return replace(job, options=find_dataset(job.dataset).options_for_lists(paths))


async def _find_list(job: Job) -> Path:
    """The path of a dataset's published list, downloaded if it is not on this machine, or of the copy that is kept."""
    dataset = find_dataset(job.dataset)
    assert dataset.list_name is not None, "it has a list"
    source = Path(await download_source(job, dataset))
    return await run_in_thread(_list_in, source, job, dataset.list_name)


def _list_in(source: Path, job: Job, name: str) -> Path:
    path = published_source(OutputLayout(resolve_parent(Path(job.out))), source, name)
    return path / name if path.is_dir() else path
