"""Observers watch a run or a check, and are isolated from it: their exceptions are logged, and the work continues."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TypeAlias, TypeVar

from datafetch.errors import DatafetchError
from datafetch.model.untrusted import short_repr

_log = logging.getLogger(__name__)

_Snapshot = TypeVar("_Snapshot")

Observer: TypeAlias = Callable[[Callable[[], _Snapshot]], Coroutine[None, None, None]]
"""A coroutine function that observes work: it may call its argument for a snapshot at any time, until it is cancelled.

What it raises is logged as an error under ``datafetch.model.observers``, and the work continues without it: also
``SystemExit``, by which a library that it calls would otherwise end the run without a word.
"""


class SafeObserver:
    """A context manager that suppresses the exceptions of an observer, and logs the first one with its traceback.

    Cancellation and ``KeyboardInterrupt`` are not failures of the observer, and are not suppressed.

    Args:
        name: The observer's name in the log.

    Attributes:
        has_failed: Whether an exception was suppressed.
    """

    def __init__(self, name: str) -> None:
        self.has_failed = False
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception | SystemExit):
            return False
        if not self.has_failed:
            cause = f"{type(error).__name__}: {error}"
            _log.error("%s failed (%s); the work itself continues", self._name, cause, exc_info=error)
        self.has_failed = True
        return True


def as_observers(observers: Iterable[Observer[_Snapshot]]) -> tuple[Observer[_Snapshot], ...]:
    """The observers that a caller gave.

    Raises:
        TypeError: They are not in a list or another iterable, or one of them is not a coroutine function.
    """
    if not isinstance(observers, Iterable):
        raise TypeError(f"observers are given as a list, not as {short_repr(observers)}; write [observe]")
    found = tuple(observers)
    for observer in found:
        if not (inspect.iscoroutinefunction(observer) or inspect.iscoroutinefunction(type(observer).__call__)):
            raise TypeError(f"an observer is a coroutine function (async def), not {observer!r}")
    return found


@asynccontextmanager
async def observed_by(
    observers: Iterable[Observer[_Snapshot]], take_snapshot: Callable[[], _Snapshot]
) -> AsyncIterator[None]:
    """Let observers watch the work that is done in this context, and cancel them at its end.

    Args:
        observers: They run at the same time; none of them affects the work, or another.
        take_snapshot: Returns how the work stands; passed to each observer.

    Raises:
        TypeError: As ``as_observers`` does.
        BaseException: The one error that stopped the work, also where task groups within it raised groups of several.
            An error of datafetch's own goes first, because it tells the operator what to do.
    """
    observers = as_observers(observers)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_run_safely(observer, take_snapshot)) for observer in observers]
            yield
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as errors:
        raise root_error(errors) from errors


async def _run_safely(observer: Observer[_Snapshot], take_snapshot: Callable[[], _Snapshot]) -> None:
    with SafeObserver("an observer"):
        await observer(take_snapshot)


def root_error(errors: BaseExceptionGroup) -> BaseException:
    """The one error that says most of those that task groups have raised: one of datafetch's own, if there is any."""
    own, others = errors.split(DatafetchError)
    error: BaseException = own or others or errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
