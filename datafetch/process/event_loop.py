"""run_to_end(): a coroutine on an event loop of its own, that Ctrl-C cancels cleanly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import closing, suppress
from typing import Any, TypeVar

from datafetch.process.interrupts import in_force

_Result = TypeVar("_Result")


def run_to_end(
    work: Coroutine[Any, Any, _Result], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> _Result:
    """Run a coroutine on a loop of its own, like ``asyncio.run``.

    The first Ctrl-C cancels it. A second one disturbs neither its cleanup nor the closing of the loop.

    Raises:
        KeyboardInterrupt: Ctrl-C; by then the coroutine has ended, and so has everything that it started.
    """
    cancelling = _Cancelling()
    try:
        with (
            in_force() as interrupts,
            interrupts.calling(cancelling.cancel),
            closing((loop_factory or asyncio.new_event_loop)()) as loop,
        ):
            return loop.run_until_complete(cancelling.run(work))
    except asyncio.CancelledError:
        if cancelling.is_wanted:
            raise KeyboardInterrupt from None
        raise
    finally:
        work.close()  # for it may never have started


class _Cancelling:
    """Cancels a coroutine, from the moment on that there is a task for it."""

    def __init__(self) -> None:
        self.is_wanted = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    async def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run the coroutine in this task."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            if self.is_wanted:
                raise asyncio.CancelledError
            return await work
        finally:
            await _end_the_rest()

    def cancel(self) -> None:
        """Cancel it soon; in a signal handler, so that it happens between two steps of the loop and wakes it up."""
        self.is_wanted = True
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # the loop is closed, the work done
                self._loop.call_soon_threadsafe(self._task.cancel)


async def _end_the_rest() -> None:
    """End what is left on this loop, as ``asyncio.Runner`` does, but before the loop stops.

    To start it once more takes uvloop descriptors; where there are none, the loop can't even be closed any more.
    """
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.shutdown_asyncgens()
    with suppress(RuntimeError):  # no thread to wait in for the others; closing the loop tells them to end
        await loop.shutdown_default_executor()
