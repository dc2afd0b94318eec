"""The clock of one attempt, which is paused while the attempt waits for this machine.

It accompanies the attempt through all of its hops, and so collects the permissions that they use as well.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from types import TracebackType
from typing import Self, TypeVar

from datafetch.fetch.timers import TimeLimit, Timers
from datafetch.model.outcome import Permission

_Result = TypeVar("_Result")


class Deadline:
    """Runs inside ``with``, which raises TimeoutError when the time is up. It may be entered again and again.

    Args:
        limit_s: Seconds that it may run in all.
        timers: Those of the event loop.

    Attributes:
        permitted: What has been taken so far by the operator's permission alone.
    """

    __slots__ = ("_elapsed_s", "_limit_s", "_started_s", "_time_limit", "_timers", "permitted")

    def __init__(self, limit_s: float, timers: Timers) -> None:
        self._timers = timers
        self._limit_s = limit_s
        self._elapsed_s = 0.0
        self.permitted: set[Permission] = set()

    @property
    def has_run(self) -> bool:
        """Whether any request was made under it."""
        return self._elapsed_s > 0

    @property
    def elapsed_s(self) -> float:
        """Seconds that it has run, not counting the time since it was last entered or resumed."""
        return self._elapsed_s

    def __enter__(self) -> Self:
        self._started_s = time.perf_counter()  # the clock of uvloop ticks in milliseconds only
        self._time_limit = TimeLimit(self._timers, self._ends_at_s())
        self._time_limit.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._elapsed_s += time.perf_counter() - self._started_s
        self._time_limit.__exit__(kind, error, trace)

    def rewind(self, elapsed_s: float) -> None:
        """Forget the time since it had run for ``elapsed_s``, because it was this machine that took it."""
        self._elapsed_s = elapsed_s

    async def paused(self, awaitable: Awaitable[_Result]) -> _Result:
        """Await something while the clock is stopped."""
        self._elapsed_s += time.perf_counter() - self._started_s
        self._time_limit.cancel()
        try:
            return await awaitable
        finally:
            self._started_s = time.perf_counter()
            self._time_limit.extend(self._ends_at_s())

    def _ends_at_s(self) -> float:
        return self._timers.loop.time() + self._limit_s - self._elapsed_s
