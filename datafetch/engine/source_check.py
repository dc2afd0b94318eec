"""What the sources of datasets answer, asked without downloading anything.

A place that lists its files is asked for the list; of everything else on a server the size is asked for, by a range of
one byte, so that it shows as well whether parts of it can be read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datafetch.datasets import find_dataset
from datafetch.datasets.sources.gitlab import GitLabPlace, is_gitlab
from datafetch.datasets.sources.hub import HubPlace, is_hub, list_sizes
from datafetch.datasets.sources.object_store import is_object_store, list_stored
from datafetch.engine.archives import find_archives
from datafetch.engine.job import Job
from datafetch.engine.published import hub_at, list_project, select_files
from datafetch.engine.recipe import PlannedDataset
from datafetch.engine.web_download import policy_for_files
from datafetch.errors import DatafetchError, ManifestError
from datafetch.fetch import Fetcher
from datafetch.fetch.ranges import NoRangesError, RemoteRanges
from datafetch.model.activities import Activity, ActivityUnit
from datafetch.model.dataset import Dataset
from datafetch.model.location import at_mirror, is_url, without_secrets
from datafetch.process.event_loop import run_to_end
from datafetch.process.threads import run_in_thread

_ASKED_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class SourceAnswer:
    """What the source of a dataset answered.

    Attributes:
        name: The name of the dataset.
        place: Where its source is, without secrets; empty if one has to be given.
        files: The number of files that it is read from, archives and id list included.
        size_bytes: Their size; None if that of one is not known.
        problem: Why it can't be read, and what to do; empty if it can.
    """

    name: str
    place: str
    files: int = 0
    size_bytes: int | None = None
    problem: str = ""

    def summary(self) -> dict[str, object]:
        """The answer as a JSON object."""
        return {
            "name": self.name,
            "source": self.place,
            "files": self.files,
            "bytes": self.size_bytes,
            "problem": self.problem or None,
        }


def check_sources(planned: Sequence[PlannedDataset]) -> list[SourceAnswer]:
    """Ask the sources of datasets, several at once.

    Args:
        planned: The datasets.

    Returns:
        An answer for each of them, in the same order; what fails is a problem of its dataset.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    return run_to_end(_check_all(planned))


async def _check_all(planned: Sequence[PlannedDataset]) -> list[SourceAnswer]:
    at_once = asyncio.Semaphore(_ASKED_AT_ONCE)

    activity = Activity("asking sources", len(planned), ActivityUnit.SOURCE)

    async def check(one: PlannedDataset) -> SourceAnswer:
        answer = await ask(one)
        activity.advance(1)
        return answer

    async def ask(one: PlannedDataset) -> SourceAnswer:
        if one.job is None:
            return SourceAnswer(one.part.name, "", problem=one.problem)
        place = without_secrets(one.job.source)
        async with at_once:
            try:
                sizes = [size async for size in _sizes(one.job, find_dataset(one.job.dataset, one.job.options))]
            except DatafetchError as error:
                return SourceAnswer(one.part.name, place, problem=str(error))
        known = [size for size in sizes if size is not None]
        return SourceAnswer(one.part.name, place, len(sizes), sum(known) if len(known) == len(sizes) else None)

    with activity:
        return await asyncio.gather(*map(check, planned))


async def _sizes(job: Job, dataset: Dataset) -> AsyncIterator[int | None]:
    """The size of each file that a job reads; None where that is not known."""
    async with Fetcher(policy_for_files(job)) as fetch:
        if not dataset.archives or dataset.list_name is not None:
            for size_bytes in await _sizes_at(job.source, job, dataset, fetch):
                yield size_bytes
        if dataset.archives:
            location = at_mirror(dataset.archive_location(job.source), job.mirror)
            for archive in (await run_in_thread(find_archives, dataset, location)).locations:
                yield await _size_of(archive, fetch)
        if job.ids is not None:
            yield await _size_of(at_mirror(job.ids, job.mirror), fetch)


async def _sizes_at(source: str, job: Job, dataset: Dataset, fetch: Fetcher) -> list[int | None]:
    if is_hub(source):
        sizes = await list_sizes(HubPlace.parse(source), hub_at(job.mirror))
        return [sizes[name] for name in select_files(dataset, list(sizes), source)]
    if is_gitlab(source):
        versions = await list_project(GitLabPlace.parse(source), job)
        return [None] * len(select_files(dataset, sorted(versions), source))  # its list has no sizes
    if is_object_store(source):
        stored = await run_in_thread(list_stored, source)
        names = select_files(dataset, sorted(stored), source) if len(stored) > 1 else list(stored)
        return [stored[name].size_bytes for name in names]
    if is_url(source):
        url = source + (dataset.list_name or "") if source.endswith("/") else source
        return [await _size_of(at_mirror(url, job.mirror), fetch)]
    return list(await run_in_thread(_local_sizes, Path(source), dataset))


def _local_sizes(source: Path, dataset: Dataset) -> list[int]:
    """The sizes of the files that a dataset reads of a folder, or of the one file that the path is."""
    try:
        if not source.is_dir():
            return [source.stat().st_size]
        sizes = {path.name: path.stat().st_size for path in source.iterdir() if path.is_file()}
    except OSError as error:
        raise ManifestError(f"{source} can't be read: {error.strerror}; check the path") from error
    return [sizes[name] for name in dataset.select_published(sorted(sizes)) or sizes]


async def _size_of(location: str, fetch: Fetcher) -> int | None:
    """The size of a file; None if its server does not say.

    Raises:
        ManifestError: It can't be read.
    """
    if is_url(location):
        try:
            return await RemoteRanges(fetch, location).find_size()
        except NoRangesError:
            return None
    try:
        return (await asyncio.to_thread(Path(location).stat)).st_size
    except OSError as error:
        raise ManifestError(f"{location} can't be read: {error.strerror}; check the path") from error
