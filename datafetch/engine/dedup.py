"""Fetch each URL once per run; later requests reuse the recorded result.

One task at a time may request a URL. The others wait for it and then read its result back from the spool that it was
written to. ``RecentUrlIndex`` says where that is: it maps the hash of a URL to the number of a spool and an offset in
it. A spool of a published shard is deleted, so it is kept open for as long as a bound on the disk allows; once it is
released, the URLs whose results it holds are requested again. Memory and disk are therefore bounded, and the most
recent results are the ones that are reused.

``UrlTable`` has the locks and the index, and ``ReadableSpools`` what was written. Where several processes fetch, a URL
is in the table of one of them, and its result may be in a spool of another (``engine.workers``).
"""

from __future__ import annotations

import asyncio
import shutil
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import NamedTuple, Protocol, Self, TypeAlias

import numpy as np

from datafetch.model.outcome import FailureKind
from datafetch.store.spool import Spool, WrittenEntries
from datafetch.store.spool_format import ImageResult

_MAX_URLS = 2**20  # 17 MB; four shards of COYO have 190,000
_OFFSET_BITS = 40  # of a spool, 1 TB
_NUMBER_BITS = 16
_MAX_NUMBER = (1 << _NUMBER_BITS) - 1
MAX_RETAINED_BYTES = 16 * 1024**3
"""How much of the disk the spools of published shards may take, of all processes together."""
SHARE_OF_FREE_BYTES = 0.1
"""How much of the disk's free space they may take at most; other programs may need the rest."""
_MAX_RETAINED_SPOOLS = 32  # a descriptor each

_WAYS = 8
_HASH_BITS = 64


class ResultLocation(NamedTuple):
    """Where a result was written.

    Attributes:
        worker: The number of the process that has it, at most 255; 0 where there is one process.
        spool: The number of its spool, from 1.
        offset: The offset of its entry there, in bytes.
    """

    worker: int
    spool: int
    offset: int

    def pack(self) -> int:
        """The location as a number of 64 bits, which is not 0."""
        return (self.worker << _NUMBER_BITS | self.spool) << _OFFSET_BITS | self.offset

    @classmethod
    def unpack(cls, packed: int) -> ResultLocation:
        """The location of such a number."""
        high, offset = divmod(packed, 1 << _OFFSET_BITS)
        worker, spool = divmod(high, 1 << _NUMBER_BITS)
        return cls(worker, spool, offset)


ReadResult: TypeAlias = Callable[[ResultLocation], Awaitable[ImageResult | None]]
"""Reads the result at a location; None if it is no longer kept."""


class LockedUrl(Protocol):
    """A URL that no other task requests."""

    async def lookup(self) -> ImageResult | None:
        """The recorded result of the URL; None where there is none, or it is no longer kept."""
        ...

    def record(self, result: ImageResult, spool: Spool, offset: int) -> None:
        """Record where its result was written, unless the URL was not tried: a host that is down may come back."""
        ...


class Deduplicator(Protocol):
    """The results of one run by URL, for the tasks of one event loop."""

    def lock(self, url: str) -> AbstractAsyncContextManager[LockedUrl]:
        """Make a context in which no other task requests this URL; entering it waits."""
        ...

    async def retain(self, spool: Spool) -> None:
        """Keep the spool of a published shard open, and release the oldest ones where that exceeds the bounds."""
        ...

    def close(self) -> None:
        """Release all spools."""
        ...


class UrlDeduplicator:
    """The results of a run of one process."""

    def __init__(self) -> None:
        self._table = UrlTable()
        self._spools = ReadableSpools()

    def lock(self, url: str) -> OwnUrl:
        """Make a context in which no other task requests this URL; entering it waits."""
        return OwnUrl(url, self._table, self._spools, self._spools.read)

    async def retain(self, spool: Spool) -> None:
        """Keep the spool of a published shard open, and release the oldest ones where that exceeds the bounds."""
        await self._spools.retain(spool)

    def close(self) -> None:
        """Release all spools."""
        self._spools.close()


