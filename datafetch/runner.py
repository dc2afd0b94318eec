"""run(job): do it, or go on with it; retry(out): try again what failed.

Rules: what can be wrong with a job is found before anything is written. One run at a time works on an output. uvloop
lives here and nowhere else; a caller with a loop of their own uses ``fetch_dataset`` and ``retry_failed`` and keeps
theirs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import orjson
import uvloop

from datafetch.arrangement import read_arrangement
from datafetch.claim import claimed, refuse_left_spools, refuse_missing_files, take_for_job
from datafetch.datasets import find_dataset
from datafetch.disk import Need, say_need
from datafetch.durable import write_atomically
from datafetch.equal import make_equal
from datafetch.errors import ConfigurationError, DatafetchError
from datafetch.failed import FailedSamples
from datafetch.feed import MAX_OPEN_SHARDS, Feed
from datafetch.fetch import BodyBudget, Fetcher, FetchStatistics
from datafetch.heartbeat import beat
from datafetch.job import Job, asked_of, equal_plan, hash_of, identify, read_job
from datafetch.ledger import read_books, read_keys, read_totals
from datafetch.model import OK, Manifest, Report, Selection, Totals
from datafetch.pipeline import Pipeline, Statistics
from datafetch.rearrange import Progress, Watch
from datafetch.settled import Output
from datafetch.state import State
from datafetch.transcode import ImageSpec, Transcoder
from datafetch.wanted import Retry, Wanted

_SHARDS_LOOKED_AT = 64  # to say what a run will need of the disk

Observer: TypeAlias = Callable[[Callable[[], Statistics]], Coroutine[None, None, None]]
"""Watches a run: a coroutine function that may ask for statistics as often as it likes, until it is cancelled."""


Change: TypeAlias = Callable[[Job], Job]
"""What is to be done otherwise than in an earlier run: its job in, the new one out."""


def run(job: Job, observe: Observer | None = None) -> Report:
    """Do a job, on an event loop of its own.

    Args:
        job: What to do.
        observe: Watches while it runs.

    Returns:
        What was done. Faults of the web are in it, not raised.

    Raises:
        DatafetchError: The job or its manifest is wrong, or this machine ran out of something.
        KeyboardInterrupt: Ctrl-C; the same job goes on from there.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(fetch_dataset(job, observe))


async def fetch_dataset(job: Job, observe: Observer | None = None) -> Report:
    """Do a job inside a running event loop, of any kind; otherwise like ``run``."""
    started_s = time.monotonic()
    dataset = find_dataset(job.dataset)
    manifest = await asyncio.to_thread(dataset.bind, Path(job.source), Path(job.ids) if job.ids else None)
    spec = job.image or ImageSpec(short_side_px=dataset.short_side_px)
    identity = await asyncio.to_thread(identify, job, manifest, spec)
    state = State(Path(job.out), Path(job.scratch) if job.scratch else None, hash_of(identity))
    take = partial(take_for_job, state, identity, asked_of(job, spec), fresh=job.fresh)
    async with claimed(state, take):
        shards = [shard.name for shard in manifest.shards()]
        await asyncio.to_thread(_say_need, state, job, manifest, spec)
        work = _Work(job, spec, Feed(manifest, state, job.limit), Output(dataset, state, job.payload), shards)
        await work.do(observe)
        report = await asyncio.to_thread(work.report, started_s)
        report = replace(report, selection=await asyncio.to_thread(_selection, manifest, work, job.limit))
        await asyncio.to_thread(write_atomically, state.report, _json(report.summary()))
    return report


