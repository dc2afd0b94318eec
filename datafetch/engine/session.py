"""Work: what a run and a retry have in common: fetch what a feed hands out, make the shards equal, and report."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from datafetch.engine.feed import Feed
from datafetch.engine.job import Job, equal_plan
from datafetch.engine.permissions import curable
from datafetch.engine.pipeline import Pipeline
from datafetch.errors import ConservationError, DatafetchError
from datafetch.fetch import BodyBudget, Fetcher, FetchStatistics
from datafetch.model.interfaces import ImageTranscoder
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.observers import observing
from datafetch.model.outcome import OK
from datafetch.model.report import Report
from datafetch.model.statistics import Progress, Statistics
from datafetch.monitor.heartbeat import beat
from datafetch.output.commit import CommitShard, commit_in_process
from datafetch.output.merge import Output
from datafetch.output.reshard.after_run import make_equal
from datafetch.output.reshard.copy import Plan, ProgressMonitor
from datafetch.output.reshard.record import read_reshard_record
from datafetch.output.training_list import write_trainers_list
from datafetch.store.ledger import read_shard_counts
from datafetch.transcode import ImageSpec, Transcoder

Observer: TypeAlias = Callable[[Callable[[], Statistics]], Coroutine[None, None, None]]
"""Watches a run: a coroutine function that may ask for statistics as often as it likes, until it is cancelled.

What it raises is logged as an error under ``datafetch.model.observers``, and the run continues without it.
"""


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


class Session:
    """What a run and a retry have in common: fetch what the feed hands out, then make the shards equal."""

    def __init__(
        self, job: Job, spec: ImageSpec, feed: Feed, output: Output, shards: list[str], backends: Backends
    ) -> None:
        self.shards = shards
        self.output = output
        self._job = job
        self._spec = spec
        self._feed = feed
        self._backends = backends
        self._started_s = time.monotonic()
        self._resharding: Progress | None = None

    async def do(self, observe: Observer | None, conclude: Callable[[Report], Coroutine[None, None, Report]]) -> Report:
        """Work until the output is as the job wants it.

        Args:
            observe: Watches meanwhile.
            conclude: Completes the report and does what is left to do; until then the run counts as being at work.
        """
        job, layout = self._job, self.output.layout
        budget = BodyBudget(job.memory_bytes)
        async with (
            Fetcher(job.fetch, budget=budget) as fetch,
            self._backends.open_transcoder(job, self._spec, layout.quarantine) as transcode,
        ):
            pipeline = Pipeline(
                self._feed,
                self.output,
                fetch=fetch,
                transcode=transcode,
                commit=self._backends.commit,
                budget=budget,
            )
            with _one_error():
                async with asyncio.TaskGroup() as group:
                    statistics = partial(self._statistics, pipeline)
                    watching = [group.create_task(beat(statistics, layout))]
                    if observe is not None:
                        watching.append(group.create_task(observing(observe, statistics)))
                    await pipeline.run()
                    await self._make_equal()
                    await self._write_list()
                    report = await conclude(await asyncio.to_thread(self._report, pipeline, fetch.statistics()))
                    for watch in watching:
                        watch.cancel()
        return report

    def _report(self, pipeline: Pipeline, fetched: FetchStatistics) -> Report:
        """What was done, and how the output stands."""
        known, layout = self._feed.published, self.output.layout
        totals = {shard: known.get(shard) or read_shard_counts(layout.ledger(shard)) for shard in self.published()}
        equal = read_reshard_record(layout)
        whole = ShardCounts.sum(totals.values())
        if equal is not None and equal.rows != whole.rows:
            raise ConservationError(
                f"{layout.out}: the equal shards hold {equal.rows:,} rows, and the ledgers list {whole.rows:,}"
            )
        is_retry = self.output.retry is not None
        return Report(
            dataset=self.output.dataset.name,
            out=self._job.out,
            totals=whole,
            shards=len(equal.files) if equal else sum(part.rows > 0 for part in totals.values()),
            # What a retry finds in its spools, the ledgers may have counted or not.
            reused=max(0, whole.ok - pipeline.arrived) if is_retry else self._feed.reused[OK] + pipeline.repeated,
            repeated=pipeline.repeated,
            fetched_bytes=fetched.fetched_bytes,
            written_bytes=pipeline.published_bytes,
            requests=fetched.attempts,
            connections=fetched.connections,
            elapsed_s=time.monotonic() - self._started_s,
            retried=pipeline.ended if is_retry else None,
            equal=None if equal is None else equal.for_ranks(),
            curable=curable(
                self._job, whole.outcomes, [layout.ledger(shard) for shard, part in totals.items() if part.failed]
            ),
            has_open_retry=not is_retry and layout.retry.exists(),
        )

    def published(self) -> list[str]:
        """The shards that have a ledger: all, unless a limit left some out."""
        return [shard for shard in self.shards if self.output.layout.ledger(shard).exists()]

    def _statistics(self, pipeline: Pipeline) -> Statistics:
        return replace(pipeline.statistics(), resharding=self._resharding)

    async def _make_equal(self) -> None:
        """Make the shards equal in a thread, and stop it when this is cancelled: its work is kept."""
        plan = await asyncio.to_thread(self._plan)
        if plan is None:
            return
        watch = ProgressMonitor(tell=self._tell, stop=threading.Event())
        work = asyncio.create_task(
            asyncio.to_thread(lambda: make_equal(self.output.layout, self.published(), plan, watch))
        )
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            watch.stop.set()
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
        """For whom the shards are made equal, if they are; those that are stay so."""
        layout = self.output.layout
        plan = equal_plan(self._job, self.output.dataset)
        if plan is None:
            shutil.rmtree(layout.resharding, ignore_errors=True)  # begun by a run that was asked for other things
            arrangement = read_reshard_record(layout)
            return None if arrangement is None else arrangement.plan
        return plan

    def _tell(self, progress: Progress) -> None:
        self._resharding = progress


@contextmanager
def _one_error() -> Iterator[None]:
    """Task groups raise groups; a caller wants the one error that stopped the run."""
    try:
        yield
    except BaseExceptionGroup as group:
        ours, others = group.split(DatafetchError)
        raise next(_leaves(ours or others or group)) from group


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
