"""retry_failed(out): fetch failed images again, and add those that arrive to the shards of a complete output.

Rules: the settings are those in the output's ``job.json``, and the manifest is not read. Only two things are different
from a run: the samples come from what the run kept of its failures (``retry_source``), and a commit merges them with
the rows that the shard has already (``output.merge``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeAlias

from datafetch.engine.archives import kept_archives
from datafetch.engine.bound_job import layout_of
from datafetch.engine.claim import refuse_foreign_files
from datafetch.engine.completeness import refuse_missing_files, unpublished_shards
from datafetch.engine.feed import Feed
from datafetch.engine.job import Job, dataset_of, read_job, shrinks_otherwise
from datafetch.engine.ownership import locked_output
from datafetch.engine.permissions import Permitted, as_options, remember
from datafetch.engine.retry_source import FailedSamples
from datafetch.engine.retry_state import begin_retry, end_retry, read_retry_state
from datafetch.engine.session import CHILD_PROCESSES, Backends, Session
from datafetch.errors import ConfigurationError
from datafetch.model.location import at_mirror, is_bucket
from datafetch.model.observers import Observer
from datafetch.model.report import FetchedShards, Report
from datafetch.model.statistics import Statistics
from datafetch.model.wording import command_that_made
from datafetch.monitor.at_work import refuse_at_work
from datafetch.output.merge import Output
from datafetch.output.retry_filter import RetryFilter
from datafetch.output.training_list import refuse_other_list
from datafetch.process.threads import run_in_thread
from datafetch.store.atomic import write_atomically
from datafetch.store.job_file import Identity
from datafetch.store.layout import OutputLayout, output_of
from datafetch.store.reports import write_report
from datafetch.transcode import ImageSpec

if TYPE_CHECKING:
    from datafetch.store.buckets.working_copy import WorkingCopy

_log = logging.getLogger(__name__)

Change: TypeAlias = Callable[[Job], Job]
"""Changes settings of an earlier run: takes its job, and returns the changed one."""


async def retry_failed(
    out: str,
    retry_filter: RetryFilter | None = None,
    *,
    change: Change | None = None,
    source: str | None = None,
    observers: Iterable[Observer[Statistics]] = (),
    backends: Backends = CHILD_PROCESSES,
) -> Report:
    """Fetch failed images again inside a running event loop, of any kind; otherwise like ``retry``."""
    if is_bucket(out):
        from datafetch.engine.bucket_output import retry_in_bucket  # noqa: PLC0415 - local retries start without it

        own_change = partial(_change_on_copy, change=change or _unchanged)

        async def work(copy: WorkingCopy, recording: Backends) -> Report:
            local = str(copy.layout.out)
            return await retry_failed(
                local, retry_filter, change=own_change, source=source, observers=observers, backends=recording
            )

        job = await run_in_thread(_recorded_job, out, change or _unchanged)
        return await retry_in_bucket(out, job, backends, work)
    folder = await asyncio.to_thread(output_of, Path(out))
    job, identity = await asyncio.to_thread(read_job, OutputLayout(folder))
    interrupted = await asyncio.to_thread(read_retry_state, OutputLayout(folder))
    if interrupted is not None:
        job = interrupted.apply_to(job)
    permitted_before = Permitted.of(job)
    job = replace((change or _unchanged)(job), out=str(out if Path(out).name == folder.name else folder))
    dataset = await run_in_thread(dataset_of, job)
    dataset.refuse_retry()
    if shrinks_otherwise(identity):
        raise ConfigurationError(
            f"{folder} was made by a version of datafetch whose --resize fast gave other pixels; to have all images "
            "shrunk alike, run the command that made it with --fresh, and then retry"
        )
    shards = list(identity["shards"])
    location = source or at_mirror(await run_in_thread(dataset.archive_location, job.source), job.mirror)
    archives = await run_in_thread(kept_archives, dataset, location, OutputLayout(folder))
    layout = await asyncio.to_thread(layout_of, folder, job, identity)
    if job.no_lock:
        await asyncio.to_thread(refuse_at_work, layout, no_lock=True)
    prepare = partial(_prepare_retry, layout, identity, dataset.list_name)
    async with locked_output(layout, prepare, is_alone=job.no_lock):
        permitted = Permitted.of(job)
        begun = await run_in_thread(begin_retry, layout, retry_filter or RetryFilter(), shards, permitted)
        # Before anything is fetched: the next retry must permit this too, even if this one is interrupted.
        await run_in_thread(remember, layout, permitted)
        given = permitted.beyond(permitted_before)
        if given:
            _log.info("permitted, and remembered for later retries: %s", " ".join(as_options(given)))
        retry_layout = layout.for_retry(begun.number, begun.token)
        output = Output(
            dataset,
            retry_layout,
            job.payload,
            begun,
            job.max_sample_bytes,
            replaces_files=not dataset.adopts_files,
        )
        failed = await run_in_thread(FailedSamples, output, begun, shards)
        session = Session(job, output, shards, observers)
        feed = Feed(failed, output.layout)
        async with session.fetched(feed, job.image or ImageSpec(), backends, archives) as fetched:
            return await _complete_retry(layout, session, fetched)


async def _complete_retry(layout: OutputLayout, session: Session, fetched: FetchedShards) -> Report:
    """Do what comes after the last shard of a retry, and write the report."""
    report = await session.complete_output(fetched)
    # A retry sees only a part of the images, so its own count is too low: all others that have arrived are reused.
    reused = max(0, report.totals.ok - fetched.arrived)
    retried = fetched.ended - fetched.not_requested
    report = replace(report, retried=retried, retried_arrived=fetched.ended_ok, reused=reused)
    await run_in_thread(write_report, layout, report)
    await run_in_thread(end_retry, layout)
    return report


def _prepare_retry(layout: OutputLayout, identity: Identity, list_name: str | None) -> None:
    """Check that the output is that of a complete run, before anything is fetched.

    Raises:
        ConfigurationError: The run is not complete, a shard is missing, or there are files of other programs.
    """
    if list_name is not None:
        refuse_other_list(layout, None, list_name)
    refuse_foreign_files(layout, identity)
    refuse_missing_files(layout)
    is_complete = layout.report.exists() or layout.retry.exists()
    if not is_complete or unpublished_shards(layout, list(identity["shards"]), identity.get("limit")):
        raise ConfigurationError(
            f"{layout.out} is not complete; run the command that started it again, and then retry; "
            f"{command_that_made(layout.out)}"
        )


def _recorded_job(location: str, change: Change) -> Job:
    """The job of an output in a bucket, changed."""
    from datafetch.store.buckets.view import JOB, read_recorded  # noqa: PLC0415 - local retries start without it

    content = read_recorded(location, JOB)
    with TemporaryDirectory() as folder:
        layout = OutputLayout(Path(folder) / "out")
        write_atomically(layout.job, content or b"")
        return change(read_job(layout)[0])


def _change_on_copy(job: Job, change: Change) -> Job:
    """Change a job whose spools lie in the working copy."""
    return replace(change(job), scratch=None)


def _unchanged(job: Job) -> Job:
    return job
