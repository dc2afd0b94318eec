"""ReceivedSamples: the samples that the coordinator hands to a worker, and the spools that their results go to.

Rules: a worker asks for more samples than it has room for, so that a free task need not wait for the coordinator; but
only for few, because what it has is not for others. What has ended is reported several times a second, so that a report
is of many samples where there are many; the spools have them already.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import AsyncExitStack

from datafetch.engine.dedup import Deduplicator
from datafetch.engine.image_counts import ImageCounts
from datafetch.engine.workers.channel import Channel
from datafetch.engine.workers.messages import Ended, FromWorker, ToWorker, Wants
from datafetch.engine.workers.startup import SampleToFetch
from datafetch.store.layout import OutputLayout
from datafetch.store.spool import Spool

_LOOK_AHEAD_SAMPLES = 96  # a tenth of a second's work of a fast loop, for the way to the coordinator and back
_WANTED_AT_A_TIME = 32  # each time costs both processes a message
_REPORT_INTERVAL_S = 0.1  # as long as the last samples of a run take longer to be known as ended


class ReceivedSamples:
    """Hands out what the coordinator has sent, to any number of tasks of one event loop.

    Args:
        worker: The worker's number.
        layout: The paths of the output.
        channel: The connection to the coordinator.
        dedup: Keeps the spools of published shards.
    """

    def __init__(
        self, worker: int, layout: OutputLayout, channel: Channel[FromWorker, ToWorker], dedup: Deduplicator
    ) -> None:
        self._worker = worker
        self._layout = layout
        self._channel = channel
        self._dedup = dedup
        self._samples: deque[SampleToFetch] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_stopped = False
        self._not_wanted = 0
        self._names: dict[int, str] = {}
        self._spools: dict[int, asyncio.Task[Spool]] = {}
        self._ended: list[tuple[int, int]] = []
        self._images = ImageCounts()
        self._loop = asyncio.get_running_loop()

    def begin(self) -> None:
        """Ask for the first samples."""
        self._channel.send(Wants(_LOOK_AHEAD_SAMPLES))

    def open_shard(self, shard: int, name: str) -> None:
        """Take note of a shard of which samples will come."""
        self._names[shard] = name

    def add(self, samples: list[SampleToFetch]) -> None:
        """Take samples from the coordinator."""
        self._samples.extend(samples)
        self._wake(len(samples))

    def stop(self) -> None:
        """Take note that there are no more samples."""
        self._is_stopped = True
        self._wake(len(self._waiting))

    async def pull(self) -> SampleToFetch | None:
        """Wait for the next sample; None if there are no more."""
        while not self._samples:
            if self._is_stopped:
                return None
            waiting = self._loop.create_future()
            self._waiting.append(waiting)
            await waiting
        self._not_wanted += 1
        if self._not_wanted == _WANTED_AT_A_TIME:
            self._channel.send(Wants(self._not_wanted))
            self._not_wanted = 0
        return self._samples.popleft()

    async def spool_of(self, shard: int) -> Spool:
        """The spool of this worker for a shard."""
        opening = self._spools.get(shard)
        if opening is None:
            path = self._layout.worker_spool(self._names[shard], self._worker)
            opening = self._spools[shard] = asyncio.create_task(Spool.open(path))
        return await asyncio.shield(opening)

    def report_ended(self, one: SampleToFetch, images: ImageCounts) -> None:
        """Report that a sample has ended, and what became of those of its images that had no outcome before."""
        if not self._ended:
            self._loop.call_later(_REPORT_INTERVAL_S, self._report)
        self._ended.append((one.shard, one.sample.position))
        self._images.merge(images)

    async def close_shard(self, shard: int) -> None:
        """Close the spool of a shard that is published."""
        self._names.pop(shard, None)
        opening = self._spools.pop(shard, None)
        if opening is not None:
            spool = await opening
            await self._dedup.retain(spool)
            await spool.close()

    async def sync(self) -> None:
        """Force the content of all spools onto the disk.

        Raises:
            ResourceError: A spool can't be written.
        """
        for opening in tuple(self._spools.values()):
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                await opening.result().sync()

    async def close(self) -> None:
        """Close all spools, which stay on disk."""
        openings, self._spools = self._spools, {}  # ``close_shard`` may be called meanwhile
        async with AsyncExitStack() as spools:
            for opening in openings.values():
                spools.push_async_callback(_close, opening)

    def _report(self) -> None:
        images = self._images
        self._channel.send(Ended(self._ended, images.outcomes, images.repeated, images.adopted))
        self._ended = []
        self._images = ImageCounts()

    def _wake(self, tasks: int) -> None:
        while tasks and self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():  # otherwise its task was cancelled
                waiting.set_result(None)
                tasks -= 1


async def _close(opening: asyncio.Task[Spool]) -> None:
    await asyncio.wait([opening])
    if not opening.cancelled() and opening.exception() is None:
        await opening.result().close()
