"""Session: one run or retry at work on a locked output.

A session has two parts. First, shards are published: either ``fetched`` does that, with everything that a feed hands
out, or other processes have, and ``published_by_others`` counts what they did. Then ``complete_output`` does what
depends on all shards: it reshards the output for the ranks, and writes the list that the trainer reads and the report.
The first part is a context manager, and the second part is its body. So one heartbeat and one set of observers cover
both, and ``status`` does not take a run that is resharding for one that was interrupted. A process that fetches only
some of the shards has no second part.

Rules: whether the samples come from a manifest or are the failures of an earlier run, only the feed knows, and how they
become part of a shard, only the output; nothing here tells a run from a retry. Everything that blocks runs in a thread.
Whatever stops a session, what is in the spools and in complete resharded files is used by the next one.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from datafetch.engine.archives import NO_ARCHIVES, Archives
from datafetch.engine.feed import Feed
from datafetch.engine.finish_by import announced, loop_time_of
from datafetch.engine.image_access import ImageAccess
from datafetch.engine.image_counts import FetchCounts
from datafetch.engine.job import Job, reshard_plan
from datafetch.engine.opened_meanwhile import opened_meanwhile
from datafetch.engine.permissions import count_permittable
from datafetch.engine.pipeline import Pipeline
from datafetch.engine.publish import Publisher
from datafetch.engine.reach import Reach, Steered, count_answered
from datafetch.engine.workers.budgets import count_workers, log_workers
from datafetch.errors import ConservationError
from datafetch.fetch import BodyBudget, Fetcher
from datafetch.fetch.receive_rate import ReceiveRate
from datafetch.model.at_hand import AtHand, is_at_hand
from datafetch.model.image_interfaces import ImageTranscoder
from datafetch.model.kinds import Loader
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.observers import Observer, as_observers, observed_by
from datafetch.model.outcome import OK, FailureKind
from datafetch.model.report import FailureCounts, FetchedShards, Report
from datafetch.model.statistics import ReshardProgress, Statistics
from datafetch.monitor.heartbeat import write_heartbeats
from datafetch.output.commit import CommitShard
from datafetch.output.commit_process import CommitProcesses
from datafetch.output.merge import Output
from datafetch.output.reshard.after_run import reshard_output
from datafetch.output.reshard.copy import ProgressMonitor
from datafetch.output.reshard.plan import Plan
from datafetch.output.reshard.record import read_reshard_record
from datafetch.output.training_list import write_trainers_list
from datafetch.process.threads import run_in_thread
from datafetch.store.job_file import Identity
from datafetch.store.ledger_reader import count_failures, count_lost_documents
from datafetch.store.shard_summary import read_shard_counts
from datafetch.transcode import ImageSpec, Transcoder


def _open_transcoder(job: Job, spec: ImageSpec, quarantine: Path) -> AbstractAsyncContextManager[ImageTranscoder]:
    return Transcoder(spec, processes=job.processes, quarantine=quarantine)


@dataclass(frozen=True, slots=True)
class Backends:
    """What transcodes images and commits shards.

    The default starts child processes: a hostile image can't harm the caller, and nothing blocks the event loop. Only
    with the default a job may have worker processes, each of which opens a transcoder of its own.

    Attributes:
        open_transcoder: Opens a transcoder. Its arguments are the job, what an image becomes, and the folder for bodies
            that crash a codec process.
        open_commit: Opens what commits shards whose images all have an outcome.
        at_hand: Has the content of a file of published rows on this machine while they are read again.
    """

    open_transcoder: Callable[[Job, ImageSpec, Path], AbstractAsyncContextManager[ImageTranscoder]] = _open_transcoder
    open_commit: Callable[[], AbstractAsyncContextManager[CommitShard]] = CommitProcesses
    at_hand: AtHand = is_at_hand


CHILD_PROCESSES = Backends()


class Session:
    """One run or retry at work on an output, whose lock is held.

    Args:
        job: What to do.
        output: How records become rows, and where they go.
        shards: Names of the shards that it works on, in order; ``complete_output`` requires all of them.
        observers: Each watches the work; none of them affects it, or another.
        progress_file: The file for the heartbeats; None is that of the run.
        on_start: Called before the first image is requested, to steer the session; None if nobody does.
    """

    def __init__(
        self,
        job: Job,
        output: Output,
        shards: Sequence[str],
        observers: Iterable[Observer[Statistics]],
        progress_file: Path | None = None,
        on_start: Callable[[Steered], None] | None = None,
    ) -> None:
        self.output = output
        self._shards = shards
        self._job = job
        self._observers = observers
        self._on_start = on_start
        self._progress_file = progress_file or output.layout.progress
        self._started_s = time.monotonic()
        self._counts: dict[str, ShardCounts] = {}
        self._resharding: ReshardProgress | None = None
        self._at_hand = CHILD_PROCESSES.at_hand

    @asynccontextmanager
    async def fetched(
        self,
        feed: Feed,
        spec: ImageSpec,
        backends: Backends,
        archives: Archives = NO_ARCHIVES,
        identity: Identity | None = None,
        *,
        rate: ReceiveRate | None = None,
    ) -> AsyncIterator[FetchedShards]:
        """Fetch and publish everything that a feed hands out.

        Args:
            feed: Where the samples come from.
            spec: What their images become.
            backends: What transcodes images and commits shards.
            archives: The archives that images are members of.
            identity: The job's identity, by which images of earlier outputs are taken; None takes none.
            rate: The cap on what is received, where it is shared with what reads the manifest; None takes that of the
                job. Workers have parts of it.

        Yields:
            What was done; the heartbeat and the observers run until the context ends.

        Raises:
            DatafetchError: What stopped the work.
        """
        access = await run_in_thread(ImageAccess.find, self._job, self.output, spec, archives, identity)
        self._at_hand = feed.at_hand = backends.at_hand
        is_alone = backends.open_transcoder is not CHILD_PROCESSES.open_transcoder
        workers = 1 if is_alone else count_workers(self._job)
        log_workers(self._job)
        async with backends.open_commit() as commit, announced(self._job.finish_by):
            publisher = Publisher(feed, self.output, commit)
            async with (
                (
                    _in_workers(feed, access, workers, publisher, reader_rate=rate)
                    if workers > 1
                    else _in_this_process(feed, access, backends, publisher, rate)
                ) as work,
                self._watched(work.statistics),
            ):
                if self._on_start is not None:
                    done = partial(self._fetched_so_far, feed, work, publisher)
                    self._on_start(_SteeredWork(work, done))
                await work.run()
                self._counts = feed.published
                yield self._fetched_so_far(feed, work, publisher)

    @asynccontextmanager
    async def published_by_others(
        self, done: FetchedShards | None = None, at_hand: AtHand = is_at_hand
    ) -> AsyncIterator[FetchedShards]:
        """Count what other processes have published, in place of ``fetched``.

        Args:
            done: What they have done for this run; None if that is not known, or not part of it.
            at_hand: Has the content of a file of published rows on this machine while they are read.

        Yields:
            What there is; the heartbeat and the observers run until the context ends.
        """
        self._at_hand = at_hand
        counts = await asyncio.to_thread(self._read_counts)
        totals = ShardCounts.sum(counts.values())
        self._counts = counts
        fetched = FetchedShards(totals, reused=totals.ok)
        if done is not None:
            self._started_s -= done.elapsed_s
            fetched = replace(done, totals=totals, reused=max(0, totals.ok - done.arrived))
        async with self._watched(lambda: self._statistics_of(totals)):
            yield fetched

    async def complete_output(self, fetched: FetchedShards) -> Report:
        """Reshard the output and write the list that the trainer reads, for a job and a dataset that want them.

        Args:
            fetched: What this session has fetched.

        Returns:
            What the output holds, and what this session did; for ``write_report``.

        Raises:
            ConservationError: The resharded files and the ledgers don't have the same number of rows.
            ResourceError: The output can't be written.
        """
        await self._reshard()
        await self._write_list()
        return await asyncio.to_thread(self._report, fetched)

    def published(self) -> list[str]:
        """The shards that have a ledger: all of them, or those within the job's limit."""
        return [shard for shard in self._shards if self.output.layout.ledger(shard).exists()]

    @asynccontextmanager
    async def _watched(self, statistics: Callable[[], Statistics]) -> AsyncIterator[None]:
        """Write heartbeats and let the observers watch; of several errors, raise the one that stopped the work."""

        def take_snapshot() -> Statistics:
            return replace(statistics(), resharding=self._resharding)

        heartbeat = partial(write_heartbeats, layout=self.output.layout, path=self._progress_file)
        async with observed_by((heartbeat, *as_observers(self._observers)), take_snapshot):
            yield

    def _fetched_so_far(self, feed: Feed, work: _Work, publisher: Publisher) -> FetchedShards:
        counts = work.counts()
        images = counts.images
        return FetchedShards(
            totals=ShardCounts.sum(feed.published.values()),
            ended=images.outcomes.total(),
            ended_ok=images.outcomes[OK],
            not_requested=images.outcomes[FailureKind.NOT_REQUESTED],
            arrived=images.outcomes[OK] - images.repeated - images.adopted,
            reused=feed.ended_before[OK] + images.repeated + images.adopted,
            repeated=images.repeated,
            fetched_bytes=counts.fetched_bytes,
            written_bytes=publisher.published_bytes,
            requests=counts.requests,
            connections=counts.connections,
            peak_open_requests=counts.peak_open_requests,
            elapsed_s=time.monotonic() - self._started_s,
            failed_alike=counts.failed_alike,
            ended_before=feed.ended_before,
            networks=counts.networks,
        )

    def _statistics_of(self, totals: ShardCounts) -> Statistics:
        """A snapshot of a session that fetches nothing."""
        return Statistics(
            expected_images=totals.images,
            ok=totals.ok,
            failed=totals.failed,
            earlier=totals.images,
            shards=len(self._counts),
            shards_published=len(self._counts),
            fetched_bytes=0,
            connections=0,
            open_requests=0,
            elapsed_s=time.monotonic() - self._started_s,
        )

    def _read_counts(self) -> dict[str, ShardCounts]:
        """The counts of all published shards; those that this session has not published are read from the ledgers."""
        layout, are_documents = self.output.layout, self.output.dataset.loader is Loader.MMC4
        counts = {
            shard: self._counts.get(shard) or read_shard_counts(layout.ledger(shard)) for shard in self.published()
        }
        return {
            shard: replace(part, lost=count_lost_documents(layout.ledger(shard)))
            if are_documents and part.lost is None
            else part
            for shard, part in counts.items()
        }

    def _report(self, fetched: FetchedShards) -> Report:
        counts, layout = self._read_counts(), self.output.layout
        resharded = read_reshard_record(layout)
        totals = ShardCounts.sum(counts.values())
        if resharded is not None and resharded.rows != totals.rows:
            raise ConservationError(
                f"{layout.out}: the resharded files hold {resharded.rows:,} rows, and the ledgers list {totals.rows:,}"
            )
        return Report(
            dataset=self.output.dataset.name,
            out=self._job.out,
            totals=totals,
            shards=len(resharded.files) if resharded else sum(part.rows > 0 for part in counts.values()),
            reused=fetched.reused,
            repeated=fetched.repeated,
            fetched_bytes=fetched.fetched_bytes,
            written_bytes=fetched.written_bytes,
            requests=fetched.requests,
            connections=fetched.connections,
            peak_open_requests=fetched.peak_open_requests,
            elapsed_s=time.monotonic() - self._started_s,
            resharded=None if resharded is None else resharded.for_ranks(),
            permittable=count_permittable(
                self._job, totals.outcomes, [layout.ledger(shard) for shard, part in counts.items() if part.failed]
            ),
            failed_alike=fetched.failed_alike,
            networks=fetched.networks,
            failures=FailureCounts.sum(
                count_failures(layout.ledger(shard)) for shard, part in counts.items() if part.failed
            ),
        )

    async def _reshard(self) -> None:
        """Reshard the output in a thread. A cancellation stops it; what it has done is used by the next session."""
        plan = await run_in_thread(self._plan)
        if plan is None:
            return
        monitor = ProgressMonitor(self._set_resharding, threading.Event(), at_hand=self._at_hand)
        await run_in_thread(
            lambda: reshard_output(self.output.layout, self.published(), plan, monitor), on_cancel=monitor.stop.set
        )

    async def _write_list(self) -> None:
        """Write the JSON list that the trainer reads, if the dataset has one."""
        name = self.output.dataset.list_name
        if name is not None:
            output, fresh = self.output, self._job.fresh
            await run_in_thread(
                lambda: write_trainers_list(output.layout, self.published(), output.dataset, replaces_other=fresh)
            )

    def _plan(self) -> Plan | None:
        """How the output is to be resharded; None if it is not.

        If the job says nothing of ranks, a resharded output keeps its plan, for rows may have been added.
        """
        layout = self.output.layout
        plan = reshard_plan(self._job, self.output.dataset)
        if plan is not None:
            return plan
        shutil.rmtree(layout.resharding, ignore_errors=True)  # left by an interrupted run that was to reshard
        record = read_reshard_record(layout)
        return None if record is None else record.plan

    def _set_resharding(self, progress: ReshardProgress) -> None:
        self._resharding = progress