def retry(
    out: str, wanted: Wanted | None = None, *, change: Change | None = None, observe: Observer | None = None
) -> Report:
    """Try again what failed, on an event loop of its own.

    Args:
        out: The output of an earlier run that is complete.
        wanted: Which failures; None is those that may pass.
        change: What is to be done otherwise than in that run, as far as the rows don't depend on it.
        observe: Watches while it runs.

    Returns:
        What was done.

    Raises:
        DatafetchError: There is no such run, or this machine ran out of something.
        KeyboardInterrupt: Ctrl-C; the same call goes on from there.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(retry_failed(out, wanted, change=change, observe=observe))


async def retry_failed(
    out: str, wanted: Wanted | None = None, *, change: Change | None = None, observe: Observer | None = None
) -> Report:
    """Try again what failed, inside a running event loop, of any kind; otherwise like ``retry``."""
    started_s = time.monotonic()
    wanted = wanted or Wanted()
    job, identity = await asyncio.to_thread(read_job, State(Path(out)))
    job = replace((change or _unchanged)(job), out=out)
    dataset = find_dataset(job.dataset)
    shards = list(identity["shards"])
    state = State(Path(out), Path(job.scratch) if job.scratch else None, f"{hash_of(identity)}-retry")
    async with claimed(state, partial(_refuse_incomplete, state)):
        number = await asyncio.to_thread(_begin_retry, state, wanted, shards)
        output = Output(dataset, state, job.payload, Retry(number, wanted))
        assert output.retry is not None
        source = await asyncio.to_thread(FailedSamples, output, output.retry, shards)
        before = await asyncio.to_thread(_totals, state, shards)
        work = _Work(job, job.image or ImageSpec(), Feed(source, state), output, shards)
        await work.do(observe)
        report = replace(await asyncio.to_thread(work.report, started_s), reused=before.ok, retried=work.ended)
        await asyncio.to_thread(write_atomically, state.report, _json(report.summary()))
        await asyncio.to_thread(state.retry.unlink)
    return report


class _Work:
    """What a run and a retry have in common: fetch what the feed hands out, then make the shards equal."""

    def __init__(self, job: Job, spec: ImageSpec, feed: Feed, output: Output, shards: list[str]) -> None:
        self.shards = shards
        self.output = output
        self.ended = 0
        self._job = job
        self._spec = spec
        self._feed = feed
        self._fetched: FetchStatistics | None = None
        self._written_bytes = 0
        self._resharding: Progress | None = None

    async def do(self, observe: Observer | None) -> None:
        """Work until the output is as the job wants it."""
        job, state = self._job, self.output.state
        budget = BodyBudget(job.memory_bytes)
        async with (
            Fetcher(job.fetch, budget=budget) as fetch,
            Transcoder(self._spec, processes=job.processes, quarantine=state.quarantine) as transcode,
        ):
            pipeline = Pipeline(self._feed, self.output, fetch=fetch, transcode=transcode, budget=budget)
            with _one_error():
                async with asyncio.TaskGroup() as group:
                    statistics = partial(self._statistics, pipeline)
                    watching = [group.create_task(beat(statistics, state))]
                    if observe is not None:
                        watching.append(group.create_task(observe(statistics)))
                    await pipeline.run()
                    await self._make_equal()
                    for watch in watching:
                        watch.cancel()
        self._fetched = fetch.statistics()
        self.ended = pipeline.ended
        self._written_bytes = pipeline.published_bytes

    def report(self, started_s: float) -> Report:
        """What was done, and how the output stands."""
        known, state = self._feed.published, self.output.state
        totals = {shard: known.get(shard) or read_totals(state.ledger(shard)) for shard in self.published()}
        equal = read_arrangement(self.output.state)
        fetched = self._fetched
        assert fetched is not None, "there is something to report once it is done"
        return Report(
            dataset=self.output.dataset.name,
            out=self._job.out,
            totals=Totals.sum(totals.values()),
            shards=len(equal.files) if equal else sum(part.rows > 0 for part in totals.values()),
            reused=self._feed.reused[OK],
            fetched_bytes=fetched.fetched_bytes,
            written_bytes=self._written_bytes,
            requests=fetched.attempts,
            connections=fetched.connections,
            elapsed_s=time.monotonic() - started_s,
            equal=None if equal is None else equal.for_ranks(),
        )

    def published(self) -> list[str]:
        """The shards that have a ledger: all, unless a limit left some out."""
        return [shard for shard in self.shards if self.output.state.ledger(shard).exists()]

    def _statistics(self, pipeline: Pipeline) -> Statistics:
        return replace(pipeline.statistics(), resharding=self._resharding)

    async def _make_equal(self) -> None:
        """Make the shards equal in a thread, and stop it when this is cancelled: its work is kept."""
        plan = equal_plan(self._job, self.output.dataset.loader)
        if plan is None:
            return
        watch = Watch(tell=self._tell, stop=threading.Event())
        work = asyncio.create_task(
            asyncio.to_thread(lambda: make_equal(self.output.state, self.published(), plan, watch))
        )
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            watch.stop.set()
            await asyncio.wait([work])
            raise

    def _tell(self, progress: Progress) -> None:
        self._resharding = progress


def _say_need(state: State, job: Job, manifest: Manifest, spec: ImageSpec) -> None:
    samples = manifest.most_samples()
    if job.limit is not None:
        samples = min(samples, job.limit)
    shards = manifest.shards()
    need = Need(
        samples=samples,
        spec=spec,
        payload=job.payload,
        is_made_equal=equal_plan(job, find_dataset(job.dataset).loader) is not None,
        open_samples=samples * MAX_OPEN_SHARDS // max(1, len(shards)),
    )
    say_need(state, need, _published(state, [shard.name for shard in shards]))


def _published(state: State, shards: list[str]) -> Totals:
    """About what is there already, by the books of some shards: there may be tens of thousands."""
    published = [shard for shard in shards if state.ledger(shard).exists()]
    looked_at = _totals(state, published[:_SHARDS_LOOKED_AT])
    scale = len(published) / max(1, min(len(published), _SHARDS_LOOKED_AT))
    return Totals(
        samples=round(looked_at.samples * scale),
        rows=round(looked_at.rows * scale),
        written_bytes=round(looked_at.written_bytes * scale),
    )


def _totals(state: State, shards: list[str]) -> Totals:
    """The books of all shards that are published."""
    return Totals.sum(read_totals(path) for path in map(state.ledger, shards) if path.exists())


def _selection(manifest: Manifest, work: _Work, limit: int | None) -> Selection | None:
    """What became of the id list, by the ledgers; a limited run has not looked everywhere."""
    state = work.output.state
    keys = chain.from_iterable(read_keys(state.ledger(shard)) for shard in work.published())
    selection = manifest.selection(keys)
    if selection is None or limit is None:
        return selection
    return replace(selection, not_found=None)


def _refuse_incomplete(state: State) -> None:
    if not state.report.exists():
        raise ConfigurationError(
            f"{state.out} is not complete; run the command that began it once more, and then retry"
        )
    refuse_missing_files(state)


def _begin_retry(state: State, wanted: Wanted, shards: list[str]) -> int:
    """The number of this retry; that of the one that was interrupted, if it was of the same.

    Raises:
        ConfigurationError: A retry of other failures was interrupted, or one that had its spools elsewhere.
    """
    kinds = None if wanted.kinds is None else sorted(wanted.kinds)
    if state.retry.exists():
        before = orjson.loads(state.retry.read_bytes())
        if before["kinds"] != kinds:
            how = "without --kinds" if before["kinds"] is None else f"with --kinds {','.join(before['kinds'])}"
            raise ConfigurationError(f"a retry of {state.out} was interrupted; complete it first, {how}")
        earlier = Path(before["scratch"]) if before.get("scratch") else None
        refuse_left_spools(state, earlier, otherwise="delete that folder to fetch them again")
        number = int(before["number"])
    else:
        ledgers = [path for path in map(state.ledger, shards) if path.exists()]
        number = 1 + max((read_books(path).retry for path in ledgers), default=0)
    scratch = None if state.scratch is None else str(state.scratch.absolute())
    write_atomically(state.retry, _json({"number": number, "kinds": kinds, "scratch": scratch}))
    return number


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


def _unchanged(job: Job) -> Job:
    return job


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
