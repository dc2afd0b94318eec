"""Limiter: a semaphore whose capacity may change while it is in use.

Rules: slots are given first come, first served. A task that waits here has sent nothing yet, so the wait counts against
no host.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType


class Limiter:
    """Has a slot for each task that is inside ``async with limiter: …``, for any number of tasks of one event loop.

    Args:
        capacity: Returns the number of slots. It is called whenever a task comes or leaves, and by ``admit``. When it
            falls, tasks that have a slot keep it.
    """

    def __init__(self, capacity: Callable[[], int]) -> None:
        self._capacity = capacity
        self._open = self._peak = 0
        self._waiting = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def open(self) -> int:
        """Number of slots taken."""
        return self._open

    @property
    def peak(self) -> int:
        """The largest number of slots that were taken at once."""
        return self._peak

    @property
    def waiting(self) -> int:
        """Number of tasks that wait for a slot."""
        return self._waiting

    async def __aenter__(self) -> None:
        if not self._queue and self._open < self._capacity():
            self._take()
            return
        granted = asyncio.get_running_loop().create_future()
        self._queue.append(granted)
        self._waiting += 1
        self.admit()  # the capacity may have grown since a task last left
        try:
            await granted
        except asyncio.CancelledError:
            if not granted.cancelled():  # the slot was granted in the same iteration of the loop
                self._leave()
            raise
        finally:
            self._waiting -= 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _take(self) -> None:
        self._open += 1
        self._peak = max(self._peak, self._open)

    def _leave(self) -> None:
        self._open -= 1
        self.admit()

    def admit(self) -> None:
        """Give free slots to tasks that wait; call it when the capacity has grown."""
        while self._queue and self._open < self._capacity():
            granted = self._queue.popleft()
            if not granted.done():  # otherwise its task was cancelled, and has yet to notice
                self._take()
                granted.set_result(None)
