"""Timers for the time limits of requests, of which hardly any is ever reached.

Theory of operation. A request has up to three limits at once: for its attempt, for connecting, and for silence. Each is
set and cancelled within a second and lies tens of seconds ahead, where a timer of the event loop costs far more than a
set that it is put into and taken out of. So all timers that lie ahead are in one set, and a sweep looks through it once
a second. Those that end before the next sweep become timers of the event loop, as do any that are started for a time
before it. So they end as exactly as those do. There are no sweeps while the set is empty.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from types import TracebackType
from typing import Self

_SWEEP_INTERVAL_S = 1.0
_MARGIN_S = 0.25  # by which a sweep may be late


class Timers:
    """The timers of one event loop, in which it must be made.

    Attributes:
        loop: The event loop.
        ahead: The timers that are not the loop's; ``sweep`` is called when the first is added.
        swept_until_s: Timers for a time before this are the loop's, by its clock.
        is_sweeping: Whether another sweep will come.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.ahead: set[Timer] = set()
        self.swept_until_s = -math.inf
        self.is_sweeping = False
        self._next_sweep: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Hand all timers to the loop, now and from now on: nothing of this object is left on the loop.

        What is still in progress keeps its time limits.
        """
        if self._next_sweep is not None:
            self._next_sweep.cancel()
        self._pass_to_loop(math.inf)

    def sweep(self) -> None:
        """Hand the timers that end before the next sweep to the loop, and call it for that."""
        now_s = self.loop.time()
        self._pass_to_loop(now_s + _SWEEP_INTERVAL_S + _MARGIN_S)
        self.is_sweeping = bool(self.ahead)
        if self.is_sweeping:
            self._next_sweep = self.loop.call_at(now_s + _SWEEP_INTERVAL_S, self.sweep)

    def _pass_to_loop(self, until_s: float) -> None:
        self.swept_until_s = until_s
        for timer in [timer for timer in self.ahead if timer.when_s <= until_s]:
            self.ahead.remove(timer)
            timer.pass_to_loop()


class Timer:
    """Calls a function at a given time, unless it is cancelled before. It may be started again and again.

    It refers to the function only while it is started, so that an object may have a timer that calls its own method.

    Args:
        timers: Those of the event loop.

    Attributes:
        when_s: The time that was set last, by the event loop's clock.
    """

    __slots__ = ("_callback", "_handle", "_timers", "when_s")

    def __init__(self, timers: Timers) -> None:
        self.when_s = 0.0
        self._timers = timers
        self._callback: Callable[[], object] | None = None
        self._handle: asyncio.TimerHandle | None = None

    def start(self, when_s: float, callback: Callable[[], object]) -> None:
        """Call a function at a time of the event loop's clock, and none at the time that was set before."""
        if self._callback is not None:
            self.cancel()
        self.when_s = when_s
        self._callback = callback
        timers = self._timers
        if when_s <= timers.swept_until_s:
            self.pass_to_loop()
            return
        timers.ahead.add(self)
        if not timers.is_sweeping:
            timers.sweep()

    def cancel(self) -> None:
        """Call nothing, whether a time was set or not."""
        if self._callback is None:
            return
        self._callback = None
        if self._handle is None:
            self._timers.ahead.discard(self)
        else:
            self._handle.cancel()
            self._handle = None

    def pass_to_loop(self) -> None:
        """Leave the rest to the event loop: its time is near, or the timers are closed."""
        self._handle = self._timers.loop.call_at(self.when_s, self._fire)

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
