"""The process of a worker, which fetches the samples that the coordinator hands it.

Its standard input is a socket to the coordinator, over which all messages go (``messages``); the first thing that comes
is a pickled ``WorkerStartup``, behind its length. A worker ends when it is told that there are no more samples, when it
can't go on, which it says first, or when the coordinator is gone. Results are in its spools before it reports them, so
that nothing is lost with it but what is in flight.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from itertools import count

import uvloop

from datafetch.engine.dedup import MAX_RETAINED_BYTES, SHARE_OF_FREE_BYTES, ReadableSpools, UrlTable
from datafetch.engine.fetch_sample import SampleFetcher
from datafetch.engine.finish_by import loop_time_of
from datafetch.engine.first_outcomes import OutcomeComparison
from datafetch.engine.image_counts import ImageCounts
from datafetch.engine.opened_meanwhile import opened_meanwhile
from datafetch.engine.reach import count_answered
from datafetch.engine.sample_tasks import SYNC_INTERVAL_S, SampleTasks
from datafetch.engine.workers.channel import Channel
from datafetch.engine.workers.mesh import Mesh
from datafetch.engine.workers.messages import (
    Failed,
    Finished,
    FromWorker,
    Limit,
    Listens,
    Logged,
    PeerListens,
    Ready,
    Samples,
    ShardFollows,
    ShardPublished,
    Stop,
    ToWorker,
    TriedUrls,
    TryUrls,
    WorkerStatistics,
)
from datafetch.engine.workers.received_samples import ReceivedSamples
from datafetch.engine.workers.shared_urls import SharedUrls
from datafetch.engine.workers.startup import LENGTH_BYTES, SampleToFetch, WorkerStartup, unpickle_samples
from datafetch.errors import DatafetchError, ResourceError, is_exhaustion
from datafetch.fetch import BodyBudget, Fetcher
from datafetch.fetch.requester import Sharing
from datafetch.model.observers import root_error
from datafetch.process.allocator import collect_garbage_rarely, return_freed_memory
from datafetch.process.child import end_with_parent
from datafetch.transcode import Transcoder

_STATISTICS_INTERVAL_S = 0.5  # as a line of progress may be shown several times a second


class _CoordinatorGoneError(Exception):
    """The coordinator has ended, or stops the run."""


def main() -> None:
    """Run the process."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator tells when to stop
    collect_garbage_rarely()
    return_freed_memory()
    connection = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(connection))


async def _run(connection: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    try:
        length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "little")
        startup: WorkerStartup = pickle.loads(await reader.readexactly(length))  # noqa: S301 - from the parent process
    except (asyncio.IncompleteReadError, ConnectionError):
        return
    channel: Channel[FromWorker, ToWorker] = Channel(reader, writer, ToWorker)
    _log_to(channel, startup.log_level)
    try:
        await _work(startup, channel)
    except BaseExceptionGroup as errors:
        if errors.subgroup(_CoordinatorGoneError) is not None:  # which says why, if there is anything else to say
            return
        error = root_error(errors)
        if is_exhaustion(error):
            error = ResourceError.from_exhaustion(error)
        if not isinstance(error, DatafetchError):
            raise
        channel.send(Failed(type(error).__name__, _escaped(str(error))))
        await channel.drain()


async def _work(startup: WorkerStartup, channel: Channel[FromWorker, ToWorker]) -> None:
    access, job = startup.access, startup.access.job
    spools = ReadableSpools(
        startup.worker,
        max_retained_bytes=MAX_RETAINED_BYTES // startup.workers,
        share_of_free=SHARE_OF_FREE_BYTES / startup.workers,
    )
    budget = BodyBudget(job.memory_bytes, count(startup.first_image + startup.worker, startup.workers))
    compared, urls = OutcomeComparison(), UrlTable()
    async with asyncio.TaskGroup() as group, Mesh(startup.worker, startup.workers, urls, spools, group) as mesh:
        dedup = SharedUrls(mesh, urls, spools)
        samples = ReceivedSamples(startup.worker, access.output.layout, channel, dedup)
        steering = _Steering(channel, group)
        listening = group.create_task(_listen(channel, mesh, samples, steering))
        channel.send(Listens(mesh.address))
        async with (
            Fetcher(job.fetch, budget=budget, sharing=Sharing(startup.workers, mesh.share_hosts)) as fetch,
            opened_meanwhile(
                Transcoder(access.spec, processes=job.processes, quarantine=access.output.layout.quarantine)
            ) as transcode,
            access.open(fetch, loop_time_of(job.finish_by)) as source,
        ):
            fetcher = SampleFetcher(
                access.output,
                source=source,
                transcode=transcode,
                budget=budget,
                dedup=dedup,
                compare=compared.add,
            )
            steering.begin(fetch)
            await mesh.wait_until_connected()
            channel.send(Ready(fetch.unused_proxy, fetch.used_proxies))
            report = partial(_report_statistics, channel, fetch, fetcher, compared)
            background = [group.create_task(_repeat(report)), group.create_task(_sync_spools(samples))]
            samples.begin()
            try:
                await SampleTasks(samples.pull, partial(_process, samples, fetcher), source).run()
            finally:
                for task in background:  # before the fetcher is closed, which has no statistics then
                    task.cancel()
                await samples.close()
                dedup.close()
            report()
        channel.send(Finished())
        await channel.drain()
        await asyncio.wait([listening])  # until the coordinator closes the connection: others may still need this one


