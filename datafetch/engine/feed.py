"""Feed: hands out the samples of all shards, in manifest order, to tasks that are free for the next one.

A shard passes through these states, and never back:

* unopened. The feed opens the next one when it has handed out everything that it has read, and there is room for
  another open shard. A shard that is published is counted and skipped. If it is published but lacks files, its ledger
  is deleted and it is opened like a new one.
* being read, at most one at a time. Its spool is open, and its samples are read in chunks, each when the one before is
  handed out. Samples that ended in an earlier run are in the spool, and are not handed out.
* fully handed out, and waiting for its last samples. ``mark_ended`` tells the task that ends the last one, so that
  exactly one task publishes the shard. If the spool has all samples already, one task gets the shard without a sample,
  to the same end.
* published and closed, which makes room for another shard.

One task at a time pulls; the others wait for a lock. So samples are handed out in order, and if there is no room, all
tasks wait. No deadlock can come of that: room is made by tasks that have pulled already, and these never wait for the
feed before their sample has ended and its shard, if it was the last, is published.

Rules: memory is bounded whatever the size of the manifest: by the number of open shards (a few, or as many small ones
as have few samples together), by the number and size of the samples that are read ahead, and by the size of those that
are handed out and have not ended. Only a single sample that is larger by itself may exceed the bounds. Files are read
in a thread.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

from datafetch.engine.completeness import recover_published
from datafetch.errors import ConservationError
from datafetch.model.at_hand import AtHand, is_at_hand
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.manifest import ShardSource
from datafetch.model.sample import Sample, Shard
from datafetch.process.threads import run_in_thread
from datafetch.store.layout import OutputLayout
from datafetch.store.spool import Spool

MAX_OPEN_SHARDS = 4
"""Shards of any size that may be open: one being read, one or two waiting for stragglers, one being committed."""
MAX_OPEN_SAMPLES = 16_384
"""More shards may be open while they have fewer samples together; tasks outnumber the documents of a small shard."""
_MAX_OPEN_SMALL_SHARDS = 64  # of two descriptors each; shards of 300 samples reach the bound on samples before
_CHUNK_SAMPLES = 256  # a second's work: a chunk costs a thread hop and, in a sparse manifest, the decoding of many rows
_CHUNK_BYTES = 16 * 1024 * 1024  # 256 published documents have some 10 MiB; a line of a manifest may have 64
_MAX_HANDED_OUT_BYTES = 128 * 1024 * 1024  # four thousand published documents

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


@dataclass(slots=True, eq=False)
class OpenShard:
    """A shard in progress.

    Attributes:
        shard: The shard.
        spool: Its spool.
        samples: The number of its samples that are to end, in this run or before.
        published_before: The number of other samples, which are published already and stay as they are.
        samples_left: The number of its samples that have not ended.
        notes: What was counted while its samples were scanned, by ``CounterName``.
        row_numbers: Which of its rows are selected; None selects all.
    """

    shard: Shard
    spool: Spool
    samples: int
    published_before: int
    samples_left: int
    notes: Mapping[str, int]
    row_numbers: frozenset[int] | None

    def mark_ended(self) -> bool:
        """Count one more sample as ended; return whether it was the last."""
        self.samples_left -= 1
        return self.samples_left == 0


@dataclass(frozen=True, slots=True)
class NextSample:
    """The next sample and its shard.

    Attributes:
        shard: The shard.
        sample: The sample; None if the shard's spool has all samples already, so that it only has to be published.
        held_bytes: About how much memory the sample takes.
    """

    shard: OpenShard
    sample: Sample | None
    held_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SuppliedShard:
    """A shard that is handed to this process while it is at work.

    Attributes:
        name: Its name.
        limit: The number of its samples, from the first, to fetch; None for all.
    """

    name: str
    limit: int | None = None


class ShardSupply(Protocol):
    """Hands shards to a feed, one at a time, where it is not known before the work begins which these are."""

    async def next_shard(self) -> SuppliedShard | None:
        """Wait for the next shard; None if there are no more."""

    async def published(self, shard: str) -> None:
        """Called when a shard is published, by this process or by an earlier one."""


class Feed:
    """Hands out samples to any number of tasks of one event loop.

    A task pulls a sample, sees to it that it ends, and calls ``mark_ended``; if that returns True, the task publishes
    the shard and calls ``close_published``.

    Args:
        source: Where the shards and samples come from.
        layout: The paths of the output.
        limit: The number of samples, from the first of the manifest, after which no more are handed out; None for all.
        shards: The names of the shards to hand out; None for all. The samples of others count towards the limit.
        image_root: The folder of images that are looked for in their places; None if they are fetched.
        supply: Hands out the shards, in place of ``limit`` and ``shards``. It is asked for one whenever there is room
            for another, so that a slow process takes fewer.

    Attributes:
        open_shards: The shards in progress.
        published: The counts of the shards that are published, by name.
        ended_before: The number of images that ended before this run, by outcome.
        at_hand: Has the content of a published file on this machine while what a shard has left is read.
    """

    def __init__(
        self,
        source: ShardSource,
        layout: OutputLayout,
        limit: int | None = None,
        shards: Collection[str] | None = None,
        image_root: Path | None = None,
        supply: ShardSupply | None = None,
    ) -> None:
        self.open_shards: set[OpenShard] = set()
        self.published: dict[str, ShardCounts] = {}
        self.ended_before: Counter[str] = Counter()
        self.at_hand: AtHand = is_at_hand
        self._source = source
        self._layout = layout
        self._limit = limit
        self._image_root = image_root
        self._all_shards = source.shards()
        self._by_name = {shard.name: shard for shard in self._all_shards if shards is None or shard.name in shards}
        self._supply = supply
        self._supplied_limits: dict[str, int | None] = {}
        self._shards = {} if supply is not None else self._by_name
        self._unopened = deque(self._shards.values() if limit is None else self._all_shards)
        self._counted_size = 0
        self._counted_samples = 0
        self._seen = _Seen()
        self._reading: tuple[OpenShard, Iterator[Sample]] | None = None
        self._read_ahead: deque[NextSample] = deque()
        # One thread of our own: on the shared ones each read leaves its fragments in another thread's arena.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="manifest")
        self._pull_lock = asyncio.Lock()
        self._shard_closed = asyncio.Event()
        self._handed_out_bytes = 0
        self._sample_ended = asyncio.Event()

    @property
    def shards(self) -> int:
        """The number of shards to hand out."""
        return len(self._shards)

    async def pull(self) -> NextSample | None:
        """Wait for the next sample, in manifest order; None if there are no more.

        Raises:
            ManifestError: A manifest file can't be read.
            ResourceError: A spool can't be opened.
        """
        async with self._pull_lock:
            while not self._read_ahead:
                if self._reading is not None:
                    await self._read_next_chunk(*self._reading)
                elif self._unopened and self._counted_samples != self._limit:
                    shard = self._unopened.popleft()
                    await (self._open_next(shard) if shard.name in self._shards else self._count_samples(shard))
                elif not await self._is_supplied():
                    return None
            await self._wait_for_memory(self._read_ahead[0].held_bytes)
            next_sample = self._read_ahead.popleft()
            self._handed_out_bytes += next_sample.held_bytes
            return next_sample

    def mark_ended(self, next_sample: NextSample) -> bool:
        """Count a sample as ended; return whether it was the last of its shard, which is then to be published."""
        self._handed_out_bytes -= next_sample.held_bytes
        self._sample_ended.set()
        return next_sample.shard.mark_ended()

    async def close_published(self, shard: OpenShard, totals: ShardCounts) -> None:
        """Delete the spools of a shard that has been published, and make room for another shard."""
        await shard.spool.close()
        await run_in_thread(self._layout.delete_spools, shard.shard.name)
        self.published[shard.shard.name] = totals
        self.open_shards.remove(shard)
        self._shard_closed.set()
        if self._supply is not None:
            await self._supply.published(shard.shard.name)

    async def sync(self) -> None:
        """Force the content of all spools onto the disk.

        Raises:
            ResourceError: A spool can't be written.
        """
        for shard in tuple(self.open_shards):
            await shard.spool.sync()

    async def close(self) -> None:
        """Close all spools, which stay for the next run, and the reading thread."""
        self._reader.shutdown(wait=False)
        async with AsyncExitStack() as spools:
            for shard in self.open_shards:
                spools.push_async_callback(shard.spool.close)

    def refuse_open_shards(self) -> None:
        """Check that no shard is left when there are no more samples.

        Raises:
            ConservationError: The manifest yielded fewer samples than it had counted.
        """
        if self.open_shards:
            names = ", ".join(sorted(shard.shard.name for shard in self.open_shards))
            raise ConservationError(f"the manifest ended before these shards were complete: {names}")

    def expected_samples(self) -> int | None:
        """The number of samples: exact once all shards are counted, else what the manifest expects or a projection."""
        size = sum(shard.size for shard in self._shards.values())
        if not self._unopened and self._counted_size == size:
            return self._counted_samples
        expected = self._source.expected_samples()
        if expected is not None and len(self._shards) < len(self._all_shards):
            expected = round(expected * size / max(1, sum(shard.size for shard in self._all_shards)))
        elif expected is None and self._counted_size:
            expected = round(self._counted_samples * size / self._counted_size)
        if expected is None or self._limit is None:
            return expected
        return min(expected, self._limit)

    def expected_images(self) -> int | None:
        """The approximate number of images, extrapolated from the samples that were read so far."""
        samples = self.expected_samples()
        return None if samples is None else round(samples * self._seen.images_per_sample)

    async def _is_supplied(self) -> bool:
        """Wait for another shard where shards are supplied, once there is room for it; return whether there is one."""
        if self._supply is None:
            return False
        await self._wait_for_room()
        supplied = await self._supply.next_shard()
        if supplied is None:
            return False
        shard = self._shards[supplied.name] = self._by_name[supplied.name]
        self._supplied_limits[supplied.name] = supplied.limit
        self._unopened.append(shard)
        return True

    async def _count_samples(self, shard: Shard) -> None:
        """Count the samples of a shard that another process fetches, in the manifest: its files may change any time."""
        samples = await self._read(self._source.samples, shard)
        self._count(shard, self._within_limit(len(samples)))

    def _within_limit(self, samples: int) -> int:
        return samples if self._limit is None else min(samples, self._limit - self._counted_samples)

    async def _open_next(self, shard: Shard) -> None:
        published = await run_in_thread(recover_published, self._layout, shard, self._image_root, self.at_hand)
        if published is not None:
            self.published[shard.name] = published
            self.ended_before.update(published.outcomes)
            self._count(shard, published.samples)
            self._seen.add(published.samples, published.images)
            if self._supply is not None:
                await self._supply.published(shard.name)
            return
        await self._wait_for_room()
        samples = await self._read(self._source.samples, shard)
        size = self._within_limit(len(samples))
        if (supplied_limit := self._supplied_limits.get(shard.name)) is not None:
            size = min(size, supplied_limit)
        self._count(shard, size)
        path = self._layout.spool(shard.name)
        others = await run_in_thread(lambda: [other for other in self._layout.spools(shard.name) if other != path])
        spool = await Spool.open(path, others)
        self.ended_before.update(spool.recovered.outcomes)
        left = size - len(spool.recovered.samples)
        opened = OpenShard(shard, spool, size, samples.published_before, left, samples.notes, samples.row_numbers)
        self.open_shards.add(opened)
        if opened.samples_left:
            ended = spool.recovered.samples
            first = next(position for position in range(size) if position not in ended)
            self._reading = opened, islice(samples.starting_at(first), size - first)
        else:
            self._read_ahead.append(NextSample(opened, None))

    async def _wait_for_room(self) -> None:
        """Wait until another shard may be open."""
        while not self._may_open_another():
            self._shard_closed.clear()
            await self._shard_closed.wait()

    async def _wait_for_memory(self, size_bytes: int) -> None:
        """Wait until a sample of this size may be handed out: within the bound, or as the only one."""
        while self._handed_out_bytes and self._handed_out_bytes + size_bytes > _MAX_HANDED_OUT_BYTES:
            self._sample_ended.clear()
            await self._sample_ended.wait()

    async def _read_next_chunk(self, shard: OpenShard, samples: Iterator[Sample]) -> None:
        chunk = await self._read(_read_chunk, samples)
        if not chunk:
            self._reading = None
        self._seen.add(len(chunk), sum(len(sized.sample.urls) for sized in chunk))
        ended = shard.spool.recovered.samples
        self._read_ahead.extend(
            NextSample(shard, sized.sample, sized.held_bytes) for sized in chunk if sized.sample.position not in ended
        )

    async def _read(self, read: Callable[[_Argument], _Result], argument: _Argument) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._reader, read, argument)

    def _may_open_another(self) -> bool:
        if len(self.open_shards) < MAX_OPEN_SHARDS:
            return True
        return (
            len(self.open_shards) < _MAX_OPEN_SMALL_SHARDS
            and sum(one.samples for one in self.open_shards) < MAX_OPEN_SAMPLES
        )

    def _count(self, shard: Shard, samples: int) -> None:
        self._counted_size += shard.size
        self._counted_samples += samples


@dataclass(slots=True)
class _Seen:
    """The samples that were read or are in published shards, and the number of their images."""

    samples: int = 0
    images: int = 0

    def add(self, samples: int, images: int) -> None:
        self.samples += samples
        self.images += images

    @property
    def images_per_sample(self) -> float:
        return self.images / self.samples if self.samples else 1.0


@dataclass(frozen=True, slots=True)
class _SizedSample:
    """A sample, and about how much memory it takes."""

    sample: Sample
    held_bytes: int


def _read_chunk(samples: Iterator[Sample]) -> list[_SizedSample]:
    """The next samples, bounded in number and in size, but at least one; empty at the end."""
    chunk: list[_SizedSample] = []
    left_bytes = _CHUNK_BYTES
    for sample in islice(samples, _CHUNK_SAMPLES):
        chunk.append(_SizedSample(sample, _held_bytes(sample)))
        left_bytes -= chunk[-1].held_bytes
        if left_bytes <= 0:
            break
    return chunk


def _held_bytes(sample: Sample) -> int:
    """About how much memory the values of a sample take; determined in 40 µs for a published document."""
    held_bytes = len(sample.content or b"")
    left: list[object] = [sample.urls, sample.row]
    while left:
        value = left.pop()
        held_bytes += sys.getsizeof(value)
        if isinstance(value, dict):
            left.extend(value)
            left.extend(value.values())
        elif isinstance(value, list | tuple):
            left.extend(value)
    return held_bytes
