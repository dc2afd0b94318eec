"""Feed: the samples of all shards, in manifest order, for workers with room for the next one.

Rules: at most a few shards are open, or as many small ones as have few samples together, and a few hundred samples are
read ahead, or as many as few megabytes hold; what is handed out and has not ended has a bound in bytes as well, but for
a single sample that is beyond it alone. All that holds whatever the manifest's size. Reading happens in a thread.
Shards that are published, and samples that a spool has, are not handed out.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from datafetch.model.interfaces import ShardSource
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.sample import Sample, Shard
from datafetch.output.formats import format_of
from datafetch.store.atomic import publish
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger import read_shard_counts
from datafetch.store.spool import Spool
from datafetch.store.spool_writer import write_spool

_log = logging.getLogger(__name__)
MAX_OPEN_SHARDS = 4
"""Whatever their size: one that is read, one or two with stragglers, one that is being written."""
MAX_OPEN_SAMPLES = 16_384
"""Of small shards as many are open as have fewer together: one of 300 documents is shorter than the look-ahead."""
_MAX_OPEN_SMALL_SHARDS = 64  # each has two descriptors; of 300 samples no more are open anyway
_Asked = TypeVar("_Asked")
_Found = TypeVar("_Found")
_CHUNK_SAMPLES = 256  # a second's work: a chunk costs a thread hop and, in a sparse manifest, the decoding of many rows
_CHUNK_BYTES = 16 * 1024 * 1024  # 256 published documents have some ten; a line of a manifest may have 64 MiB
_MAX_HANDED_BYTES = 128 * 1024 * 1024  # four thousand published documents


@dataclass(slots=True, eq=False)
class OpenShard:
    """A shard in progress.

    Attributes:
        shard: Which one.
        spool: Where its images go.
        samples: How many of its samples are handed out.
        committed_before: How many others it has, which were committed before and stay as they are.
        left: How many of those handed out have not ended.
        notes: What was counted when they were looked through, by ``CounterName``.
        row_numbers: Which of its rows are wanted; None is all.
    """

    shard: Shard
    spool: Spool
    samples: int
    committed_before: int
    left: int
    notes: Mapping[str, int]
    row_numbers: frozenset[int] | None

    def settle(self) -> bool:
        """Count one sample as ended, and say whether it was the last."""
        self.left -= 1
        return self.left == 0


@dataclass(frozen=True, slots=True)
class NextSample:
    """The next sample and its shard.

    Attributes:
        shard: Whose it is.
        sample: It; None when the shard's spool already has them all.
        held_bytes: The memory that it takes, about.
    """

    shard: OpenShard
    sample: Sample | None
    held_bytes: int = 0


class Feed:
    """Hands out samples; ``pull`` from any number of tasks of one event loop, and ``settle`` what has ended.

    Args:
        source: What to read.
        layout: What is there already.
        limit: Hand out no more than the first so many samples.
        shards: Of these shards alone; None is all. The samples of others count towards the limit.
    """

    def __init__(
        self,
        source: ShardSource,
        layout: OutputLayout,
        limit: int | None = None,
        shards: Collection[str] | None = None,
    ) -> None:
        self.open: set[OpenShard] = set()
        self.published: dict[str, ShardCounts] = {}
        self.reused: Counter[str] = Counter()
        self._source = source
        self._layout = layout
        self._limit = limit
        self._all_shards = source.shards()
        self._shards = {shard.name: shard for shard in self._all_shards if shards is None or shard.name in shards}
        self._unopened = deque(self._shards.values() if limit is None else self._all_shards)
        self._counted_size = 0
        self._counted_samples = 0
        self._seen = _Seen()
        self._reading: tuple[OpenShard, Iterator[Sample]] | None = None
        self._ready: deque[NextSample] = deque()
        # One thread of our own: on the shared ones each read leaves its fragments in another thread's arena.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="manifest")
        self._turn = asyncio.Lock()
        self._one_closed = asyncio.Event()
        self._handed_bytes = 0
        self._one_settled = asyncio.Event()

    @property
    def shards(self) -> int:
        """How many shards there are to hand out samples of."""
        return len(self._shards)

    async def pull(self) -> NextSample | None:
        """The next sample, or None when there is no other.

        Raises:
            ManifestError: A manifest file can't be read.
            ResourceError: A spool can't be opened.
        """
        async with self._turn:
            while not self._ready:
                if self._reading is not None:
                    await self._read_on(*self._reading)
                elif self._unopened and self._counted_samples != self._limit:
                    shard = self._unopened.popleft()
                    await (self._open_next(shard) if shard.name in self._shards else self._count_samples(shard))
                else:
                    return None
            await self._wait_for_room(self._ready[0].held_bytes)
            pulled = self._ready.popleft()
            self._handed_bytes += pulled.held_bytes
            return pulled

    def settle(self, pulled: NextSample) -> bool:
        """Take note that a sample has ended, and say whether it was the last of its shard."""
        self._handed_bytes -= pulled.held_bytes
        self._one_settled.set()
        return pulled.shard.settle()

    async def close_published(self, shard: OpenShard, totals: ShardCounts) -> None:
        """Forget a shard that is published, and its spool, and make room for the next."""
        await shard.spool.close()
        await asyncio.to_thread(shard.spool.path.unlink)
        self.published[shard.shard.name] = totals
        self.open.remove(shard)
        self._one_closed.set()

    async def sync(self) -> None:
        """Put on disk what is in the spools.

        Raises:
            ResourceError: The disk refused it.
        """
        for shard in tuple(self.open):
            await shard.spool.sync()

    async def close(self) -> None:
        """Let go of every spool and of the source; the spools stay for the next run."""
        self._reader.shutdown(wait=False)
        async with AsyncExitStack() as spools:
            for shard in self.open:
                spools.push_async_callback(shard.spool.close)

    def expected_samples(self) -> int | None:
        """How many samples there are about to be: known, or judged by the shards that were counted so far."""
        size = sum(shard.size for shard in self._shards.values())
        expected = self._source.expected_samples()
        if expected is not None and len(self._shards) < len(self._all_shards):
            expected = round(expected * size / max(1, sum(shard.size for shard in self._all_shards)))
        elif expected is None and self._counted_size:
            expected = round(self._counted_samples * size / self._counted_size)
        if expected is None or self._limit is None:
            return expected
        return min(expected, self._limit)

    def expected_images(self) -> int | None:
        """How many images there are about to be, judged by the samples that were seen so far."""
        samples = self.expected_samples()
        return None if samples is None else round(samples * self._seen.images_a_sample)

    async def _count_samples(self, shard: Shard) -> None:
        """Count the samples of a shard that another process fetches; its files may change at any moment."""
        samples = await self._read(self._source.samples, shard)
        self._count(shard, self._within_limit(len(samples)))

    def _within_limit(self, samples: int) -> int:
        return samples if self._limit is None else min(samples, self._limit - self._counted_samples)

    async def _open_next(self, shard: Shard) -> None:
        published = await asyncio.to_thread(_read_published, self._layout, shard)
        if published is not None:
            self.published[shard.name] = published
            self.reused.update(published.outcomes)
            self._count(shard, published.samples)
            self._seen.add(published.samples, published.images)
            return
        while not self._has_room():
            self._one_closed.clear()
            await self._one_closed.wait()
        samples = await self._read(self._source.samples, shard)
        wanted = self._within_limit(len(samples))
        self._count(shard, wanted)
        spool = await Spool.open(self._layout.spool(shard.name))
        self.reused.update(spool.recovered.outcomes)
        left = wanted - len(spool.recovered.samples)
        opened = OpenShard(shard, spool, wanted, samples.committed_before, left, samples.notes, samples.row_numbers)
        self.open.add(opened)
        if opened.left:
            self._reading = opened, islice(iter(samples), wanted)
        else:
            self._ready.append(NextSample(opened, None))

    async def _wait_for_room(self, wanted_bytes: int) -> None:
        """Wait until what is handed out leaves room for so much more, or nothing is."""
        while self._handed_bytes and self._handed_bytes + wanted_bytes > _MAX_HANDED_BYTES:
            self._one_settled.clear()
            await self._one_settled.wait()

    async def _read_on(self, shard: OpenShard, samples: Iterator[Sample]) -> None:
        chunk = await self._read(_read_chunk, samples)
        if not chunk:
            self._reading = None
        self._seen.add(len(chunk), sum(len(weighed.sample.urls) for weighed in chunk))
        ended = shard.spool.recovered.samples
        self._ready.extend(
            NextSample(shard, weighed.sample, weighed.held_bytes)
            for weighed in chunk
            if weighed.sample.position not in ended
        )

    async def _read(self, read: Callable[[_Asked], _Found], asked: _Asked) -> _Found:
        return await asyncio.get_running_loop().run_in_executor(self._reader, read, asked)

    def _has_room(self) -> bool:
        """Whether another shard may be opened."""
        if len(self.open) < MAX_OPEN_SHARDS:
            return True
        return len(self.open) < _MAX_OPEN_SMALL_SHARDS and sum(one.samples for one in self.open) < MAX_OPEN_SAMPLES

    def _count(self, shard: Shard, samples: int) -> None:
        self._counted_size += shard.size
        self._counted_samples += samples


@dataclass(slots=True)
class _Seen:
    """Samples that were read, or of published shards, and how many images they have."""

    samples: int = 0
    images: int = 0

    def add(self, samples: int, images: int) -> None:
        self.samples += samples
        self.images += images

    @property
    def images_a_sample(self) -> float:
        return self.images / self.samples if self.samples else 1.0


@dataclass(frozen=True, slots=True)
class _Weighed:
    """A sample, and the memory that it takes, about."""

    sample: Sample
    held_bytes: int


def _read_chunk(samples: Iterator[Sample]) -> list[_Weighed]:
    """The next samples: so many, or as many as there is room for, and one at least."""
    chunk: list[_Weighed] = []
    left_bytes = _CHUNK_BYTES
    for sample in islice(samples, _CHUNK_SAMPLES):
        chunk.append(_Weighed(sample, _held_bytes(sample)))
        left_bytes -= chunk[-1].held_bytes
        if left_bytes <= 0:
            break
    return chunk


def _held_bytes(sample: Sample) -> int:
    """The memory that a sample's values take; 40 µs for a published document."""
    held_bytes = 0
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


def _read_published(layout: OutputLayout, shard: Shard) -> ShardCounts | None:
    """The books of a shard that an earlier run published, if all its files are still there."""
    ledger = layout.ledger(shard.name)
    if shard.source == ledger or not ledger.exists():  # a shard that is its own source is there to be made again
        return None
    output_format = format_of(layout)
    if not output_format.is_intact(layout, shard.name) and not layout.reshard_record.exists():
        # To be made again, from what is left of it. The ledger goes first: that must not look published after a crash.
        if (salvaged := output_format.salvage(layout, shard.name)) is not None:
            _log.warning("%s lacks files of %s: they are fetched again", layout.out, shard.name)
            begun = layout.spool(shard.name).with_suffix(".begun")
            write_spool(begun, salvaged)
            publish(begun, layout.spool(shard.name))
        ledger.unlink(missing_ok=True)
        output_format.unpublish(layout, shard.name)
        for path in layout.all_spools.glob(f"{layout.job_hash}-retry-*/{shard.name}.spool"):
            path.unlink(missing_ok=True)
        return None
    layout.spool(shard.name).unlink(missing_ok=True)  # a run that ended between publishing and this
    return read_shard_counts(ledger)