class _Work(Protocol):
    """Fetches and publishes everything that a feed hands out."""

    async def run(self) -> None:
        """Work until all shards are published."""
        ...

    def statistics(self) -> Statistics:
        """A snapshot."""
        ...

    def counts(self) -> FetchCounts:
        """What was done."""
        ...

    def reach(self) -> Reach:
        """How much of the web is reached."""
        ...

    def limit_to(self, per_host: int, max_rate_bytes_per_s: int | None) -> None:
        """Set other limits than the job has."""
        ...

    async def count_answered(self, urls: Sequence[str]) -> int | None:
        """Request URLs, and count those that a server answers; None if they can't be requested."""
        ...


class _InThisProcess:
    """A pipeline and its fetcher."""

    def __init__(self, pipeline: Pipeline, fetch: Fetcher) -> None:
        self.run = pipeline.run
        self.statistics = pipeline.statistics
        self.counts = pipeline.counts
        self.limit_to = fetch.limit_to
        self.count_answered = partial(count_answered, fetch)
        self._fetch = fetch

    def reach(self) -> Reach:
        fetch = self._fetch
        return Reach.of(self.counts().images.outcomes, fetch.unreached, is_within_limits=fetch.is_within_limits)


class _SteeredWork:
    """Work that is steered from outside."""

    def __init__(self, work: _Work, fetched: Callable[[], FetchedShards]) -> None:
        self.statistics = work.statistics
        self.fetched = fetched
        self.reach = work.reach
        self.limit_to = work.limit_to
        self.count_answered = work.count_answered


@asynccontextmanager
async def _in_this_process(
    feed: Feed, access: ImageAccess, backends: Backends, publisher: Publisher, rate: ReceiveRate | None
) -> AsyncIterator[_Work]:
    """Open what does the work on the running event loop."""
    job, output = access.job, access.output
    budget = BodyBudget(job.memory_bytes)
    async with (
        Fetcher(job.fetch, budget=budget, rate=rate) as fetch,
        opened_meanwhile(backends.open_transcoder(job, access.spec, output.layout.quarantine)) as transcode,
        access.open(fetch, loop_time_of(job.finish_by)) as source,
    ):
        pipeline = Pipeline(feed, output, source=source, transcode=transcode, publisher=publisher, budget=budget)
        yield _InThisProcess(pipeline, fetch)


@asynccontextmanager
async def _in_workers(
    feed: Feed, access: ImageAccess, workers: int, publisher: Publisher, *, reader_rate: ReceiveRate | None
) -> AsyncIterator[_Work]:
    """Open what does the work in worker processes."""
    from datafetch.engine.workers.coordinator import Coordinator  # noqa: PLC0415 - most runs have one process

    yield Coordinator(feed, access, workers, publisher, reader_rate=reader_rate)
