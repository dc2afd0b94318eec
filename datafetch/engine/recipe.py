"""The recipe: several datasets, one after the other, each with a job of its own.

An image set comes before the lists that name its images, and of it only those are fetched that these lists name. If one
dataset can't be built, the others are all the same; a list then has only the records whose images are there, and the
same command builds it again when there are more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from datafetch.datasets import find_dataset
from datafetch.datasets.recipes import RecipePart, default_source, expand_targets, part_of
from datafetch.datasets.sources.hub import is_hub
from datafetch.engine.disk_estimate import log_recipe_estimate
from datafetch.engine.job import Job, own_spec
from datafetch.engine.published import bring_file
from datafetch.engine.runner import run
from datafetch.errors import ConfigurationError, DatafetchError, ResourceError
from datafetch.model.location import is_remote, is_url
from datafetch.model.observers import Observer
from datafetch.model.report import Report
from datafetch.model.statistics import Statistics
from datafetch.output.training_list import published_source
from datafetch.process.event_loop import run_to_end
from datafetch.store.layout import OutputLayout, resolve_parent


@dataclass(frozen=True, slots=True)
class PlannedDataset:
    """A dataset that is to be built.

    Attributes:
        part: The dataset as the recipe uses it.
        out: The output folder.
        job: Its job; None if it can't be built.
        problem: Why it can't be built, and what to do; empty if it can.
        lists: Where the training lists are that name its images, if only those are fetched.
    """

    part: RecipePart
    out: str
    job: Job | None
    problem: str = ""
    lists: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BuiltDataset:
    """What became of a dataset.

    Attributes:
        part: The dataset as the recipe uses it.
        out: The output folder.
        report: What its run reported; None if it stopped.
        error: What stopped it; None if nothing did.
    """

    part: RecipePart
    out: str
    report: Report | None
    error: DatafetchError | None

    def summary(self) -> dict[str, object]:
        """The result as a JSON object: the report, or the error."""
        if self.report is not None:
            return self.report.summary()
        return {"dataset": self.part.name, "out": self.out, "complete": False, "error": str(self.error)}


Observe: TypeAlias = Callable[[int, Sequence[PlannedDataset]], Iterable[Observer[Statistics]]]
"""Takes the position of a dataset and all that are planned, and returns the observers of its run."""


def plan_recipe(
    targets: Sequence[str],
    root: Path,
    sources: Mapping[str, str],
    ids: Mapping[str, str],
    change: Callable[[Job], Job] = lambda job: job,
) -> list[PlannedDataset]:
    """Plan the datasets that targets stand for. Nothing is written, and of files only training lists are looked at.

    Args:
        targets: Names of datasets and steps.
        root: The trainer's data root.
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
            raise ConfigurationError(f"{flag} {strange}=… is given, and {strange} is not among the targets")
    if strange := next((name for name in ids if find_dataset(name).id_list is None), None):
        raise ConfigurationError(f"{strange} does not take --ids")
    planned = []
    for part in map(part_of, names):
        out = str(root / find_dataset(part.name).path)
        try:
            source = sources.get(part.name) or default_source(part.name)
            lists = tuple(
                _published_list(name, sources.get(name) or default_source(name), root)
                for name in part.lists
                if name in names
            )
        except ConfigurationError as error:
            planned.append(PlannedDataset(part, out, None, str(error)))
        else:
            own_ids = part.ids if part.step_name in targets else None
            job = _job(part, out, source, ids.get(part.name) or own_ids or None)
            planned.append(PlannedDataset(part, out, _with_limited_rows(change(job)), lists=lists))
    return planned


def _with_limited_rows(job: Job) -> Job:
    """The same job, with the options for its limit."""
    if job.limit is None:
        return job
    return replace(job, options=find_dataset(job.dataset, job.options).options_for_limit(job.limit))


def _job(part: RecipePart, out: str, source: str, ids: str | None) -> Job:
    dataset = find_dataset(part.name)
    return Job(part.name, source, out, ids=ids, image=own_spec(dataset), options=dataset.options)


def _published_list(name: str, source: str, root: Path) -> str:
    """Where the published list of a dataset is: its place, or the copy of it that is kept."""
    dataset = find_dataset(name)
    assert dataset.list_name is not None, "it has a list"
    if is_hub(source) or (is_url(source) and source.endswith("/")):
        return f"{source.rstrip('/')}/{dataset.list_name}"
    if is_remote(source):
        return source
    path = published_source(OutputLayout(resolve_parent(root / dataset.path)), Path(source), dataset.list_name)
    return str(path / dataset.list_name if path.is_dir() else path)


def build_recipe(planned: Sequence[PlannedDataset], observe: Observe) -> Iterator[BuiltDataset]:
    """Build datasets one after the other; what stops one does not stop the others.

    Args:
        planned: The datasets, in the order in which they are to be built.
        observe: Returns the observers of each run.

    Yields:
        What became of each, as soon as it is known.

    Raises:
        KeyboardInterrupt: Ctrl-C; the same call resumes it.
    """
    missing = [one for one in planned if one.job is not None and not OutputLayout(Path(one.out)).report.exists()]
    if missing and all(one.job is not None and one.job.limit is None for one in missing):
        log_recipe_estimate(Path(missing[0].out), {one.part.name: one.part.gigabytes for one in missing})
    for number, one in enumerate(planned):
        report, error = None, None
        try:
            if one.job is None:
                raise ConfigurationError(one.problem)
            report = run(run_to_end(_with_lists(one, one.job)), observe(number, planned))
        except DatafetchError as stopped:
            error = stopped
        except OSError as stopped:
            error = ResourceError.from_disk_error(stopped, "continue")
        yield BuiltDataset(one.part, one.out, report, error)


async def _with_lists(one: PlannedDataset, job: Job) -> Job:
    """The job of a dataset, with which only those images are fetched that its lists name."""
    if not one.lists:
        return job
    paths = [str(await bring_file(location, job)) for location in one.lists]
    return replace(job, options=find_dataset(job.dataset).options_for_lists(paths))
