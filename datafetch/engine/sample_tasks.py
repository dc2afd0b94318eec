"""SampleTasks: any number of tasks that pull samples and process them.

There is no queue between the stages: a free task pulls the next sample, and that is the backpressure. A task that waits
for a host slot, a retry, memory or the codec holds no connection, so there are several tasks per connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from datafetch.engine.image_source import ImageSource

TASKS_PER_CONNECTION = 4
SYNC_INTERVAL_S = 5.0
"""If the machine crashes, the results of these seconds are lost."""
_MIN_TASKS = 1024  # so that the samples of one slow host don't fill the look-ahead, however few the connections

_Next = TypeVar("_Next")


class SampleTasks(Generic[_Next]):
    """Tasks that pull samples and process them.

    Args:
        pull: Waits for the next sample; None if there are no more.
        process: Processes a sample.
        source: Gets the bytes of images; it determines how many tasks there are.
    """

    def __init__(
        self,
        pull: Callable[[], Awaitable[_Next | None]],
        process: Callable[[_Next], Awaitable[None]],
        source: ImageSource,
    ) -> None:
        self._pull = pull
        self._process = process
        self._fetch = source.fetch
        self._in_flight = source.call_limiter(TASKS_PER_CONNECTION)
        self._tasks = 0

    async def run(self) -> None:
        """Work until there are no more samples."""
        async with asyncio.TaskGroup() as working:
            self._start_task(working)

    def _start_task(self, working: asyncio.TaskGroup) -> None:
        if self._tasks < max(_MIN_TASKS, self._fetch.max_connections * TASKS_PER_CONNECTION):
            self._tasks += 1
            working.create_task(self._work(working))

    async def _work(self, working: asyncio.TaskGroup) -> None:
        """Process samples until there are no more; start the next task as soon as this one has work.

        So there are as many tasks as samples in flight and one that waits, not thousands from the start.
        """
        has_started_next = False
        while True:
            async with self._in_flight:
                next_sample = await self._pull()
                if next_sample is None:
                    return
                if not has_started_next:
                    has_started_next = True
                    self._start_task(working)
                await self._process(next_sample)
