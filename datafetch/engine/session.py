"""A session on an output: what a feed hands out is fetched, the output is resharded, and the result is reported.

Rules: what is fetched, a manifest or the failures of an earlier run, is the feed's matter, and how it becomes part of a
shard the output's; nothing here tells one from the other.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import orjson

from datafetch.engine.feed import Feed
from datafetch.engine.job import Job, reshard_plan
from datafetch.engine.permissions import count_permittable
from datafetch.engine.pipeline import Pipeline
from datafetch.errors import ConservationError
from datafetch.fetch import BodyBudget, Fetcher, FetchStatistics
from datafetch.model.interfaces import ImageTranscoder
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.observers import Observer, observed_by
from datafetch.model.outcome import OK
from datafetch.model.report import FetchedShards, Report
from datafetch.model.statistics import Progress, Statistics
from datafetch.monitor.heartbeat import write_heartbeats
from datafetch.output.commit import CommitShard
from datafetch.output.commit_process import commit_in_process
from datafetch.output.merge import Output
from datafetch.output.reshard.after_run import reshard_output
from datafetch.output.reshard.copy import ProgressMonitor
from datafetch.output.reshard.plan import Plan
from datafetch.output.reshard.record import read_reshard_record
from datafetch.output.training_list import write_trainers_list
from datafetch.store.atomic import write_atomically
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger import read_shard_counts
from datafetch.transcode import ImageSpec, Transcoder


def _open_transcoder(job: Job, spec: ImageSpec, quarantine: Path) -> AbstractAsyncContextManager[ImageTranscoder]:
    return Transcoder(spec, processes=job.processes, quarantine=quarantine)


@dataclass(frozen=True, slots=True)
class Backends:
    """What transcodes images and commits shards.

    The default starts child processes, so that a hostile image can't harm the caller and the event loop is not held up.

    Attributes:
        open_transcoder: Opens a transcoder for a job, what its images become, and a folder for bodies that crash one.
        commit: Writes a finished shard.
    """

    open_transcoder: Callable[[Job, ImageSpec, Path], AbstractAsyncContextManager[ImageTranscoder]] = _open_transcoder
    commit: CommitShard = commit_in_process


CHILD_PROCESSES = Backends()

_Result = TypeVar("_Result")


class Session:
    """Work on an output that is locked: shards are fetched, and what comes after the last of them is done.

    Args:
        job: What to do.
        output: How records become rows, and where they go.
        shards: Names of the shards that it goes through, in order: all, where they are resharded.
        observers: Each watches the work; none of them affects it, or another.
        progress: Where the heartbeats go; None is the run's own file.
    """

    def __init__(
        self,
        job: Job,
        output: Output,
        shards: Sequence[str],
        observers: Iterable[Observer[Statistics]],
        progress: Path | None = None,
    ) -> None:
        self.output = output
        self._shards = shards
        self._job = job
        self._observers = observers
        self._progress = progress or output.layout.progress
        self._started_s = time.monotonic()
        self._counts: dict[str, ShardCounts] = {}
        self._resharding: Progress | None = None

    async def fetch(
        self,
        feed: Feed,
        spec: ImageSpec,
        backends: Backends,
        finalize: Callable[[FetchedShards], Coroutine[None, None, _Result]],
    ) -> _Result:
        """Fetch and publish what a feed hands out.

        Args:
            feed: Where the samples come from.
            spec: What their images become.
            backends: What transcodes images and commits shards.
            finalize: Does what is left to do; until it has returned the run counts as being at work.
        """
        job = self._job
        budget = BodyBudget(job.memory_bytes)
        async with (
            Fetcher(job.fetch, budget=budget) as fetch,
            backends.open_transcoder(job, spec, self.output.layout.quarantine) as transcode,
        ):
            pipeline = Pipeline(
                feed, self.output, fetch=fetch, transcode=transcode, commit=backends.commit, budget=budget
            )
            async with self._watched(pipeline.statistics):
                await pipeline.run()
                self._counts = feed.published
                return await finalize(self._fetched(feed, pipeline, fetch.statistics()))

    async def finalize(self, finalize: Callable[[FetchedShards], Coroutine[None, None, _Result]]) -> _Result:
        """Do what is left to do once others have published all shards.

        Args:
            finalize: Does it; until it has returned the run counts as being at work.
        """
        counts = await asyncio.to_thread(self._read_counts)
        totals = ShardCounts.sum(counts.values())
        self._counts = counts
        async with self._watched(lambda: self._statistics_of(totals)):
            return await finalize(FetchedShards(totals, reused=totals.ok))

    async def finish(self, fetched: FetchedShards) -> Report:
        """Reshard the output, where that was asked for, and write the list that the trainer reads.

        Args:
            fetched: What was fetched before in this call.

        Returns:
            How the output stands, and what this call did.
        """
        await self._reshard()
        await self._write_list()
        return await asyncio.to_thread(self._report, fetched)

    def published(self) -> list[str]:
        """The shards that have a ledger: all, unless a limit left some out."""
        return [shard for shard in self._shards if self.output.layout.ledger(shard).exists()]

    @asynccontextmanager
    async def _watched(self, statistics: Callable[[], Statistics]) -> AsyncIterator[None]:
        """Write heartbeats and let the observers watch; of several errors, raise the one that stopped the work."""

        def take_snapshot() -> Statistics:
            return replace(statistics(), resharding=self._resharding)

        heartbeat = partial(write_heartbeats, layout=self.output.layout, path=self._progress)
        async with observed_by((heartbeat, *self._observers), take_snapshot):
            yield

    def _fetched(self, feed: Feed, pipeline: Pipeline, fetching: FetchStatistics) -> FetchedShards:
        return FetchedShards(
            totals=ShardCounts.sum(feed.published.values()),
            ended=pipeline.ended,
            arrived=pipeline.arrived,
            reused=feed.reused[OK] + pipeline.repeated,
            repeated=pipeline.repeated,
            fetched_bytes=fetching.fetched_bytes,
            written_bytes=pipeline.published_bytes,
            requests=fetching.attempts,
            connections=fetching.connections,
            elapsed_s=time.monotonic() - self._started_s,
        )

    def _statistics_of(self, totals: ShardCounts) -> Statistics:
        """A snapshot where nothing is fetched."""
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
        """The counts of all published shards, read where they are not known."""
        layout = self.output.layout
        return {shard: self._counts.get(shard) or read_shard_counts(layout.ledger(shard)) for shard in self.published()}

    def _report(self, fetched: FetchedShards) -> Report:
        counts, layout = self._read_counts(), self.output.layout
        resharded = read_reshard_record(layout)
        whole = ShardCounts.sum(counts.values())
        if resharded is not None and resharded.rows != whole.rows:
            raise ConservationError(
                f"{layout.out}: the resharded files hold {resharded.rows:,} rows, and the ledgers list {whole.rows:,}"
            )
        return Report(
            dataset=self.output.dataset.name,
            out=self._job.out,
            totals=whole,
            shards=len(resharded.files) if resharded else sum(part.rows > 0 for part in counts.values()),
            reused=fetched.reused,
            repeated=fetched.repeated,
            fetched_bytes=fetched.fetched_bytes,
            written_bytes=fetched.written_bytes,
            requests=fetched.requests,
            connections=fetched.connections,
            elapsed_s=time.monotonic() - self._started_s,
            resharded=None if resharded is None else resharded.for_ranks(),
            permittable=count_permittable(
                self._job, whole.outcomes, [layout.ledger(shard) for shard, part in counts.items() if part.failed]
            ),
        )

    async def _reshard(self) -> None:
        """Reshard the output in a thread, and stop it when this is cancelled: its work is kept."""
        plan = await asyncio.to_thread(self._plan)
        if plan is None:
            return
        monitor = ProgressMonitor(on_progress=self._tell, stop=threading.Event())
        work = asyncio.create_task(
            asyncio.to_thread(lambda: reshard_output(self.output.layout, self.published(), plan, monitor))
        )
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            monitor.stop.set()
            while not work.done():
                with suppress(asyncio.CancelledError):  # the thread must end before the lock does; raised again below
                    await asyncio.wait([work])
            raise

    async def _write_list(self) -> None:
        """Write the list that the trainer reads, where there is one."""
        name = self.output.dataset.list_name
        if name is not None:
            await asyncio.to_thread(lambda: write_trainers_list(self.output.layout, self.published(), name))

    def _plan(self) -> Plan | None:
        """How the output is resharded, if it is; one that is stays so."""
        layout = self.output.layout
        plan = reshard_plan(self._job, self.output.dataset)
        if plan is None:
            shutil.rmtree(layout.resharding, ignore_errors=True)  # begun by a run that was asked for other things
            arrangement = read_reshard_record(layout)
            return None if arrangement is None else arrangement.plan
        return plan

    def _tell(self, progress: Progress) -> None:
        self._resharding = progress


def write_report(layout: OutputLayout, report: Report) -> None:
    """Write the report beside the output; from then on the run is complete."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    write_atomically(layout.report, orjson.dumps(report.summary(), option=options))
