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
from datafetch.datasets.image_sets import ImageSetOptions
from datafetch.datasets.ocr_vqa import OcrVqaOptions
from datafetch.datasets.recipes import RecipePart, default_source, expand_targets, part_of
from datafetch.datasets.sources import HubPlace, download, is_hub
from datafetch.datasets.synthdog_ja import SynthdogJaOptions
from datafetch.engine.job import Job, own_spec, refuse_url
from datafetch.engine.runner import run
from datafetch.errors import ConfigurationError, DatafetchError, ResourceError
from datafetch.model.observers import Observer
from datafetch.model.options import DatasetOptions
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
    """

    part: RecipePart
    out: str
    job: Job | None
    problem: str = ""


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
            job = _job(part, names, root, sources, ids, is_in_step=part.step_name in targets)
        except ConfigurationError as error:
            planned.append(PlannedDataset(part, out, None, str(error)))
        else:
            planned.append(PlannedDataset(part, out, _with_limited_rows(change(job))))
    return planned


def _with_limited_rows(job: Job) -> Job:
    """The same job, for which a limit is enough rows of synthdog-ja, which otherwise requires all of the recipe's."""
    if job.limit is None or not isinstance(job.options, SynthdogJaOptions):
        return job
    return replace(job, options=replace(job.options, count=min(job.options.count, job.limit)))


def _job(
    part: RecipePart,
    names: Sequence[str],
    root: Path,
    sources: Mapping[str, str],
    ids: Mapping[str, str],
    *,
    is_in_step: bool,
) -> Job:
    """The job for a dataset.

    Raises:
        ConfigurationError: Something has to be given first.
    """
    dataset = find_dataset(part.name)
    source = sources.get(part.name) or default_source(part.name)
    if is_in_step and dataset.id_list is not None and part.name not in ids:
        raise ConfigurationError("give its --ids; a step takes the samples of the recipe's list, and no others")
    lists = (name for name in part.lists if name in names)
    given = tuple(_published_list(name, sources.get(name) or default_source(name), root) for name in lists)
    return Job(
        part.name,
        source,
        str(root / dataset.path),
        ids=ids.get(part.name),
        image=own_spec(dataset),
        options=_with_lists(dataset.options, given),
    )


def _published_list(name: str, source: str, root: Path) -> str:
    """The published list of a dataset, or the copy of it that is kept; a place on the hub if it is there."""
    dataset = find_dataset(name)
    assert dataset.list_name is not None, "it has a list"
    if is_hub(source):
        return f"{source}/{dataset.list_name}"
    refuse_url(dataset, source)
    path = published_source(OutputLayout(resolve_parent(root / dataset.path)), Path(source), dataset.list_name)
    return str(path / dataset.list_name if path.is_dir() else path)


def _with_lists(options: DatasetOptions, lists: tuple[str, ...]) -> DatasetOptions:
    """The options of an image set, of which only images are fetched that lists name; other options as they are."""
    match options:
        case ImageSetOptions():
            return replace(options, only_referenced=lists)
        case OcrVqaOptions():
            return replace(options, only_referenced=lists[0] if lists else None)
    return options


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
    for number, one in enumerate(planned):
        report, error = None, None
        try:
            if one.job is None:
                raise ConfigurationError(one.problem)
            report = run(_with_downloaded_lists(one.job), observe(number, planned))
        except DatafetchError as stopped:
            error = stopped
        except OSError as stopped:
            error = ResourceError.from_disk_error(stopped, "continue")
        yield BuiltDataset(one.part, one.out, report, error)


def _with_downloaded_lists(job: Job) -> Job:
    """The same job, with paths in place of lists that are on the hub."""
    match job.options:
        case ImageSetOptions(only_referenced=lists) if any(map(is_hub, lists)):
            pass
        case OcrVqaOptions(only_referenced=str(one)) if is_hub(one):
            lists = (one,)
        case _:
            return job
    paths = tuple(run_to_end(_download(one)) if is_hub(one) else one for one in lists)
    return replace(job, options=_with_lists(job.options, paths))


async def _download(location: str) -> str:
    place = HubPlace.parse(location)
    return str(await download(place, [place.path]) / place.path)
