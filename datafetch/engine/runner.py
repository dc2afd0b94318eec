"""run(job): run or resume a job; retry(out): fetch failed images again.

Rules: what can be wrong with a job is found before anything is written. One run at a time works on an output. uvloop
lives here and nowhere else; a caller with a loop of their own uses ``fetch_dataset`` and ``retry_failed`` and keeps
theirs.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

import orjson
import uvloop

from datafetch.datasets import find_dataset
from datafetch.engine.disk_estimate import DiskEstimate, log_disk_estimate
from datafetch.engine.feed import MAX_OPEN_SAMPLES, MAX_OPEN_SHARDS, Feed
from datafetch.engine.job import Job, asked_of, dataset_of, equal_plan, hash_of, identify, own_spec, read_job
from datafetch.engine.ownership import Identity, locked_output, refuse_foreign_files, refuse_missing_files, take_for_job
from datafetch.engine.permissions import Permitted, read_permitted, remember
from datafetch.engine.retry_source import FailedSamples
from datafetch.engine.retry_state import begin_retry, end_retry, read_retry_state, spools_of
from datafetch.engine.session import CHILD_PROCESSES, Backends, Observer, Session
from datafetch.errors import ConfigurationError
from datafetch.fetch import Fetcher
from datafetch.model.interfaces import Dataset, Manifest
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.report import Report
from datafetch.model.sample import IdListResult
from datafetch.monitor.heartbeat import refuse_at_work
from datafetch.output.formats import format_of
from datafetch.output.merge import Output
from datafetch.output.reshard.record import read_reshard_record
from datafetch.output.training_list import keep_published, published_source
from datafetch.process.event_loop import run_to_end
from datafetch.store.atomic import write_atomically
from datafetch.store.layout import OutputLayout, output_of, resolve_parent
from datafetch.store.ledger import read_keys, read_shard_counts, sum_shard_counts
from datafetch.store.retry_filter import RetryFilter
from datafetch.transcode import ImageSpec

_SHARDS_LOOKED_AT = 64  # to say what a run will need of the disk
_SAMPLES_LOOKED_AT = 256  # before an earlier output is deleted; they are read together anyway

_log = logging.getLogger(__name__)

Change: TypeAlias = Callable[[Job], Job]
"""What is to be done otherwise than in an earlier run: its job in, the new one out."""


def run(job: Job, observe: Observer | None = None, *, backends: Backends = CHILD_PROCESSES) -> Report:
    """Do a job, on an event loop of its own.

    Args:
        job: What to do.
        observe: Watches while it runs.
        backends: What transcodes images and commits shards.

    Returns:
        What was done. Faults of the web are in it, not raised.

    Raises:
        DatafetchError: The job or its manifest is wrong, or this machine ran out of something.
        KeyboardInterrupt: Ctrl-C; running the same job again resumes it.
    """
    return run_to_end(fetch_dataset(job, observe, backends=backends), uvloop.new_event_loop)


async def fetch_dataset(job: Job, observe: Observer | None = None, *, backends: Backends = CHILD_PROCESSES) -> Report:
    """Do a job inside a running event loop, of any kind; otherwise like ``run``."""
    dataset = dataset_of(job)
    source = await asyncio.to_thread(_source_of, job, dataset)
    manifest = await asyncio.to_thread(dataset.bind, source, Path(job.ids) if job.ids else None)
    spec = job.image or own_spec(dataset)
    identity = await asyncio.to_thread(identify, job, manifest, spec)
    layout = await asyncio.to_thread(_layout_of, Path(job.out), job, identity)
    take = partial(take_for_job, layout, identity, asked_of(job, spec), fresh=job.fresh)
    if job.no_lock:
        await asyncio.to_thread(refuse_at_work, layout)
    if job.fresh:
        await _refuse_what_would_stop_at_once(job, manifest)
    before = None if job.fresh else await asyncio.to_thread(read_permitted, layout)
    async with locked_output(layout, take, goes_on=not job.fresh, is_alone=job.no_lock):
        lost = () if before is None else before.without(Permitted.of(job))
        if lost:
            _log.info("no longer permitted, also for retries, unless given again: %s", " ".join(lost))
        shards = [shard.name for shard in manifest.shards()]
        if dataset.list_name is not None:
            await asyncio.to_thread(keep_published, layout, manifest.shards()[0].source)
        await asyncio.to_thread(_log_disk_estimate, layout, job, manifest, spec)
        await asyncio.to_thread(layout.report.unlink, missing_ok=True)  # it speaks of a run that is complete
        work = Session(
            job,
            spec,
            Feed(manifest, layout, job.limit),
            Output(dataset, layout, job.payload, max_sample_bytes=job.max_sample_bytes),
            shards,
            backends,
        )

        async def conclude(report: Report) -> Report:
            report = replace(report, selection=await asyncio.to_thread(_selection, manifest, work, job.limit))
            await asyncio.to_thread(write_atomically, layout.report, _json(report.summary()))
            await asyncio.to_thread(layout.forget_spools)
            return report

        return await work.do(observe, conclude)


def retry(
    out: str,
    wanted: RetryFilter | None = None,
    *,
    change: Change | None = None,
    observe: Observer | None = None,
    backends: Backends = CHILD_PROCESSES,
) -> Report:
    """Try again what failed, on an event loop of its own.

    Args:
        out: The output of an earlier run that is complete.
        wanted: Which failures; None is those that may pass, or those of the retry that was interrupted.
        change: What is to be done otherwise than in that run, as far as the rows don't depend on it. What it permits
            is remembered for later retries, but that a network is left out.
        observe: Watches while it runs.
        backends: What transcodes images and commits shards.

    Returns:
        What was done.

    Raises:
        DatafetchError: There is no such run, or this machine ran out of something.
        KeyboardInterrupt: Ctrl-C; the same call resumes the retry, and so does one without ``wanted`` and ``change``.
    """
    work = retry_failed(out, wanted, change=change, observe=observe, backends=backends)
    return run_to_end(work, uvloop.new_event_loop)


async def retry_failed(
    out: str,
    wanted: RetryFilter | None = None,
    *,
    change: Change | None = None,
    observe: Observer | None = None,
    backends: Backends = CHILD_PROCESSES,
) -> Report:
    """Try again what failed, inside a running event loop, of any kind; otherwise like ``retry``."""
    wanted = wanted or RetryFilter()
    folder = await asyncio.to_thread(output_of, Path(out))
    job, identity = await asyncio.to_thread(read_job, OutputLayout(folder))
    note = await asyncio.to_thread(read_retry_state, OutputLayout(folder))
    if note is not None:
        job = note.resumed(job)
    job = replace((change or _unchanged)(job), out=out)
    dataset = dataset_of(job)
    dataset.refuse_retry()
    shards = list(identity["shards"])
    layout = await asyncio.to_thread(_layout_of, folder, job, identity)
    if job.no_lock:
        await asyncio.to_thread(refuse_at_work, layout)
    async with locked_output(layout, partial(_take_for_retry, layout, identity), is_alone=job.no_lock):
        permitted = Permitted.of(job)
        again = await asyncio.to_thread(begin_retry, layout, wanted, shards, permitted)
        # Before anything is fetched, or a retry that was interrupted would have its images fail in the next one.
        await asyncio.to_thread(remember, layout, permitted)
        if permitted.options():
            _log.info("permitted, and remembered for later retries: %s", " ".join(permitted.options()))
        output = Output(dataset, spools_of(layout, again), job.payload, again, job.max_sample_bytes)
        source = await asyncio.to_thread(FailedSamples, output, again, shards)
        work = Session(job, job.image or ImageSpec(), Feed(source, output.layout), output, shards, backends)

        async def conclude(report: Report) -> Report:
            await asyncio.to_thread(write_atomically, layout.report, _json(report.summary()))
            await asyncio.to_thread(end_retry, layout)
            return report

        return await work.do(observe, conclude)


async def _refuse_what_would_stop_at_once(job: Job, manifest: Manifest) -> None:
    """See that a run gets as far as its first samples, before it deletes what an earlier one left.

    Raises:
        DatafetchError: What the run would have ended with: too few descriptors, a proxy that is none, a bad record.
    """
    async with Fetcher(job.fetch):
        await asyncio.to_thread(_read_first_samples, manifest)


def _read_first_samples(manifest: Manifest) -> None:
    samples = iter(manifest.samples(manifest.shards()[0]))
    deque(islice(samples, _SAMPLES_LOOKED_AT), maxlen=0)


def _log_disk_estimate(layout: OutputLayout, job: Job, manifest: Manifest, spec: ImageSpec) -> None:
    samples = manifest.max_samples()
    if job.limit is not None:
        samples = min(samples, job.limit)
    shards = manifest.shards()
    plan = equal_plan(job, find_dataset(job.dataset))
    need = DiskEstimate(
        samples=samples,
        spec=spec,
        payload=job.payload,
        is_made_equal=plan is not None and samples >= plan.ranks.least_rows,
        open_samples=max(samples * MAX_OPEN_SHARDS // max(1, len(shards)), min(samples, MAX_OPEN_SAMPLES)),
    )
    log_disk_estimate(layout, need, _published(layout, [shard.name for shard in shards]))


def _published(layout: OutputLayout, shards: list[str]) -> ShardCounts:
    """About what is there already, by the books of some shards: there may be tens of thousands."""
    published = [shard for shard in shards if layout.ledger(shard).exists()]
    looked_at = sum_shard_counts(map(layout.ledger, published[:_SHARDS_LOOKED_AT]))
    scale = len(published) / max(1, min(len(published), _SHARDS_LOOKED_AT))
    return ShardCounts(
        samples=round(looked_at.samples * scale),
        rows=round(looked_at.rows * scale),
        written_bytes=round(looked_at.written_bytes * scale),
    )


def _layout_of(out: Path, job: Job, identity: Identity) -> OutputLayout:
    """Where everything lies, also when the folder that a command stands in is moved under its feet."""
    output_format = find_dataset(job.dataset).output_format
    return OutputLayout(
        resolve_parent(out),
        resolve_parent(Path(job.scratch)) if job.scratch else None,
        hash_of(identity),
        output_format,
    )


def _source_of(job: Job, dataset: Dataset) -> Path:
    source = Path(job.source)
    if dataset.list_name is None:
        return source
    return published_source(OutputLayout(resolve_parent(Path(job.out))), source, dataset.list_name)


def _take_for_retry(layout: OutputLayout, identity: Identity) -> None:
    """See that there is a complete run whose failures can be tried again, before anything is fetched.

    Raises:
        ConfigurationError: There is none, shards of it are missing, or there are files that are not ours.
    """
    refuse_foreign_files(layout, identity)
    refuse_missing_files(layout)
    arrangement = read_reshard_record(layout)
    is_complete = layout.report.exists() or layout.retry.exists()
    if arrangement is not None:
        is_complete &= all(layout.ledger(shard).exists() for shard in arrangement.samples)
    else:
        published = [shard for shard in identity["shards"] if layout.ledger(shard).exists()]
        is_complete &= all(format_of(layout).is_intact(layout, shard) for shard in published)
        is_complete &= _are_all(layout, identity, published)
    if not is_complete:
        raise ConfigurationError(f"{layout.out} is not complete; run the command that started it again, and then retry")


def _are_all(layout: OutputLayout, identity: Identity, published: list[str]) -> bool:
    """Whether no shard lacks its ledger; those beyond a limit never had one."""
    if len(published) == len(identity["shards"]):
        return True
    limit = identity.get("limit")
    return limit is not None and sum_shard_counts(map(layout.ledger, published)).samples == limit


def _selection(manifest: Manifest, work: Session, limit: int | None) -> IdListResult | None:
    """What became of the id list, by the ledgers; a limited run has not looked everywhere."""
    layout = work.output.layout
    books = {shard: read_shard_counts(layout.ledger(shard)) for shard in work.published()}
    keys = chain.from_iterable(read_keys(layout.ledger(shard)) for shard in books)
    selection = manifest.id_list_result(keys, books)
    if selection is None or limit is None:
        return selection
    return replace(selection, not_found=None)


def _unchanged(job: Job) -> Job:
    return job


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
