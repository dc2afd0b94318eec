"""How many requests are open at once.

Rules: whoever waits here has sent nothing yet, so the wait counts against no host. Descriptors are ours to budget: the
limit never exceeds what this process may open.
"""

from __future__ import annotations

import asyncio
import resource
from types import TracebackType

from datafetch.errors import ResourceError

# A request to the open web takes a second or so; this many keep two to four cores' codecs busy. See docs/design.md.
AUTO_CONNECTIONS = 256
_DESCRIPTORS_PER_REQUEST = 2  # happy eyeballs may have two sockets open for one request
_RESERVED_DESCRIPTORS = 256  # idle connections, the codec's pipes, spools, manifests


class Limiter:
    """A fixed number of places for open requests: ``async with limiter: …``."""

    def __init__(self, connections: int) -> None:
        self._places = asyncio.Semaphore(connections)
        self._open = 0
        self._waiting = 0

    @property
    def open(self) -> int:
        """Requests open now."""
        return self._open

    @property
    def waiting(self) -> int:
        """Callers that wait for a place."""
        return self._waiting

    async def __aenter__(self) -> None:
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        self._open += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open -= 1
        self._places.release()


def affordable_connections(wanted: int) -> int:
    """How many of the wanted connections this process has descriptors for.

    Raises the soft limit on open files towards the hard one where that is needed; it is not lowered again.

    Raises:
        ResourceError: There is no room for even one.
    """
    needed = wanted * _DESCRIPTORS_PER_REQUEST + _RESERVED_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return wanted
    affordable = (soft - _RESERVED_DESCRIPTORS) // _DESCRIPTORS_PER_REQUEST
    if affordable < 1:
        raise ResourceError(
            f"only {soft} files may be open at once; raise the limit with 'ulimit -n' to {needed} or more"
        )
    return min(wanted, affordable)
