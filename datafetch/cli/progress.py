"""The progress of runs, verifications and resharding, passed to a reporter as lines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from datafetch.cli.progress_line import ProgressLine, resharding_line, run_line, verifying_line
from datafetch.cli.reporter import Reporter
from datafetch.model.statistics import ReshardProgress, Statistics
from datafetch.monitor.throughput import Throughput

if TYPE_CHECKING:
    from datafetch.verify import VerifyProgress  # which would load the verification


async def show_progress(
    statistics: Callable[[], Statistics], reporter: Reporter, *, title: str = "", later_images: int = 0
) -> None:
    """Show the progress of a run until cancelled.

    Args:
        statistics: Called for a snapshot each time.
        reporter: Where it is shown.
        title: What stands in front of the line, if this is one of several runs.
        later_images: The number of images that the others will fetch after this one.
    """
    throughput = Throughput()

    def line() -> ProgressLine:
        now = statistics()
        return run_line(now, throughput.pace(now), title=title, later_images=later_images)

    await show_lines(line, reporter)


async def show_verifying(progress: Callable[[], VerifyProgress], reporter: Reporter) -> None:
    """Show the progress of a verification; otherwise like ``show_progress``."""
    await show_lines(lambda: verifying_line(progress()), reporter)


async def show_lines(line: Callable[[], ProgressLine], reporter: Reporter) -> None:
    """Show lines until cancelled."""
    with reporter.progress():
        try:
            reporter.show(line(), is_end=True)
            while True:
                await asyncio.sleep(reporter.interval_s)
                reporter.show(line())
        finally:
            reporter.show(line(), is_end=True)


@contextmanager
def show_resharding(reporter: Reporter) -> Iterator[Callable[[ReshardProgress], None]]:
    """Show the progress of resharding; yields the function to call with each new state.

    Args:
        reporter: Where it is shown.
    """
    stage = _Stage()
    with reporter.progress():

        def report(now: ReshardProgress) -> None:
            reporter.show(stage.line(now))

        try:
            yield report
        finally:
            if stage.latest is not None:
                reporter.show(stage.line(stage.latest), is_end=True)


class _Stage:
    """The current stage of resharding.

    Attributes:
        latest: Its latest progress; None before it has begun.
    """

    def __init__(self) -> None:
        self.latest: ReshardProgress | None = None
        self._began_s = 0.0
        self._rows_before = 0

    def line(self, now: ReshardProgress) -> ProgressLine:
        """The line for its progress."""
        if self.latest is None or self.latest.stage != now.stage:
            self._began_s, self._rows_before = time.monotonic(), now.rows
        self.latest = now
        return resharding_line(now, time.monotonic() - self._began_s, self._rows_before)
