"""Stopwatch: the wall clock of one attempt, which stands still while we wait for something of our own.

It goes with the attempt through all of its redirects, and so keeps what was permitted under way as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from types import TracebackType
from typing import Self, TypeVar

from datafetch.model.outcome import Permission

_Result = TypeVar("_Result")


class Deadline:
    """Runs inside ``async with``, more than once if need be, and raises TimeoutError there when it has run out.

    Args:
        limit_s: Seconds that it may run, over all its runs.

    Attributes:
        permitted: What was taken so far by the operator's permission alone.
    """

    __slots__ = ("_limit_s", "_passed_s", "_started_s", "_timeout", "permitted")

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._passed_s = 0.0
        self.permitted: set[Permission] = set()

    @property
    def has_run(self) -> bool:
        """Whether anything was requested under it."""
        return self._passed_s > 0

    @property
    def passed_s(self) -> float:
        """Seconds that it ran before the present run."""
        return self._passed_s

    async def __aenter__(self) -> Self:
        self._started_s = time.perf_counter()  # uvloop's own clock ticks in milliseconds
        self._timeout = asyncio.timeout(self._limit_s - self._passed_s)
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._passed_s += time.perf_counter() - self._started_s
        await self._timeout.__aexit__(kind, error, trace)

    async def paused(self, own_affair: Awaitable[_Result]) -> _Result:
        """Wait for something while the clock stands still."""
        self._passed_s += time.perf_counter() - self._started_s
        self._timeout.reschedule(None)
        try:
            return await own_affair
        finally:
            self._started_s = time.perf_counter()
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._limit_s - self._passed_s)
