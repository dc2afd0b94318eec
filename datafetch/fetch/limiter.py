"""Limiter: places for so many at once, a number that may change under way.

Rules: first come, first served. Whoever waits here has sent nothing yet, so the wait counts against no host.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType


class Limiter:
    """Places: ``async with limiter: …``, from any number of tasks of one event loop.

    Args:
        capacity: Says how many there are now. Asked whenever somebody comes or leaves, and by ``admit``; when it falls,
            those who are in stay in.
    """

    def __init__(self, capacity: Callable[[], int]) -> None:
        self._capacity = capacity
        self._open = 0
        self._waiting = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def open(self) -> int:
        """Places taken now."""
        return self._open

    @property
    def waiting(self) -> int:
        """Callers that wait for a place."""
        return self._waiting

    async def __aenter__(self) -> None:
        if self._open < self._capacity() and not self._queue:
            self._open += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        self._waiting += 1
        self.admit()  # the capacity may have grown since anybody left
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # the place came in the same instant
                self._leave()
            raise
        finally:
            self._waiting -= 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self._open -= 1
        self.admit()

    def admit(self) -> None:
        """Let in whoever fits now; for whoever knows that the capacity has grown."""
        while self._queue and self._open < self._capacity():
            place = self._queue.popleft()
            if not place.done():  # cancelled, and about to leave
                self._open += 1
                place.set_result(None)
