"""Tasks pull samples, fetch and transcode their images, and publish complete shards.

There is no queue between the stages: a free task pulls the next sample, and that is the backpressure. A task that waits
for a host slot, a retry, memory or the codec holds no connection, so there are several tasks per connection.
"""

from __future__ import annotations

import asyncio
import time

from datafetch.engine.feed import MAX_OPEN_SHARDS, Feed, NextSample, OpenShard
from datafetch.engine.fetch_sample import SampleFetcher
from datafetch.engine.image_source import ImageSource
from datafetch.errors import ConservationError
from datafetch.fetch import BodyBudget
from datafetch.model.advice import FailedAlike
from datafetch.model.image_interfaces import ImageTranscoder
from datafetch.model.outcome import OK, FailureKind
from datafetch.model.statistics import Statistics
from datafetch.output.commit import Commit, CommitShard
from datafetch.output.merge import Output

TASKS_PER_CONNECTION = 4
_SYNC_INTERVAL_S = 5.0  # if the machine crashes, the results of these seconds are lost
_MIN_TASKS = 1024  # so that the samples of one slow host don't fill the look-ahead, however few the connections


class Pipeline:
    """Fetches, transcodes and publishes everything that a feed hands out.

    Args:
        feed: Where the samples come from.
        output: How records become rows, and where they go.
        source: image → body or Failure.
        transcode: body → Encoded or Failure.
        commit: Commits a shard whose images all have an outcome.
        budget: The memory budget for bodies.
    """

    def __init__(
        self,
        feed: Feed,
        output: Output,
        *,
        source: ImageSource,
        transcode: ImageTranscoder,
        commit: CommitShard,
        budget: BodyBudget,
    ) -> None:
        self.published_bytes = 0
        self._feed = feed
        self._output = output
        self._fetch = source.fetch
        self._transcode = transcode
        self._commit = commit
        self._fetcher = SampleFetcher(
            output,
            source=source,
            transcode=transcode,
            budget=budget,
            retries=source.fetch.retries > 0,
            have_arrived_before=lambda: feed.ended_before[OK] > 0,
        )
        self._in_flight = source.call_limiter(TASKS_PER_CONNECTION)
        self._tasks = 0
        self._committing = asyncio.Semaphore(MAX_OPEN_SHARDS)
        self._started_s = time.monotonic()

    async def run(self) -> None:
        """Work until all shards are published.

        Raises:
            DatafetchError: What stopped the run. The results of images that have ended are in the spools.
            ConservationError: The manifest yielded fewer samples than it had counted.
        """
        try:
            async with asyncio.TaskGroup() as group:
                syncing = group.create_task(self._sync_spools())
                async with asyncio.TaskGroup() as working:
                    self._start_task(working)
                syncing.cancel()
        finally:
            self._fetcher.dedup.close()
            await self._feed.close()
        if self._feed.open_shards:
            names = ", ".join(sorted(shard.shard.name for shard in self._feed.open_shards))
            raise ConservationError(f"the manifest ended before these shards were complete: {names}")
        self._fetcher.first_outcomes.end()

    @property
    def ended(self) -> int:
        """Number of images that got an outcome in this run."""
        return self._fetcher.outcomes.total()

    @property
    def ended_ok(self) -> int:
        """Number of images that got the outcome ``ok`` in this run."""
        return self._fetcher.outcomes[OK]

    @property
    def failed_alike(self) -> FailedAlike | None:
        """How all images that were requested in this run have failed; None unless all did, and alike."""
        return self._fetcher.first_outcomes.failed_alike

    @property
    def not_requested(self) -> int:
        """Number of images in this run that were not requested because their document was lost."""
        return self._fetcher.outcomes[FailureKind.NOT_REQUESTED]

    @property
    def arrived(self) -> int:
        """Number of images that were fetched in this run."""
        return self.ended_ok - self._fetcher.repeated - self._fetcher.adopted

    @property
    def repeated(self) -> int:
        """Number of images in this run that reused the result of an earlier request for the same URL."""
        return self._fetcher.repeated

    @property
    def adopted(self) -> int:
        """Number of images in this run that were in their place already."""
        return self._fetcher.adopted

    def statistics(self) -> Statistics:
        """A snapshot of the run."""
        fetching = self._fetch.statistics()
        outcomes = self._fetcher.outcomes + self._feed.ended_before
        expected = self._feed.expected_images()
        return Statistics(
            expected_images=expected,
            ok=outcomes[OK],
            failed=outcomes.total() - outcomes[OK],
            earlier=self._feed.ended_before.total(),
            shards=self._feed.shards,
            shards_published=len(self._feed.published),
            fetched_bytes=fetching.fetched_bytes,
            connections=fetching.connections,
            open_requests=fetching.open_requests,
            elapsed_s=time.monotonic() - self._started_s,
            waiting=fetching.waiting,
            transcoding=self._fetcher.transcoding,
        )

    def _start_task(self, working: asyncio.TaskGroup) -> None:
        if self._tasks < max(_MIN_TASKS, self._fetch.max_connections * TASKS_PER_CONNECTION):
            self._tasks += 1
            working.create_task(self._work(working))

    async def _work(self, working: asyncio.TaskGroup) -> None:
        """Process samples until there are no more; start the next task as soon as this one has work.

        So there are as many tasks as samples in flight and one that waits, not thousands from the start.
        """
        has_started_next = False
        while True:
            async with self._in_flight:
                next_sample = await self._feed.pull()
                if next_sample is None:
                    return
                if not has_started_next:
                    has_started_next = True
                    self._start_task(working)
                await self._process(next_sample)

    async def _sync_spools(self) -> None:
        while True:
            await asyncio.sleep(_SYNC_INTERVAL_S)
            await self._feed.sync()

    async def _process(self, next_sample: NextSample) -> None:
        """Process a sample, and publish its shard if it was the last."""
        if next_sample.sample is None:
            await self._publish(next_sample.shard)
            return
        await self._fetcher.fetch_sample(next_sample.shard, next_sample.sample)
        if self._feed.mark_ended(next_sample):
            await self._publish(next_sample.shard)

    async def _publish(self, shard: OpenShard) -> None:
        await shard.spool.sync()
        samples = shard.samples + shard.published_before
        commit = Commit(self._output, shard.shard.name, samples, shard.notes, shard.row_numbers)
        async with self._committing:
            totals = await self._commit(commit)
        self.published_bytes += totals.written_bytes
        await self._fetcher.dedup.retain(shard.spool)
        await self._feed.close_published(shard, totals)
