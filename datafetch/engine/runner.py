"""run(job): run or resume a job, or its two halves separately; retry(out): fetch failed images again.

Rules: what is wrong with a job is found before anything is written. One run at a time works on an output; or several
processes call ``fetch_shards``, each for shards of its own, and then one calls ``finish``. uvloop is used here and
nowhere else: callers with an event loop of their own call the coroutines (``fetch_dataset`` …).
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections import deque
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

import uvloop

from datafetch.engine.bound_job import BoundJob, bind
from datafetch.engine.choices import log_choices
from datafetch.engine.completeness import unpublished_shards
from datafetch.engine.disk_estimate import count_published, log_disk_estimate
from datafetch.engine.feed import Feed
from datafetch.engine.job import Job
from datafetch.engine.ownership import locked_output, locked_shards
from datafetch.engine.permissions import Permitted, find_permitted_since, read_last_job
from datafetch.engine.repair import begin_repair, end_repair
from datafetch.engine.repeated_job import RepeatedJob
from datafetch.engine.retry import Change, retry_failed
from datafetch.engine.session import CHILD_PROCESSES, Backends, Session
from datafetch.engine.set_aside import delete_earlier
from datafetch.errors import ConfigurationError
from datafetch.fetch import Fetcher
from datafetch.model.at_hand import AtHand, is_at_hand
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.location import is_bucket
from datafetch.model.manifest import Manifest
from datafetch.model.observers import Observer
from datafetch.model.report import FetchedShards, Report
from datafetch.model.sample import IdListResult
from datafetch.model.statistics import Statistics
from datafetch.monitor.at_work import refuse_at_work
from datafetch.output.retry_filter import RetryFilter
from datafetch.process.event_loop import run_to_end
from datafetch.process.threads import run_in_thread
from datafetch.store.ledger_reader import read_keys
from datafetch.store.reports import set_report_aside, write_report
from datafetch.store.shard_summary import read_shard_counts

_TRIED_SAMPLES = 256  # read before an earlier output is deleted; the feed reads as many at a time

_Result = TypeVar("_Result")

_log = logging.getLogger(__name__)


def run(
    job: Job,
    observers: Iterable[Observer[Statistics]] = (),
    *,
    backends: Backends = CHILD_PROCESSES,
    repeated: RepeatedJob | None = None,
) -> Report:
    """Run a job, or resume it, on an event loop of its own.

    Args:
        job: What to do.
        observers: Each watches while it runs.
        backends: What transcodes images and commits shards.
        repeated: The job of another output, whose rows this one is to make; None for any rows.

    Returns:
        What was done. Failures of the web are counted in it, and not raised.

    Raises:
        DatafetchError: The job or its manifest is wrong, or this machine ran out of something.
        KeyboardInterrupt: Ctrl-C; running the same job again resumes it.
    """
    work = fetch_dataset(job, observers, backends=backends, repeated=repeated)
    return run_to_end(work, uvloop.new_event_loop, instead="await fetch_dataset(job)")


async def fetch_dataset(
    job: Job,
    observers: Iterable[Observer[Statistics]] = (),
    *,
    backends: Backends = CHILD_PROCESSES,
    repeated: RepeatedJob | None = None,
) -> Report:
    """Run a job inside a running event loop, of any kind; otherwise like ``run``."""
    if _is_in_bucket(job):
        from datafetch.engine.bucket_output import run_in_bucket  # noqa: PLC0415 - local runs start without it

        work = partial(_fetch, observers=observers, repeated=repeated)
        return await run_in_bucket(job, backends, work)
    return await _fetch(job, backends, observers=observers, repeated=repeated)


async def _fetch(
    job: Job, backends: Backends, *, observers: Iterable[Observer[Statistics]], repeated: RepeatedJob | None
) -> Report:
    """Run a job whose output, or whose working copy of it, is on this machine."""
    async with bind(job) as bound:
        if repeated is not None:
            await run_in_thread(repeated.refuse_other_rows, bound.identity, job, bound.spec)
        layout, shards = bound.layout, bound.shards
        if job.no_lock:
            await asyncio.to_thread(refuse_at_work, layout, no_lock=True)
        if job.fresh or job.reuse:
            await try_to_start(bound)
        before = None if job.fresh else await asyncio.to_thread(read_last_job, layout)
        prepare = partial(bound.claim_output, shards, is_whole=True)
        async with locked_output(layout, prepare, fresh=job.fresh, is_alone=job.no_lock):
            log_no_longer_permitted(before, job)
            await run_in_thread(begin_run, bound)
            repair = await run_in_thread(begin_repair, bound)
            if repair is not None:  # all shards are published, and only lost rows are missing
                session = Session(job, repair.output, shards, observers)
                feed = Feed(repair.samples, repair.output.layout)
            else:
                session = Session(job, bound.output, shards, observers)
                feed = Feed(bound.manifest, layout, job.limit, image_root=bound.image_root)
            async with session.fetched(
                feed, bound.spec, backends, bound.archives, bound.identity, rate=bound.rate
            ) as fetched:
                report = await _complete_run(bound, session, fetched)
                since = find_permitted_since(before, job, fetched.ended_before)
                return report if repair is not None else replace(report, permitted_since=since)


def fetch_shards(
    job: Job,
    shards: Iterable[str] | None = None,
    observers: Iterable[Observer[Statistics]] = (),
    *,
    backends: Backends = CHILD_PROCESSES,
) -> FetchedShards:
    """Fetch and publish some shards of a job, on an event loop of its own; ``finish`` does the rest after the last one.

    Several processes, on this machine and on others, may do so at the same time, each for shards of its own, if the
    filesystem has locks. Each of them needs the manifest and the id list. URLs are deduplicated within a process only.

    Args:
        job: What to do, the same in every process; ``fresh`` and ``reuse`` are refused.
        shards: Names of the shards, as ``shard_names`` gives them; None is all.
        observers: Each watches while it runs.
        backends: What transcodes images and commits shards.

    Returns:
        What was done for these shards.

    Raises:
        DatafetchError: The job or its manifest is wrong, another process is fetching one of the shards, or this machine
            ran out of something.
        KeyboardInterrupt: Ctrl-C; the same call resumes it, as it does after a kill.
    """
    work = fetch_dataset_shards(job, shards, observers, backends=backends)
    return run_to_end(work, uvloop.new_event_loop, instead="await fetch_dataset_shards(job, shards)")


async def fetch_dataset_shards(
    job: Job,
    shards: Iterable[str] | None = None,
    observers: Iterable[Observer[Statistics]] = (),
    *,
    backends: Backends = CHILD_PROCESSES,
) -> FetchedShards:
    """Fetch shards inside a running event loop, of any kind; otherwise like ``fetch_shards``."""
    _refuse_bucket(job)
    refuse_starting_over(job)
    async with bind(job) as bound:
        layout, names = bound.layout, _in_order(bound, shards)
        if not names:
            return FetchedShards(ShardCounts())
        if job.no_lock:
            await asyncio.to_thread(refuse_at_work, layout, no_lock=True)
        before = await asyncio.to_thread(read_last_job, layout)
        async with locked_shards(layout, names, partial(_prepare_for_shards, bound, names), is_alone=job.no_lock):
            log_no_longer_permitted(before, job)
            session = Session(job, bound.output, names, observers, layout.shard_progress(names[0]))
            feed = Feed(bound.manifest, layout, job.limit, frozenset(names), bound.image_root)
            async with session.fetched(
                feed, bound.spec, backends, bound.archives, bound.identity, rate=bound.rate
            ) as fetched:
                return fetched


def run_alone(work: Coroutine[Any, Any, _Result], *, instead: str) -> _Result:
    """Run a coroutine of the engine on an event loop of its own, of the kind that ``run`` uses.

    Args:
        work: The coroutine.
        instead: What to write where a loop is running already.
    """
    return run_to_end(work, uvloop.new_event_loop, instead=instead)


def finish(job: Job, observers: Iterable[Observer[Statistics]] = ()) -> Report:
    """Complete a job whose shards ``fetch_shards`` has published, on an event loop of its own.

    The output is resharded for the ranks, and the list that the trainer reads and the report are written.

    Args:
        job: The job that the shards were fetched for; ``fresh`` and ``reuse`` are refused.
        observers: Each watches while it runs.

    Returns:
        What the output holds. This call fetches no images.

    Raises:
        ConfigurationError: Shards are not published yet, or a process is still fetching some.
        DatafetchError: The job or its manifest is wrong, or this machine ran out of something.
        KeyboardInterrupt: Ctrl-C; the same call resumes it, as it does after a kill.
    """
    return run_to_end(finish_dataset(job, observers), uvloop.new_event_loop, instead="await finish_dataset(job)")


async def finish_dataset(
    job: Job,
    observers: Iterable[Observer[Statistics]] = (),
    *,
    done: FetchedShards | None = None,
    at_hand: AtHand = is_at_hand,
) -> Report:
    """Complete a job inside a running event loop, of any kind; otherwise like ``finish``.

    Args:
        job: As for ``finish``.
        observers: Each watches while it runs.
        done: What others have done for this run, to be part of its report.
        at_hand: Has the content of a file of published rows on this machine while they are read.
    """
    _refuse_bucket(job)
    refuse_starting_over(job)
    async with bind(job) as bound:
        layout, shards = bound.layout, bound.shards
        if not await asyncio.to_thread(layout.job.exists):
            raise _not_published(bound, shards)  # before anything is created
        if job.no_lock:
            await asyncio.to_thread(refuse_at_work, layout, no_lock=True)
        before = await asyncio.to_thread(read_last_job, layout)
        async with locked_output(layout, partial(_prepare_to_finish, bound), is_alone=job.no_lock):
            log_no_longer_permitted(before, job)
            session = Session(job, bound.output, shards, observers)
            async with session.published_by_others(done, at_hand) as fetched:
                return await _complete_run(bound, session, fetched)


def shard_names(job: Job) -> list[str]:
    """The names of all shards of a job, in order, to be divided among several processes. Writes nothing.

    Raises:
        DatafetchError: The job or its manifest is wrong.
    """
    return run_to_end(_shard_names(job), uvloop.new_event_loop, instead="await asyncio.to_thread(shard_names, job)")


async def _shard_names(job: Job) -> list[str]:
    async with bind(job) as bound:
        return bound.shards


def retry(
    out: str,
    retry_filter: RetryFilter | None = None,
    *,
    change: Change | None = None,
    source: str | None = None,
    observers: Iterable[Observer[Statistics]] = (),
    backends: Backends = CHILD_PROCESSES,
) -> Report:
    """Fetch failed images again, on an event loop of its own, and add those that arrive to the shards.

    Args:
        out: The output of a complete run: its folder, or its place in a bucket.
        retry_filter: Which failures; None selects temporary ones, or those of the retry that was interrupted.
        change: Changes settings of that run; none that the rows depend on. What it permits is remembered for later
            retries. A network that it leaves out stays permitted.
        source: Where the archive is, if it was given with credentials or a query, which are not stored.
        observers: Each watches while it runs.
        backends: What transcodes images and commits shards.

    Returns:
        What was done.

    Raises:
        DatafetchError: There is no complete run, or this machine ran out of something.
        KeyboardInterrupt: Ctrl-C; the same call resumes the retry, and so does one without a filter and ``change``.
    """
    work = retry_failed(out, retry_filter, change=change, source=source, observers=observers, backends=backends)
    return run_to_end(work, uvloop.new_event_loop, instead="await retry_failed(out)")


async def _complete_run(bound: BoundJob, session: Session, fetched: FetchedShards) -> Report:
    """Do what comes after the last shard, and write the report."""
    report = await session.complete_output(fetched)
    if session.output.is_repair:  # which sees only a part of the images; all others are reused
        report = replace(report, reused=max(0, report.totals.ok - fetched.arrived))
    return await run_in_thread(_write_run_report, bound, session, report)


def _write_run_report(bound: BoundJob, session: Session, report: Report) -> Report:
    """Add what only a run can report, and write the report."""
    layout = bound.layout
    id_list = _id_list_result(bound, session.published())
    report = replace(report, id_list_result=id_list, has_open_retry=layout.retry.exists())
    write_report(layout, report)
    shutil.rmtree(layout.scans, ignore_errors=True)
    end_repair(layout)
    delete_earlier(layout)
    layout.remove_empty_spool_folders()
    return report


def _in_order(bound: BoundJob, shards: Iterable[str] | None) -> list[str]:
    """The shards to fetch, in the order of the manifest; all if None were given.

    Raises:
        ConfigurationError: The manifest does not have one of them.
    """
    names = bound.shards
    if shards is None:
        return names
    wanted = frozenset(shards)
    unknown = min(wanted.difference(names), default=None)
    if unknown is not None:
        raise ConfigurationError(
            f"{bound.job.source} has no shard {unknown!r}; it has {len(names):,}, from {names[0]} to {names[-1]}"
        )
    return [name for name in names if name in wanted]


def _is_in_bucket(job: object) -> bool:
    """Whether it is a job whose output is in a bucket; what is no job is refused later."""
    return isinstance(job, Job) and is_bucket(job.out)


def _refuse_bucket(job: Job) -> None:
    if _is_in_bucket(job):
        raise ConfigurationError(
            f"{job.out} is in a bucket, where one run works at a time; fetch_shards and finish take a folder that all "
            "machines see"
        )


def refuse_starting_over(job: Job) -> None:
    """Refuse a job that deletes or sets aside an output while other processes may be at work on it.

    Raises:
        ConfigurationError: It does.
    """
    if job.fresh or job.reuse:
        raise ConfigurationError(
            "a job whose shards are fetched separately can't start over, because other processes may be at work; to "
            f"start over, delete {job.out} and its state folder first"
        )


def begin_run(bound: BoundJob) -> None:
    """Do what comes before the first shard of a run."""
    layout = bound.layout
    bound.keep_manifest()
    log_disk_estimate(layout, bound.disk_estimate(), count_published(layout, bound.shards))
    if not layout.report.exists():  # otherwise it was said when the run began
        log_choices(bound.job, bound.manifest)
    set_report_aside(layout)


def _prepare_for_shards(bound: BoundJob, shards: list[str]) -> None:
    """Prepare the output for some of its shards; other processes may be fetching others."""
    layout = bound.layout
    bound.claim_output(shards)
    bound.keep_manifest()
    sizes = {shard.name: shard.size for shard in bound.manifest.shards()}
    share = sum(sizes[shard] for shard in shards) / max(1, sum(sizes.values()))
    log_disk_estimate(layout, bound.disk_estimate().part(share), count_published(layout, shards))
    if unpublished_shards(layout, shards, None):
        set_report_aside(layout)


def _prepare_to_finish(bound: BoundJob) -> None:
    """Check that all shards are published, and delete spools that are left of them.

    Raises:
        ConfigurationError: A shard is not published.
    """
    layout = bound.layout
    bound.claim_output(())
    missing = unpublished_shards(layout, bound.shards, bound.job.limit)
    if missing:
        raise _not_published(bound, missing)
    log_disk_estimate(layout, bound.disk_estimate(), count_published(layout, bound.shards))
    set_report_aside(layout)
    for shard in bound.shards:
        # A process that is killed right after publishing a shard leaves its spool.
        layout.delete_spools(shard)


def _not_published(bound: BoundJob, missing: list[str]) -> ConfigurationError:
    return ConfigurationError(
        f"{len(missing):,} of {len(bound.shards):,} shards of {bound.layout.out} are not published, the first is "
        f"{missing[0]}; fetch them first"
    )


def log_no_longer_permitted(before: Job | None, job: Job) -> None:
    """Say what the last run on an output permitted and this one does not."""
    revoked = () if before is None else Permitted.of(before).without(Permitted.of(job))
    if revoked:
        _log.info(
            "given to an earlier run and not to this one, so no longer permitted, also for retries: %s",
            " ".join(revoked),
        )


async def try_to_start(bound: BoundJob) -> None:
    """Check that a run can open a fetcher and read its first samples, before it deletes or moves an earlier output.

    Raises:
        DatafetchError: The error that would stop the run: too few descriptors, an invalid proxy, a bad record.
    """
    async with Fetcher(bound.job.fetch):
        await asyncio.to_thread(_read_first_samples, bound.manifest)


def _read_first_samples(manifest: Manifest) -> None:
    samples = iter(manifest.samples(manifest.shards()[0]))
    deque(islice(samples, _TRIED_SAMPLES), maxlen=0)


def _id_list_result(bound: BoundJob, published: list[str]) -> IdListResult | None:
    """How the ids of the id list were found, by the ledgers; with a limit, those not found may be in other shards."""
    layout = bound.layout
    counts = {shard: read_shard_counts(layout.ledger(shard)) for shard in published}
    keys = chain.from_iterable(read_keys(layout.ledger(shard)) for shard in published)
    result = bound.manifest.id_list_result(keys, counts)
    if result is None or bound.job.limit is None:
        return result
    return replace(result, not_found=None)
