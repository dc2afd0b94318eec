"""Activities: work besides the fetching of images that may take minutes, such as downloads and scans, and its progress.

Theory of operation. A run has observers only while it fetches, and much of what comes before happens in threads and in
packages that know nothing of runs. So the progress of an activity goes the way of the library's messages: as a log
record, of level DEBUG, under the name of this module. The record has the progress as its attribute ``activity``. An
activity that takes less than a second leaves no record, and others leave a few a second.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

from datafetch.model.remaining import remaining_s

LOGGER = __name__
"""The name under which activities are logged."""
_log = logging.getLogger(LOGGER)
_FIRST_AFTER_S = 1.0
_INTERVAL_S = 0.25


class ActivityUnit(StrEnum):
    """What an activity consists of."""

    BYTE = "byte"
    FILE = "file"
    SOURCE = "source"


@dataclass(frozen=True, slots=True)
class ActivityProgress:
    """The progress of an activity.

    Attributes:
        what: What is done, for people, such as "downloading list.json"; it may quote foreign names.
        done: How much is done, including what was there before.
        total: How much there is in all.
        unit: What is counted.
        per_s: The pace.
        is_at_work: Whether somebody is at work on it now.
    """

    what: str
    done: int
    total: int
    unit: ActivityUnit
    per_s: float
    is_at_work: bool

    @property
    def left_s(self) -> float | None:
        """How many seconds the rest will take; None if nothing is left, or nothing has been done yet."""
        return remaining_s(self.total - self.done, self.per_s)


class Activity:
    """An activity: ``with activity: … activity.advance(count) …``, once, or whenever it is worked on.

    Args:
        what: What is done, for people.
        total: How much there is to do in all.
        unit: What is counted.
        done: How much was done before.
    """

    def __init__(self, what: str, total: int, unit: ActivityUnit, *, done: int = 0) -> None:
        self._what = what
        self._total = total
        self._unit = unit
        self._before = self._done = done
        self._worked_s = 0.0
        self._began_s: float | None = None
        self._reported_s: float | None = None

    def __enter__(self) -> Self:
        self._began_s = time.monotonic()
        self._report()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reported_s is not None:
            self._log(is_at_work=False)
        self._worked_s, self._began_s = self._worked_now_s(), None

    def advance(self, count: int) -> None:
        """Count what has been done; from one thread at a time."""
        self._done += count
        self._report()

    def skip(self, count: int) -> None:
        """Count what turned out to be done already."""
        self._done += count
        self._before += count

    def _report(self) -> None:
        now_s = time.monotonic()
        is_due = self._reported_s is None or now_s - self._reported_s >= _INTERVAL_S
        if is_due and self._worked_now_s() >= _FIRST_AFTER_S:
            self._reported_s = now_s
            self._log(is_at_work=True)

    def _worked_now_s(self) -> float:
        return self._worked_s + (0.0 if self._began_s is None else time.monotonic() - self._began_s)

    def _log(self, *, is_at_work: bool) -> None:
        worked_s = self._worked_now_s()
        per_s = (self._done - self._before) / worked_s if worked_s > 0 else 0.0
        now = ActivityProgress(self._what, self._done, self._total, self._unit, per_s, is_at_work)
        _log.debug(
            "%s: %s of %s", self._what, f"{self._done:,}", f"{self._total:,} {self._unit}s", extra={"activity": now}
        )
