"""Fetch each URL once per run; later requests reuse the recorded result.

One task at a time may request a URL. The others wait for it and then read its result back from the spool that it was
written to. ``RecentUrlIndex`` says where that is: it maps the hash of a URL to the number of a spool and an offset in
it. A spool of a published shard is deleted, so it is kept open for as long as a bound on the disk allows; once it is
released, the URLs whose results it holds are requested again. Memory and disk are therefore bounded, and the most
recent results are the ones that are reused.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np

from datafetch.model.outcome import FailureKind
from datafetch.store.spool import Spool, WrittenEntries
from datafetch.store.spool_format import ImageResult

_MAX_URLS = 2**20  # 17 MB; four shards of COYO have 190,000
_OFFSET_BITS = 44  # of a spool, 16 TB
_MAX_RETAINED_BYTES = 16 * 1024**3
_SHARE_OF_FREE_BYTES = 0.1  # of the disk that spools lie on; other programs may need the rest
_MAX_RETAINED_SPOOLS = 32  # a descriptor each

_WAYS = 8
_HASH_BITS = 64


@dataclass(slots=True)
class _UrlLock:
    """Held by the task that requests a URL; deleted with the last task that waits for it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    tasks: int = 0


class UrlDeduplicator:
    """The results of one run by URL, for the tasks of one event loop.

    Args:
        max_urls: About how many URLs are remembered; a power of two, at least 8.
        max_retained_bytes: How much of the disk the spools of published shards may take.
    """

    def __init__(self, *, max_urls: int = _MAX_URLS, max_retained_bytes: int = _MAX_RETAINED_BYTES) -> None:
        self._max_retained_bytes = max_retained_bytes
        self._locks: dict[str, _UrlLock] = {}
        self._index = RecentUrlIndex(max_urls)
        self._spools: dict[int, WrittenEntries] = {}
        self._numbers: dict[WrittenEntries, int] = {}
        self._last_number = 0
        self._retained_bytes: dict[WrittenEntries, int] = {}  # the oldest first

    @asynccontextmanager
    async def lock_url(self, url: str) -> AsyncIterator[None]:
        """Wait until no other task requests this URL, and keep others from requesting it."""
        lock = self._locks.setdefault(url, _UrlLock())
        lock.tasks += 1
        try:
            async with lock.lock:
                yield
        finally:
            lock.tasks -= 1
            if not lock.tasks:
                del self._locks[url]

    async def lookup(self, url: str) -> ImageResult | None:
        """The recorded result of a URL; None where there is none, or it is no longer kept."""
        found = self._index.get(hash(url))
        if found is None:
            return None
        number, offset = divmod(found, 1 << _OFFSET_BITS)
        entries = self._spools.get(number)
        result = None if entries is None else await entries.image(offset)
        # Two URLs may have the same hash.
        return result if result is not None and result.line.url == url else None

    def record(self, result: ImageResult, spool: Spool, offset: int) -> None:
        """Record where a result was written, unless the URL was not tried: a host that is down may come back."""
        if result.line.outcome != FailureKind.HOST_DOWN:
            self._index.put(hash(result.line.url), self._number_of(spool.entries) << _OFFSET_BITS | offset)

    async def retain(self, spool: Spool) -> None:
        """Keep the spool of a published shard open, and release the oldest ones where that exceeds the bounds."""
        size_bytes, free_bytes = await asyncio.to_thread(_size_and_free_bytes, spool)
        spool.entries.retain()
        self._retained_bytes[spool.entries] = size_bytes
        max_bytes = min(self._max_retained_bytes, round(free_bytes * _SHARE_OF_FREE_BYTES))
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
        """The number of a spool in the index: from 1, and never given twice."""
        number = self._numbers.get(entries)
        if number is None:
            self._last_number += 1
            number = self._numbers[entries] = self._last_number
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
