"""Once: what became of a URL, for whoever asks for the same one again.

Rules: nobody asks for a URL while another does; they wait, and take what the other got. What became of it is read back
from the spool that has it, also from spools of published shards, of which as many are held as their bound allows. What
is no longer held is asked for again; so memory and disk are bounded, and the newest are known.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from datafetch.entries import ImageEnd
from datafetch.model import FailureKind
from datafetch.spool import Spool, WrittenEntries

_MOST_NEWER_URLS = 200_000  # more than four shards of COYO have; with as many older ones some 70 MB
_MOST_HELD_BYTES = 16 * 1024**3
_SHARE_OF_FREE_BYTES = 0.1  # of the disk that spools lie on; somebody else may need the rest
_MOST_HELD_SPOOLS = 64  # a descriptor each


@dataclass(slots=True)
class _Turn:
    """Whose turn it is to ask for a URL."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    callers: int = 0


@dataclass(frozen=True, slots=True)
class _Written:
    entries: WrittenEntries
    offset: int


class Once:
    """The URLs of one run; of one event loop.

    Args:
        most_newer_urls: So many are known for sure, and at most twice as many.
        most_held_bytes: That spools of published shards may take of the disk.
    """

    def __init__(self, *, most_newer_urls: int = _MOST_NEWER_URLS, most_held_bytes: int = _MOST_HELD_BYTES) -> None:
        self._most_newer_urls = most_newer_urls
        self._most_held_bytes = most_held_bytes
        self._turns: dict[str, _Turn] = {}
        # By the URLs' hashes. When the newer are too many they become the older, and those are forgotten.
        self._newer: dict[int, _Written] = {}
        self._older: dict[int, _Written] = {}
        self._held: dict[WrittenEntries, int] = {}

    @asynccontextmanager
    async def turn(self, url: str) -> AsyncIterator[None]:
        """Be the only one to ask for a URL."""
        turn = self._turns.setdefault(url, _Turn())
        turn.callers += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.callers -= 1
            if not turn.callers:
                del self._turns[url]

    async def recall(self, url: str) -> ImageEnd | None:
        """What became of a URL; None where that is not known, or no longer."""
        key = hash(url)
        written = self._newer.get(key) or self._older.get(key)
        end = None if written is None else await written.entries.image(written.offset)
        # Two URLs may have the same hash.
        return end if end is not None and end.line.url == url else None

    def remember(self, end: ImageEnd, spool: Spool, offset: int) -> None:
        """Note where it stands what became of a URL, if that holds for others: what was not tried may be tried."""
        if end.line.outcome == FailureKind.HOST_DOWN:
            return
        if len(self._newer) >= self._most_newer_urls:
            self._older, self._newer = self._newer, {}
        self._newer[hash(end.line.url)] = _Written(spool.entries, offset)

    async def hold(self, spool: Spool) -> None:
        """Go on holding the spool of a shard that is published, and let go of the oldest that are too many."""
        size_bytes, free_bytes = await asyncio.to_thread(_sizes, spool)
        spool.entries.hold()
        self._held[spool.entries] = size_bytes
        most_bytes = min(self._most_held_bytes, round(free_bytes * _SHARE_OF_FREE_BYTES))
        while len(self._held) > _MOST_HELD_SPOOLS or sum(self._held.values()) > most_bytes:
            oldest = next(iter(self._held))
            del self._held[oldest]
            oldest.release()

    def close(self) -> None:
        """Let go of everything."""
        for entries in self._held:
            entries.release()
        self._held.clear()


def _sizes(spool: Spool) -> tuple[int, int]:
    return spool.entries.size_bytes, shutil.disk_usage(spool.path.parent).free
