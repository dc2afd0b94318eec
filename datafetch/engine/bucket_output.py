"""Runs and retries whose output is in a bucket: on a working copy, from which each shard is recorded in the bucket.

Theory of operation: a run on a working copy is a run like any other. What commits its shards is wrapped, so that a
shard counts as committed only when it is recorded in the bucket; its spool is deleted after that. Before the first
shard, what the run has prepared is recorded, and after its last step everything (``store.buckets.working_copy``).

A run that steers the nodes of a cluster commits nothing: it records what its nodes have uploaded.

Rules: the run knows its working copy, and people know the bucket: reports and messages name that.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from datafetch.engine.feed import MAX_OPEN_SHARDS
from datafetch.engine.job import Job, dataset_of, reshard_plan
from datafetch.engine.session import Backends
from datafetch.errors import (
    ConfigurationError,
    DatafetchError,
    InvalidFieldError,
    ResourceError,
    raise_if_exhausted,
)
from datafetch.model.dataset import Dataset
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.report import Report
from datafetch.output.commit import Commit, CommitShard
from datafetch.output.formats import FORMATS, FilesFormat, ShardFormat
from datafetch.process.threads import run_in_thread
from datafetch.store.buckets.place import Place
from datafetch.store.buckets.working_copy import Purpose, WorkingCopy
from datafetch.store.layout import resolve_parent

Work: TypeAlias = Callable[[Job, Backends], Awaitable[Report]]
"""Runs a job on a working copy."""
WorkOnCopy: TypeAlias = Callable[[WorkingCopy, Backends], Awaitable[Report]]
"""Works on a working copy that has an output."""

_log = logging.getLogger(__name__)


async def run_in_bucket(job: Job, backends: Backends, work: Work) -> Report:
    """Run a job whose output is in a bucket.

    Args:
        job: The job.
        backends: What transcodes images and commits shards.
        work: Runs the job on the working copy.

    Raises:
        ConfigurationError: The output can't be in a bucket, or another run works on it.
        ResourceError: The store can't be reached.
    """

    async def run(own: Job, copy: WorkingCopy, threads: ThreadPoolExecutor) -> Report:
        return await work(own, _recording(backends, copy, threads))

    return await _run_on_copy(job, Purpose.RUN, run)


async def retry_in_bucket(location: str, job: Job, backends: Backends, work: WorkOnCopy) -> Report:
    """Retry an output in a bucket.

    Args:
        location: The output.
        job: Its job, with the settings of the retry.
        backends: What transcodes images and commits shards.
        work: Retries it on the working copy.

    Raises:
        ConfigurationError: The output can't be in a bucket, or another run works on it.
        ResourceError: The store can't be reached.
    """
    place = Place.of(location)
    suffixes = _suffixes_of(await run_in_thread(dataset_of, job))

    async def retry(copy: WorkingCopy, threads: ThreadPoolExecutor) -> Report:
        return await work(copy, _recording(backends, copy, threads))

    make = partial(_make_copy, place, job.scratch, suffixes, is_staged=True, purpose=Purpose.RETRY)
    return await _work_on_copy(place, make, retry)


async def steer_in_bucket(job: Job, work: Callable[[Job, WorkingCopy], Awaitable[Report]]) -> Report:
    """Run a job whose output is in a bucket, and whose shards others fetch and upload.

    Args:
        job: The job.
        work: Runs the job on the working copy, in which shards appear as they are recorded.

    Raises:
        ConfigurationError: The output can't be in a bucket, or another run works on it.
        ResourceError: The store can't be reached.
    """

    async def steer(own: Job, copy: WorkingCopy, _: ThreadPoolExecutor) -> Report:
        return await work(own, copy)

    return await _run_on_copy(job, Purpose.STEERING, steer)


async def _run_on_copy(
    job: Job, purpose: Purpose, work: Callable[[Job, WorkingCopy, ThreadPoolExecutor], Awaitable[Report]]
) -> Report:
    """Run a job whose output is in a bucket as one whose output is the working copy."""
    place = Place.of(job.out)
    dataset = await run_in_thread(dataset_of, job)
    suffixes = _suffixes_of(dataset)
    _refuse_reuse(job)

    async def run(copy: WorkingCopy, threads: ThreadPoolExecutor) -> Report:
        own = replace(job, out=str(copy.layout.out), stored_at=str(place), scratch=None)
        return await work(own, copy, threads)

    is_staged = reshard_plan(job, dataset) is not None
    make = partial(_make_copy, place, job.scratch, suffixes, is_staged=is_staged, purpose=purpose)
    return await _work_on_copy(place, make, run)


def _make_copy(
    place: Place, scratch: str | None, suffixes: Sequence[str], *, is_staged: bool, purpose: Purpose
) -> WorkingCopy:
    folder = None if scratch is None else resolve_parent(Path(scratch))
    return WorkingCopy(place, folder, suffixes, is_staged=is_staged, purpose=purpose)


async def _work_on_copy(
    place: Place,
    make: Callable[[], WorkingCopy],
    work: Callable[[WorkingCopy, ThreadPoolExecutor], Awaitable[Report]],
) -> Report:
    """Open a working copy, work on it with threads for what waits for the store, and complete the output."""
    copy = await run_in_thread(make)
    threads = ThreadPoolExecutor(MAX_OPEN_SHARDS, thread_name_prefix="bucket")
    try:
        await run_in_thread(copy.open, on_cancel=copy.stop, threads=threads)
        _log.info("%s: the working copy is %s", place, copy.layout.out)
        report = await work(copy, threads)
        await run_in_thread(copy.complete, on_cancel=copy.stop, threads=threads)
    except DatafetchError as error:
        await run_in_thread(copy.record_stop, on_cancel=copy.stop, threads=threads)
        raise _renamed(error, str(copy.layout.out), str(place)) from error
    except OSError as error:
        raise_if_exhausted(error)
        raise ResourceError.from_disk_error(error, f"write to {copy.layout.out.parent}") from error
    finally:
        await run_in_thread(copy.close, threads=threads)
        threads.shutdown(wait=False)  # nothing is left to do
    return replace(report, out=str(place))


def _recording(backends: Backends, copy: WorkingCopy, threads: ThreadPoolExecutor) -> Backends:
    """What commits shards and then records them in the bucket."""

    @asynccontextmanager
    async def open_commit() -> AsyncIterator[CommitShard]:
        await run_in_thread(copy.begin, on_cancel=copy.stop, threads=threads)
        async with backends.open_commit() as commit_locally:

            async def commit(shard: Commit) -> ShardCounts:
                if shard.output.retry is not None or shard.output.is_repair:
                    await run_in_thread(copy.bring_shard, shard.shard, on_cancel=copy.stop, threads=threads)
                counts = await commit_locally(shard)
                await run_in_thread(copy.publish, shard.shard, on_cancel=copy.stop, threads=threads)
                return counts

            yield commit

    return replace(backends, open_commit=open_commit, at_hand=copy.at_hand)


def _suffixes_of(dataset: Dataset) -> Sequence[str]:
    """The suffixes of the files of a shard.

    Raises:
        ConfigurationError: Its images are files of their own, which would be very many small objects, and as many
            names in the commit log.
    """
    output_format = FORMATS[dataset.output_format]
    if isinstance(output_format, ShardFormat):
        return output_format.suffixes
    if output_format.name == FilesFormat.name:
        raise ConfigurationError(
            "--format files makes a file of each image, which datafetch does not put into a bucket; choose --format "
            "webdataset or parquet, or give a folder"
        )
    raise ConfigurationError(
        f"the images of {dataset.name} become files, which datafetch does not put into a bucket; give a folder"
    )


def _refuse_reuse(job: Job) -> None:
    if job.reuse:
        raise ConfigurationError(
            f"the images of {job.out}, which is in a bucket, can't be reused; leave out --reuse, or start over with "
            "--fresh"
        )


def _renamed(error: DatafetchError, folder: str, location: str) -> DatafetchError:
    """The same error, whose message names the output and not its working copy."""
    message = str(error)
    if folder not in message or isinstance(error, InvalidFieldError):
        return error
    return type(error)(message.replace(folder, location))
