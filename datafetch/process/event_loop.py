"""run_to_end(): run a coroutine on an event loop of its own, so that Ctrl-C cancels it cleanly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import closing, suppress
from typing import Any, TypeVar

from datafetch.process.interrupts import active_interrupts

_Result = TypeVar("_Result")


def run_to_end(
    work: Coroutine[Any, Any, _Result],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    *,
    instead: str = "await it",
) -> _Result:
    """Run a coroutine on a loop of its own, like ``asyncio.run``.

    The first Ctrl-C cancels it. A second one disturbs neither its cleanup nor the closing of the loop.

    Args:
        work: The coroutine.
        loop_factory: Creates the event loop; None takes asyncio's default.
        instead: What to write where a loop is running already, such as in a notebook.

    Raises:
        RuntimeError: A loop is running in this thread; the message says what to write.
        KeyboardInterrupt: Ctrl-C was pressed. By then the coroutine and everything that it started have ended.
    """
    cancellable = _CancellableRun()
    try:
        _refuse_running_loop(instead)
        with (
            active_interrupts() as interrupts,
            interrupts.stopping_with(cancellable.cancel),
            closing((loop_factory or asyncio.new_event_loop)()) as loop,
        ):
            return loop.run_until_complete(cancellable.run(work))
    except asyncio.CancelledError:
        if cancellable.is_cancelled:
            raise KeyboardInterrupt from None
        raise
    finally:
        work.close()  # it may never have started


def _refuse_running_loop(instead: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"an event loop is running here, as in a notebook or an async function; write: {instead}")


class _CancellableRun:
    """Runs a coroutine that can be cancelled from a signal handler, even before its task exists."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    async def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run the coroutine in the current task."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            if self.is_cancelled:
                raise asyncio.CancelledError
            result = await work
        finally:
            self._task = None  # the work has ended, and a cancellation would disturb what comes after it
            await _end_remaining()
        if self.is_cancelled:  # in its last step, or since
            raise asyncio.CancelledError
        return result

    def cancel(self) -> None:
        """Cancel the coroutine. Safe in a signal handler: it is done between two steps of the loop, which it wakes."""
        self.is_cancelled = True
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # the loop is closed, so the work is done
                self._loop.call_soon_threadsafe(self._cancel_task)

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()


async def _end_remaining() -> None:
    """End everything that is left on this loop, as ``asyncio.Runner`` does, but before the loop stops.

    Starting a uvloop again takes descriptors. If none are left, it could not even be closed any more.
    """
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.shutdown_asyncgens()
    with suppress(RuntimeError):  # no thread can be started to wait for the others; closing the loop ends them
        await loop.shutdown_default_executor()