async def _process(samples: ReceivedSamples, fetcher: SampleFetcher, one: SampleToFetch) -> None:
    spool, images = await samples.spool_of(one.shard), ImageCounts()
    await fetcher.fetch_sample(spool, one.sample, one.ended, one.jpeg_bytes, images)
    samples.report_ended(one, images)


class _Steering:
    """Does what the coordinator says of limits, and of URLs to try."""

    def __init__(self, channel: Channel[FromWorker, ToWorker], group: asyncio.TaskGroup) -> None:
        self._channel = channel
        self._group = group
        self._fetch: Fetcher | None = None
        self._limit: Limit | None = None

    def begin(self, fetch: Fetcher) -> None:
        """Begin, with what has been said until now."""
        self._fetch = fetch
        if self._limit is not None:
            self.limit_to(self._limit)

    def limit_to(self, limit: Limit) -> None:
        """Set other limits."""
        self._limit = limit
        if self._fetch is not None:
            self._fetch.limit_to(limit.per_host, limit.max_rate_bytes_per_s)

    def try_urls(self, urls: list[bytes]) -> None:
        """Begin to request URLs."""
        self._group.create_task(self._try_urls([url.decode("utf-8", "surrogatepass") for url in urls]))

    async def _try_urls(self, urls: list[str]) -> None:
        answers = None if self._fetch is None else await count_answered(self._fetch, urls)
        self._channel.send(TriedUrls(answers))


async def _listen(
    channel: Channel[FromWorker, ToWorker], mesh: Mesh, samples: ReceivedSamples, steering: _Steering
) -> None:
    while messages := await channel.receive():
        for message in messages:
            match message:
                case Samples():
                    samples.add(unpickle_samples(message.pickled))
                case ShardFollows():
                    samples.open_shard(message.shard, message.name)
                case ShardPublished():
                    await samples.close_shard(message.shard)
                case PeerListens():
                    mesh.connect(message.worker, message.address)
                case Limit():
                    steering.limit_to(message)
                case TryUrls():
                    steering.try_urls(message.urls)
                case Stop():
                    samples.stop()
                    mesh.stop_waiting()
    raise _CoordinatorGoneError


def _report_statistics(
    channel: Channel[FromWorker, ToWorker], fetch: Fetcher, fetcher: SampleFetcher, compared: OutcomeComparison
) -> None:
    now = fetch.statistics()
    channel.send(
        WorkerStatistics(
            requests=now.attempts,
            fetched_bytes=now.fetched_bytes,
            connections=now.connections,
            open_requests=now.open_requests,
            peak_open_requests=now.peak_open_requests,
            transcoding=fetcher.transcoding,
            waiting=now.waiting,
            compared=compared,
            unreached=[url.encode("utf-8", "surrogatepass") for url in fetch.unreached],
            per_host=fetch.per_host,
            is_within_limits=fetch.is_within_limits,
        )
    )


async def _repeat(report: Callable[[], None]) -> None:
    while True:
        report()
        await asyncio.sleep(_STATISTICS_INTERVAL_S)


async def _sync_spools(samples: ReceivedSamples) -> None:
    while True:
        await asyncio.sleep(SYNC_INTERVAL_S)
        await samples.sync()


def _escaped(text: str) -> str:
    """A text that a message may have, without the lone surrogates of a path that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


class _LogHandler(logging.Handler):
    """Sends what is logged to the coordinator, which logs it as its own."""

    def __init__(self, channel: Channel[FromWorker, ToWorker], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._channel = channel
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        """Send a message, from any thread."""
        message = Logged(record.name, record.levelno, _escaped(self.format(record)))
        try:
            self._loop.call_soon_threadsafe(self._channel.send, message)
        except RuntimeError:  # the loop is closed
            self.handleError(record)


def _log_to(channel: Channel[FromWorker, ToWorker], level: int) -> None:
    logger = logging.getLogger("datafetch")
    logger.addHandler(_LogHandler(channel, asyncio.get_running_loop()))
    logger.setLevel(level)
    logger.propagate = False