class OwnUrl:
    """A URL whose lock is in this process; a context manager, in which it is locked.

    Args:
        url: The URL.
        table: Has its lock, and knows where its result is.
        spools: The spools of this process.
        read: Reads a result, whichever process has it.
    """

    __slots__ = ("_read", "_spools", "_table", "_url")

    def __init__(self, url: str, table: UrlTable, spools: ReadableSpools, read: ReadResult) -> None:
        self._url = url
        self._table = table
        self._spools = spools
        self._read = read

    async def __aenter__(self) -> Self:
        await self._table.acquire(self._url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._table.release(self._url)

    async def lookup(self) -> ImageResult | None:
        """The recorded result of the URL; None where there is none, or it is no longer kept."""
        location = self._table.find(self._url)
        return None if location is None else of_url(await self._read(location), self._url)

    def record(self, result: ImageResult, spool: Spool, offset: int) -> None:
        """Record where its result was written."""
        if is_to_be_recorded(result):
            self._table.record(self._url, self._spools.location(spool, offset))


def of_url(result: ImageResult | None, url: str) -> ImageResult | None:
    """A result that was looked up, if it is that of the URL: two URLs may have the same hash."""
    return result if result is not None and result.line.url == url else None


def is_to_be_recorded(result: ImageResult) -> bool:
    """Whether a result holds for later images of the same URL: not if it was not tried, as its host may come back."""
    return result.line.outcome != FailureKind.HOST_DOWN


class UrlTable:
    """The locks of URLs, and where their results are.

    Args:
        max_urls: About how many results are remembered; a power of two, at least 8.
    """

    def __init__(self, *, max_urls: int = _MAX_URLS) -> None:
        self._index = RecentUrlIndex(max_urls)
        self._locked: dict[str, deque[asyncio.Future[None]]] = {}  # with those that wait for it

    def try_acquire(self, url: str) -> bool:
        """Lock a URL if it is not locked; return whether it was."""
        if url in self._locked:
            return False
        self._locked[url] = deque()
        return True

    async def acquire(self, url: str) -> None:
        """Wait until a URL is not locked, in the order of the calls, and lock it."""
        if self.try_acquire(url):
            return
        granted = asyncio.get_running_loop().create_future()
        self._locked[url].append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():  # it was granted in the same iteration of the loop
                self.release(url)
            raise

    def release(self, url: str) -> None:
        """Unlock a URL, for the first that waits for it."""
        waiting = self._locked[url]
        while waiting:
            granted = waiting.popleft()
            if not granted.done():  # otherwise its task was cancelled
                granted.set_result(None)
                return
        del self._locked[url]

    def find(self, url: str) -> ResultLocation | None:
        """Where the result of a URL is, or that of another one with the same hash; None where none is known."""
        packed = self._index.get(hash(url))
        return None if packed is None else ResultLocation.unpack(packed)

    def record(self, url: str, location: ResultLocation) -> None:
        """Remember where the result of a URL is."""
        self._index.put(hash(url), location.pack())


class ReadableSpools:
    """The spools to which this process has written, by number, for as long as they can be read.

    Args:
        worker: The number of this process.
        max_retained_bytes: How much of the disk the spools of published shards may take.
        share_of_free: How much of the disk's free space they may take at most.
    """

    def __init__(
        self,
        worker: int = 0,
        *,
        max_retained_bytes: int = MAX_RETAINED_BYTES,
        share_of_free: float = SHARE_OF_FREE_BYTES,
    ) -> None:
        self._worker = worker
        self._max_retained_bytes = max_retained_bytes
        self._share_of_free = share_of_free
        self._spools: dict[int, WrittenEntries] = {}
        self._numbers: dict[WrittenEntries, int] = {}
        self._last_number = 0
        self._retained_bytes: dict[WrittenEntries, int] = {}  # the oldest first

    def location(self, spool: Spool, offset: int) -> ResultLocation:
        """The location of an entry, from which ``read`` will find it."""
        return ResultLocation(self._worker, self._number_of(spool.entries), offset)

    async def read(self, location: ResultLocation) -> ImageResult | None:
        """The result at a location of this process; None where it is no longer kept."""
        entries = self._spools.get(location.spool)
        return None if entries is None else await entries.image(location.offset)

    async def retain(self, spool: Spool) -> None:
        """Keep the spool of a published shard open, and release the oldest ones where that exceeds the bounds."""
        size_bytes, free_bytes = await asyncio.to_thread(_size_and_free_bytes, spool)
        spool.entries.retain()
        self._retained_bytes[spool.entries] = size_bytes
        max_bytes = min(self._max_retained_bytes, round(free_bytes * self._share_of_free))
        while len(self._retained_bytes) > _MAX_RETAINED_SPOOLS or sum(self._retained_bytes.values()) > max_bytes:
            self._release(next(iter(self._retained_bytes)))

    def close(self) -> None:
        """Release all spools."""
        for entries in tuple(self._retained_bytes):
            self._release(entries)

    def _release(self, entries: WrittenEntries) -> None:
        del self._retained_bytes[entries]
        self._spools.pop(self._numbers.pop(entries, 0), None)
        entries.release()

    def _number_of(self, entries: WrittenEntries) -> int:
        """The number of a spool, which is given again only after 65,535 others."""
        number = self._numbers.get(entries)
        if number is None:
            number = self._last_number = self._last_number % _MAX_NUMBER + 1
            self._numbers[entries] = number
            self._spools[number] = entries
        return number


class RecentUrlIndex:
    """A hash table of a fixed size that keeps the most recent entries, 16 bytes each.

    It is organised like the cache of a processor: a key belongs to one bucket of 8 entries, and where that is full, the
    bucket's oldest entry is replaced. So nothing grows, nothing has to be cleaned up, and the entry that was added last
    is always found. At half its capacity hardly an entry is lost to a full bucket.

    Args:
        capacity: Number of entries; a power of two, at least 8.
    """

    def __init__(self, capacity: int) -> None:
        self._buckets = capacity // _WAYS
        self._keys = np.zeros((self._buckets, _WAYS), np.uint64)
        self._values = np.zeros((self._buckets, _WAYS), np.uint64)
        self._oldest = np.zeros(self._buckets, np.uint8)

    def put(self, key: int, value: int) -> None:
        """Add an entry, or replace the one that has the key.

        Args:
            key: A hash of 64 bits, signed or not.
            value: From 1 to 2**64 - 1.
        """
        key %= 1 << _HASH_BITS
        bucket = key % self._buckets
        way = self._find(bucket, key)
        if way is None:
            way = int(self._oldest[bucket])
            self._oldest[bucket] = (way + 1) % _WAYS
        self._keys[bucket, way] = key
        self._values[bucket, way] = value

    def get(self, key: int) -> int | None:
        """The value that was last put under a key; None where there is none, or it has been replaced."""
        key %= 1 << _HASH_BITS
        bucket = key % self._buckets
        way = self._find(bucket, key)
        return None if way is None else int(self._values[bucket, way])

    def _find(self, bucket: int, key: int) -> int | None:
        for way, other in enumerate(self._keys[bucket].tolist()):
            if other == key and self._values[bucket, way]:  # a value of 0 is an empty entry
                return way
        return None


def _size_and_free_bytes(spool: Spool) -> tuple[int, int]:
    return spool.entries.size_bytes, shutil.disk_usage(spool.path.parent).free
