"""Pipeline: fetches and transcodes everything that a feed hands out, in this process, and publishes complete shards."""

from __future__ import annotations

import asyncio
import time

from datafetch.engine.dedup import UrlDeduplicator
from datafetch.engine.feed import Feed, NextSample, OpenShard
from datafetch.engine.fetch_sample import SampleFetcher
from datafetch.engine.first_outcomes import FirstOutcomes
from datafetch.engine.image_counts import FetchCounts, ImageCounts
from datafetch.engine.image_source import ImageSource
from datafetch.engine.publish import Publisher
from datafetch.engine.sample_tasks import SYNC_INTERVAL_S, SampleTasks
from datafetch.fetch import BodyBudget
from datafetch.model.image_interfaces import ImageTranscoder
from datafetch.model.outcome import OK
from datafetch.model.statistics import Statistics
from datafetch.output.merge import Output


class Pipeline:
    """Fetches, transcodes and publishes everything that a feed hands out.

    Args:
        feed: Where the samples come from.
        output: How records become rows, and where they go.
        source: image → body or Failure.
        transcode: body → Encoded or Failure.
        publisher: Publishes shards.
        budget: The memory budget for bodies.
    """

    def __init__(
        self,
        feed: Feed,
        output: Output,
        *,
        source: ImageSource,
        transcode: ImageTranscoder,
        publisher: Publisher,
        budget: BodyBudget,
    ) -> None:
        self._feed = feed
        self._fetch = source.fetch
        self._publisher = publisher
        self._dedup = UrlDeduplicator()
        self._first_outcomes = FirstOutcomes(
            source.fetch.unused_proxy,
            source.fetch.used_proxies,
            is_retry=output.retry is not None,
            has_others=lambda: output.is_repair or self._counts.adopted > 0 or feed.ended_before[OK] > 0,
        )
        self._counts = ImageCounts()
        self._fetcher = SampleFetcher(
            output,
            source=source,
            transcode=transcode,
            budget=budget,
            dedup=self._dedup,
            compare=self._first_outcomes.add,
        )
        self._tasks = SampleTasks(feed.pull, self._process, source)
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
                await self._tasks.run()
                syncing.cancel()
        finally:
            self._dedup.close()
            await self._feed.close()
        self._feed.refuse_open_shards()
        self._first_outcomes.end()

    def counts(self) -> FetchCounts:
        """What was done."""
        fetching = self._fetch.statistics()
        return FetchCounts(
            images=self._counts,
            requests=fetching.attempts,
            fetched_bytes=fetching.fetched_bytes,
            connections=fetching.connections,
            peak_open_requests=fetching.peak_open_requests,
            failed_alike=self._first_outcomes.failed_alike,
            networks=self._first_outcomes.networks,
        )

    def statistics(self) -> Statistics:
        """A snapshot of the run."""
        fetching = self._fetch.statistics()
        outcomes = self._counts.outcomes + self._feed.ended_before
        return Statistics(
            expected_images=self._feed.expected_images(),
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

    async def _sync_spools(self) -> None:
        while True:
            await asyncio.sleep(SYNC_INTERVAL_S)
            await self._feed.sync()

    async def _process(self, next_sample: NextSample) -> None:
        """Process a sample, and publish its shard if it was the last."""
        shard = next_sample.shard
        if next_sample.sample is not None:
            ended, jpeg_bytes = shard.spool.recovered.of_sample(next_sample.sample)
            await self._fetcher.fetch_sample(shard.spool, next_sample.sample, ended, jpeg_bytes, self._counts)
            if not self._feed.mark_ended(next_sample):
                return
        await self._publish(shard)

    async def _publish(self, shard: OpenShard) -> None:
        totals = await self._publisher.commit(shard)
        await self._dedup.retain(shard.spool)
        await self._feed.close_published(shard, totals)
