"""Publisher: publishes shards whose samples have all ended, a few at a time."""

from __future__ import annotations

import asyncio

from datafetch.engine.feed import MAX_OPEN_SHARDS, Feed, OpenShard
from datafetch.model.ledger_line import ShardCounts
from datafetch.output.commit import Commit, CommitShard
from datafetch.output.merge import Output


class Publisher:
    """Publishes the shards of a run.

    Args:
        feed: Where the shards come from.
        output: How records become rows, and where they go.
        commit: Commits a shard whose images all have an outcome.

    Attributes:
        published_bytes: The size of the files that were published.
    """

    def __init__(self, feed: Feed, output: Output, commit: CommitShard) -> None:
        self.published_bytes = 0
        self._feed = feed
        self._output = output
        self._commit = commit
        self._committing = asyncio.Semaphore(MAX_OPEN_SHARDS)

    async def commit(self, shard: OpenShard) -> ShardCounts:
        """Commit a shard whose samples have all ended, and return its counts.

        The caller then passes these to ``Feed.close_published``, when nothing writes to the shard's spools any more.

        Raises:
            ResourceError: The disk is full or can't be written.
            ConservationError: Samples or images were lost or counted twice; nothing was published.
        """
        await shard.spool.sync()  # that of this process; those of workers need not be on disk, for the shard soon is
        samples = shard.samples + shard.published_before
        async with self._committing:
            totals = await self._commit(Commit(self._output, shard.shard.name, samples, shard.notes, shard.row_numbers))
        self.published_bytes += totals.written_bytes
        return totals
