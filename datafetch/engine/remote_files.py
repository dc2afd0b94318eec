"""Files on the hub and on servers that a manifest reads where they are, by ranges.

Theory of operation. Manifests are read in threads, and requests are made on the job's event loop. So a range is read by
a coroutine that a thread schedules on that loop, and the thread waits for its future. When the job ends, in whatever
way, all futures are cancelled and no others are made, so that a thread that waits ends at once, too.

A server that fails for a while must not end a run of days. What ``RemoteRanges`` gives up is requested again, of each
file one range at a time, with pauses that grow, until it has failed too often in a row.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from threading import Event
from typing import Any, TypeVar

from datafetch.datasets.sources.hub import HubPlace
from datafetch.errors import ManifestError
from datafetch.fetch import Fetcher
from datafetch.fetch.policy import FetchPolicy
from datafetch.fetch.ranges import RefusedError, RemoteRanges
from datafetch.fetch.receive_rate import ReceiveRate
from datafetch.model.location import at_mirror
from datafetch.model.manifest import RemoteFile
from datafetch.model.outcome import Failure

_FIRST_PAUSE_S = 1.0
_MAX_PAUSE_S = 30.0
_LOGIN = "its terms have to be accepted first, so it can't be read where it is; download it, and give the path"
_REFUSALS = {HTTPStatus.UNAUTHORIZED: _LOGIN, HTTPStatus.FORBIDDEN: _LOGIN}
_GONE = "the hub does not have it any more; check the revision"

_Result = TypeVar("_Result")


class RemoteFiles:
    """Files that are read where they are; to be closed before the event loop ends. Made on that loop.

    Args:
        fetch: Makes the requests.
        max_part_bytes: How much one request asks for at most.

    Attributes:
        files: The files, in the order in which they were added.
    """

    def __init__(self, fetch: Fetcher, max_part_bytes: int) -> None:
        self._fetch = fetch
        self._max_part_bytes = max_part_bytes
        self._loop = asyncio.get_running_loop()
        self._pending: set[Future[Any]] = set()
        self._closed = Event()
        self.files: list[RemoteFile] = []

    def ranges(self, url: str, name: str = "") -> RemoteRanges:
        """Ranges of a file. The arguments are those of ``RemoteRanges``."""
        return RemoteRanges(self._fetch, url, max_part_bytes=self._max_part_bytes, name=name)

    def add_of_hub(self, place: HubPlace, name: str, mirror: str) -> RemoteFile:
        """Add a file of a repository on the hub.

        Args:
            place: The repository.
            name: The path of the file in it.
            mirror: The URL of a server that is asked instead of the hub; empty asks the hub.
        """
        shown, url = f"{replace(place, path='')}/{name}", at_mirror(place.url(name), mirror)
        return self.add(shown, self.ranges(url, shown), is_of_hub=True)

    def add(self, name: str, ranges: RemoteRanges, *, is_of_hub: bool = False) -> RemoteFile:
        """Add a file.

        Args:
            name: The file in messages.
            ranges: Its ranges.
            is_of_hub: Whether it is on the hub.
        """
        file = _FileInPlace(name, ranges, self, is_of_hub=is_of_hub)
        self.files.append(file)
        return file

    def refuse_closed(self) -> None:
        """End what reads files, once they are closed.

        Raises:
            CancelledError: They are.
        """
        if self._closed.is_set():
            raise CancelledError

    def close(self) -> None:
        """Cancel all reads, and refuse others."""
        self._closed.set()
        for future in list(self._pending):
            future.cancel()

    def schedule(self, work: Callable[[], Coroutine[Any, Any, _Result]]) -> Future[_Result]:
        """Schedule a coroutine on the loop, from another thread.

        Args:
            work: Makes the coroutine.

        Returns:
            Its result; cancelled if the files are closed, or as soon as they are.
        """
        if self._closed.is_set():
            refused: Future[_Result] = Future()
            refused.cancel()
            return refused
        future = asyncio.run_coroutine_threadsafe(work(), self._loop)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        if self._closed.is_set():  # meanwhile, so that this one may have been missed
            future.cancel()
        return future


class _FileInPlace:
    """One of the files."""

    def __init__(self, name: str, ranges: RemoteRanges, files: RemoteFiles, *, is_of_hub: bool) -> None:
        self.name = name
        self._is_of_hub = is_of_hub
        self._ranges = ranges
        self._files = files
        self._probe_lock = asyncio.Lock()

    def find_size(self) -> Future[int]:
        """Request the size of the file in bytes, as the server claims it."""
        return self._files.schedule(self._find_size)

    def read(self, start: int, stop: int) -> Future[bytes]:
        """Request a range of its bytes."""
        return self._files.schedule(lambda: self._read(start, stop))

    async def _find_size(self) -> int:
        await self._read(0, 1)
        if self._ranges.total_bytes is None:
            raise ManifestError(f"{self.name}: the server does not say how large the file is; download it")
        return self._ranges.total_bytes

    async def _read(self, start: int, stop: int) -> bytes:
        try:
            read = await self._ranges.read(start, stop)
            pause_s = _FIRST_PAUSE_S
            while isinstance(read, Failure):
                async with self._probe_lock:
                    await asyncio.sleep(pause_s)
                    read = await self._ranges.read(start, stop)
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)
        except RefusedError as error:
            if not self._is_of_hub:
                raise
            raise ManifestError(f"{self.name}: {_REFUSALS.get(HTTPStatus(error.status), _GONE)}") from error
        return read.content


@asynccontextmanager
async def open_remote(policy: FetchPolicy, rate: ReceiveRate | None = None) -> AsyncIterator[RemoteFiles]:
    """Make files readable where they are, which are still to be added.

    Args:
        policy: How servers are asked.
        rate: The cap on what is received, where it is shared with other fetchers.

    Yields:
        None of them yet; they are closed when the context ends.
    """
    async with Fetcher(policy, rate=rate) as fetch:
        remote = RemoteFiles(fetch, policy.max_body_bytes)
        try:
            yield remote
        finally:
            remote.close()
