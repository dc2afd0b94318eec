"""Blocking work in a thread that is never abandoned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

_Result = TypeVar("_Result")


async def run_in_thread(
    work: Callable[..., _Result],
    *arguments: Any,
    on_cancel: Callable[[], object] | None = None,
    threads: Executor | None = None,
) -> _Result:
    """Do blocking work in a thread, and wait for its end even if this is cancelled.

    ``asyncio.to_thread`` returns at once when it is cancelled, and its thread goes on. It must not be used for work
    that needs a lock which is released then: another process could take the lock meanwhile.

    Args:
        work: Called in a thread.
        *arguments: Its arguments.
        on_cancel: Called when this is cancelled, to make the work end sooner.
        threads: Whose thread it is, for work that waits long; None takes one of those that all share.

    Returns:
        What the work returned.

    Raises:
        CancelledError: This was cancelled, and the work has ended, in whatever way.
    """
    if threads is None:
        task: asyncio.Future[_Result] = asyncio.create_task(asyncio.to_thread(work, *arguments))
    else:
        task = asyncio.get_running_loop().run_in_executor(threads, partial(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if on_cancel is not None:
            on_cancel()
        while not task.done():
            with suppress(asyncio.CancelledError):  # further cancellations wait like the first
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # or asyncio would report it as never retrieved
        raise
