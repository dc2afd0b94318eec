"""Timers for the time limits of requests, of which hardly any is ever reached.

Theory of operation. A request has up to three limits at once: for its attempt, for connecting, and for silence. Each is
set and cancelled within a second and lies tens of seconds ahead, where a timer of the event loop costs far more than a
set that it is put into and taken out of. So there is a set for each second in which limits end. When a second begins,
the timers that are left in its set, and any that are started for a time within it, become timers of the event loop. So
they end as exactly as those do. One more timer of the loop opens the next second, as long as there is any set.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Timers:
    """The timers of one event loop, in which it must be made.

    Attributes:
        loop: The event loop.
        by_second: The timers whose second has not begun, by that second of the loop's clock.
        opened_second: The last second whose timers were handed to the loop.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.by_second: dict[int, set[Timer]] = {}
        self.opened_second = -1
        self._opening: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Hand all timers to the loop, now and from now on: no timer of this object is left to open a second.

        What is still in progress keeps its time limits.
        """
        if self._opening is not None:
            self._opening.cancel()
        self.opened_second = sys.maxsize
        while self.by_second:
            for timer in self.by_second.popitem()[1]:
                timer.pass_to_loop()

    def add(self, timer: Timer, second: int) -> set[Timer]:
        """Add a timer to the set of a second that no timer has been started for, and return that set."""
        timers = self.by_second[second] = {timer}
        if self._opening is None:
            self.opened_second = int(self.loop.time())
            self._opening = self.loop.call_at(self.opened_second + 1, self._open)
        return timers

    def _open(self) -> None:
        """Hand the timers of the seconds that have begun to the event loop."""
        begun = max(int(self.loop.time()), self.opened_second + 1)  # the loop's clock may be a millisecond early
        for second in range(self.opened_second + 1, begun + 1):
            for timer in self.by_second.pop(second, ()):
                timer.pass_to_loop()
        self.opened_second = begun
        self._opening = self.loop.call_at(begun + 1, self._open) if self.by_second else None


class Timer:
    """Calls a function at a given time, unless it is cancelled before. It may be started again and again.

    It refers to the function only while it is started, so that an object may have a timer that calls its own method.

    Args:
        timers: Those of the event loop.
    """

    __slots__ = ("_callback", "_handle", "_neighbours", "_timers", "_when_s")

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._callback: Callable[[], object] | None = None
        self._when_s = 0.0
        self._neighbours: set[Timer] | None = None
        self._handle: asyncio.TimerHandle | None = None

    def start(self, when_s: float, callback: Callable[[], object]) -> None:
        """Call a function at a time of the event loop's clock, and none at the time that was set before."""
        if self._callback is not None:
            self.cancel()
        self._when_s = when_s
        self._callback = callback
        timers, second = self._timers, int(when_s)
        if second <= timers.opened_second or second <= timers.loop.time():
            self.pass_to_loop()
        elif (neighbours := timers.by_second.get(second)) is not None:
            neighbours.add(self)
            self._neighbours = neighbours
        else:
            self._neighbours = timers.add(self, second)

    def cancel(self) -> None:
        """Call nothing, whether a time was set or not."""
        if self._callback is None:
            return
        self._callback = None
        if self._neighbours is not None:
            self._neighbours.discard(self)
            if not self._neighbours:  # a set does not shrink, and limits may lie hours ahead
                del self._timers.by_second[int(self._when_s)]
            self._neighbours = None
        elif self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def pass_to_loop(self) -> None:
        """Leave the rest to the event loop: its second has begun, or the timers are closed."""
        self._neighbours = None
        self._handle = self._timers.loop.call_at(self._when_s, self._fire)

    def _fire(self) -> None:
        self._handle = None
        callback, self._callback = self._callback, None
        assert callback is not None, "it is started"
        callback()


class TimeLimit(Timer):
    """Raises TimeoutError from a ``with`` block when its time is up, as ``asyncio.timeout`` does.

    Args:
        timers: Those of the event loop.
        ends_at_s: When the time is up, by the event loop's clock.
    """

    __slots__ = ("_cancelling", "_ends_at_s", "_has_expired", "_task")

    def __init__(self, timers: Timers, ends_at_s: float) -> None:
        super().__init__(timers)
        self._ends_at_s = ends_at_s

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None, "there is one wherever something is awaited"
        self._task = task
        self._cancelling = task.cancelling()
        self._has_expired = False
        self.start(self._ends_at_s, self._expire)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        # If others have cancelled the task, too, that comes first.
        if self._has_expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def extend(self, ends_at_s: float) -> None:
        """Set the time again, also after ``cancel``. If it is up already, the block ends where it waits next."""
        if not self._has_expired:
            self.start(ends_at_s, self._expire)

    def _expire(self) -> None:
        self._has_expired = True
        self._task.cancel()
