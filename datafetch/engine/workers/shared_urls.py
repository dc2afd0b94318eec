"""SharedUrls: each URL is requested once by all workers together.

Rules: the lock of a URL, and where its result is, are known by the worker that owns the URL (``owner``). The result
itself stays with the worker that has it, which is asked for it.
"""

from __future__ import annotations

from datafetch.engine.dedup import OwnUrl, ReadableSpools, ResultLocation, UrlTable
from datafetch.engine.workers.mesh import Mesh
from datafetch.engine.workers.owner import owner_of_url
from datafetch.engine.workers.peer import UrlOfPeer
from datafetch.store.spool import Spool
from datafetch.store.spool_format import ImageResult


class SharedUrls:
    """The results of a run by URL, for the tasks of one worker.

    Args:
        mesh: The connections with all others.
        table: The URLs that this worker owns.
        spools: The spools that it writes.
    """

    def __init__(self, mesh: Mesh, table: UrlTable, spools: ReadableSpools) -> None:
        self._mesh = mesh
        self._table = table
        self._spools = spools

    def lock(self, url: str) -> OwnUrl | UrlOfPeer:
        """Make a context in which no other task of any worker requests this URL; entering it waits."""
        peer = self._mesh.peer(owner_of_url(url, self._mesh.workers))
        if peer is None:
            return OwnUrl(url, self._table, self._spools, self._read)
        return UrlOfPeer(url, peer, self._spools, self._read)

    async def retain(self, spool: Spool) -> None:
        """Keep the spool of a published shard open, and release the oldest ones where that exceeds the bounds."""
        await self._spools.retain(spool)

    def close(self) -> None:
        """Release all spools."""
        self._spools.close()

    async def _read(self, location: ResultLocation) -> ImageResult | None:
        peer = self._mesh.peer(location.worker)
        return await self._spools.read(location) if peer is None else await peer.read(location)
