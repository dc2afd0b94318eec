"""Observers never affect the work: an exception of theirs is logged, and what they watch continues."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TypeVar

_log = logging.getLogger(__name__)

_Snapshot = TypeVar("_Snapshot")


class SafeObserver:
    """``with unheeded: …`` suppresses what an observer raises, and logs the first exception with its traceback.

    Being cancelled, Ctrl-C and the like are no failures of the observer, and are raised.

    Args:
        who: The observer, as the log is to name it.

    Attributes:
        has_failed: Whether an exception was suppressed.
    """

    def __init__(self, who: str) -> None:
        self.has_failed = False
        self._who = who

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        if not self.has_failed:
            what = f"{type(error).__name__}: {error}"
            _log.error("%s failed (%s); the work itself continues", self._who, what, exc_info=error)
        self.has_failed = True
        return True


async def observing(
    observe: Callable[[Callable[[], _Snapshot]], Coroutine[None, None, None]], ask: Callable[[], _Snapshot]
) -> None:
    """Let an observer watch until it is cancelled; when it fails, there is none any more.

    Args:
        observe: The observer.
        ask: What it asks for snapshots.
    """
    with SafeObserver("an observer"):
        await observe(ask)
