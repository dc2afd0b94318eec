"""Once: fetch each URL once per run; later requests reuse the recorded result.

Rules: a URL is requested by one task at a time; others wait, and take its result. What became of it is read back
from the spool that has it, also from spools of published shards, of which as many are held as their bound allows. What
is no longer held is asked for again; so memory and disk are bounded, and the newest are known.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from datafetch.engine.recent import RecentUrlIndex
from datafetch.model.outcome import FailureKind
from datafetch.store.spool import Spool, WrittenEntries
from datafetch.store.spool_format import ImageResult

_MOST_URLS = 2**20  # 17 MB; four shards of COYO have 190,000
_OFFSET_BITS = 44  # of a spool, 16 TB
_MOST_HELD_BYTES = 16 * 1024**3
_SHARE_OF_FREE_BYTES = 0.1  # of the disk that spools lie on; others may need the rest
_MOST_HELD_SPOOLS = 32  # a descriptor each


@dataclass(slots=True)
class _UrlLock:
    """Whose turn it is to ask for a URL."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    callers: int = 0


class UrlDeduplicator:
    """The URLs of one run; of one event loop.

    Args:
        most_urls: That are known, about; a power of two, 8 at least.
        most_held_bytes: That spools of published shards may take of the disk.
    """

    def __init__(self, *, most_urls: int = _MOST_URLS, most_held_bytes: int = _MOST_HELD_BYTES) -> None:
        self._most_held_bytes = most_held_bytes
        self._locks: dict[str, _UrlLock] = {}
        # By the URLs' hashes: the number of the spool, and where in it.
        self._entries = RecentUrlIndex(most_urls)
        self._spools: dict[int, WrittenEntries] = {}
        self._numbers: dict[WrittenEntries, int] = {}
        self._count = 0
        self._held: dict[WrittenEntries, int] = {}

    @asynccontextmanager
    async def lock_url(self, url: str) -> AsyncIterator[None]:
        """Be the only one to ask for a URL."""
        lock_url = self._locks.setdefault(url, _UrlLock())
        lock_url.callers += 1
        try:
            async with lock_url.lock:
                yield
        finally:
            lock_url.callers -= 1
            if not lock_url.callers:
                del self._locks[url]

    async def lookup(self, url: str) -> ImageResult | None:
        """What became of a URL; None where that is not known, or no longer."""
        place = self._entries.get(hash(url))
        if place is None:
            return None
        spool, offset = divmod(place, 1 << _OFFSET_BITS)
        entries = self._spools.get(spool)
        end = None if entries is None else await entries.image(offset)
        # Two URLs may have the same hash.
        return end if end is not None and end.line.url == url else None

    def record(self, end: ImageResult, spool: Spool, offset: int) -> None:
        """Note where it stands what became of a URL, if that holds for others: what was not tried may be tried."""
        if end.line.outcome != FailureKind.HOST_DOWN:
            self._entries.put(hash(end.line.url), self._number(spool.entries) << _OFFSET_BITS | offset)

    async def retain(self, spool: Spool) -> None:
        """Keep the spool of a published shard open, and release the oldest where there are too many."""
        size_bytes, free_bytes = await asyncio.to_thread(_sizes, spool)
        spool.entries.retain()
        self._held[spool.entries] = size_bytes
        most_bytes = min(self._most_held_bytes, round(free_bytes * _SHARE_OF_FREE_BYTES))
        while len(self._held) > _MOST_HELD_SPOOLS or sum(self._held.values()) > most_bytes:
            self._release(next(iter(self._held)))

    def close(self) -> None:
        """Let go of everything."""
        for entries in tuple(self._held):
            self._release(entries)

    def _release(self, entries: WrittenEntries) -> None:
        del self._held[entries]
        self._spools.pop(self._numbers.pop(entries, 0), None)
        entries.release()

    def _number(self, entries: WrittenEntries) -> int:
        """What a spool is called in the table; from 1, and never again."""
        number = self._numbers.get(entries)
        if number is None:
            self._count += 1
            number = self._numbers[entries] = self._count
            self._spools[number] = entries
        return number


def _sizes(spool: Spool) -> tuple[int, int]:
    return spool.entries.size_bytes, shutil.disk_usage(spool.path.parent).free
