"""Isolate observers from the work that they observe: their exceptions are logged, and the work continues."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TypeVar

_log = logging.getLogger(__name__)

_Snapshot = TypeVar("_Snapshot")


class SafeObserver:
    """A context manager that suppresses the exceptions of an observer, and logs the first one with its traceback.

    Cancellation, ``KeyboardInterrupt`` and the like are not failures of the observer, and are not suppressed.

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
        if not isinstance(error, Exception):
            return False
        if not self.has_failed:
            cause = f"{type(error).__name__}: {error}"
            _log.error("%s failed (%s); the work itself continues", self._name, cause, exc_info=error)
        self.has_failed = True
        return True


async def observing(
    observe: Callable[[Callable[[], _Snapshot]], Coroutine[None, None, None]], ask: Callable[[], _Snapshot]
) -> None:
    """Run an observer until it is cancelled or fails; a failure is logged and not raised.

    Args:
        observe: The observer.
        ask: Returns the current snapshot; passed to the observer.
    """
    with SafeObserver("an observer"):
        await observe(ask)
