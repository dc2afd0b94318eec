"""Progress on standard error: a live line on a terminal, plain lines elsewhere, with log messages above them."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import StringIO
from typing import IO, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from datafetch.cli.exit_code import one_line
from datafetch.model.statistics import ReshardProgress, Statistics
from datafetch.monitor.throughput import Throughput
from datafetch.verify import VerifyProgress

_LIVE_INTERVAL_S = 0.25
_PLAIN_INTERVAL_S = 10.0


class ProgressConsole(Console):
    """A console on standard error that ignores write errors, which are no reason to end a run of days."""

    def __init__(self) -> None:
        super().__init__(file=cast("IO[str]", _StandardError()))
        _load_rich()


class _StandardError:
    """Standard error, whose errors are ignored: its reader has exited, its disk is full, or its terminal is gone."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(sys.stderr, name)


def _load_rich() -> None:
    """Have rich import now what it needs for a line; during a run there may be no descriptors left for an import."""
    for is_terminal in (True, False):
        console = Console(file=StringIO(), force_terminal=is_terminal)
        with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
            live.update(Text("a picture of 桜", no_wrap=True), refresh=True)
        console.print(Text("a picture of 桜"), soft_wrap=True, highlight=False)


@contextmanager
def show_log_messages(console: Console) -> Iterator[None]:
    """Show the log messages of the library, from level INFO, above the live line, until the context is left.

    Only for commands: a library must not decide where log records go.

    Args:
        console: The console on which the progress is shown; on another one, messages would break the live line.
    """
    logger = logging.getLogger("datafetch")
    handler = _LogHandler(console)
    logger.addHandler(handler)
    level_before = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level_before)
        logger.removeHandler(handler)


class _LogHandler(logging.Handler):
    """Writes the message of each record, without its traceback, as one line."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        line = Text(f"datafetch: {one_line(record.getMessage())}")
        with suppress(Exception):  # a message that can't be shown is no reason to end a run
            self._console.print(line, soft_wrap=True, highlight=False)


def progress_line(now: Statistics, images_per_s: float, later_images: int = 0) -> str:
    """Format the progress of a run: images, their outcomes, pace, time left, open requests and their limit, shards.

    During resharding, its progress takes the place of everything after the outcomes.

    Args:
        now: The progress.
        images_per_s: The pace.
        later_images: The number of images that other runs will fetch after this one, for the time that all will take.
    """
    ended = now.ok + now.failed
    images = f"{ended:,}" if now.expected_images is None else f"{ended:,}/{now.expected_images:,}"
    parts = [f"{images} images", f"{now.ok:,} ok", f"{now.failed:,} failed"]
    if now.resharding is not None:
        made = now.resharding
        return "  ".join([*parts, f"resharding: {made.stage} {made.rows:,}/{made.total_rows:,} rows"])
    parts.append(f"{images_per_s:.1f} images/s")
    if now.expected_images is not None and images_per_s > 0:
        left_s = max(0, now.expected_images - ended) / images_per_s
        eta = f"ETA {timedelta(seconds=round(left_s))}"
        if later_images:  # in front, since with a name before it the line is wider than many terminals
            parts.insert(1, f"{eta}, all {timedelta(seconds=round(left_s + later_images / images_per_s))}")
        else:
            parts.append(eta)
    parts.append(f"open {now.open_requests}/{now.connections}")
    parts.append(f"shards {now.shards_published}/{now.shards}")
    return "  ".join(parts)


def verifying_line(now: VerifyProgress) -> str:
    """Format the progress of a verification: the share of bytes read, what was checked and found, pace, time left."""
    share = now.read_bytes / now.total_bytes if now.total_bytes else 0.0
    parts = [f"{share:.1%}", f"{now.samples:,} samples", f"{now.images:,} images", f"{now.problems:,} problems"]
    if now.elapsed_s > 0:
        parts.append(f"{now.images / now.elapsed_s:.1f} images/s")
    if share > 0:
        parts.append(f"ETA {timedelta(seconds=round(now.elapsed_s * max(0.0, 1 / share - 1)))}")
    return "  ".join(parts)


def resharding_line(now: ReshardProgress, elapsed_s: float) -> str:
    """Format the progress of resharding: the stage, its rows, and the speed of copying.

    Args:
        now: The progress.
        elapsed_s: Time since the stage began.
    """
    parts = [f"{now.stage} {now.rows:,}/{now.total_rows:,} rows"]
    if now.copied_bytes and elapsed_s > 0:
        parts.append(f"{now.copied_bytes / elapsed_s / 1e6:.0f} MB/s")
    return "  ".join(parts)


async def show_progress(
    statistics: Callable[[], Statistics], console: Console, *, title: str = "", later_images: int = 0
) -> None:
    """Show the progress of a run until cancelled; the last line stays on a terminal.

    Args:
        statistics: Called for a snapshot each time.
        console: The console; whether it is a terminal decides the form.
        title: What stands in front of the line, if this is one of several runs.
        later_images: The number of images that the others will fetch after this one.
    """
    pace = Throughput()

    def line() -> str:
        now = statistics()
        return f"{title}  {progress_line(now, pace.images_per_s(now), later_images)}".lstrip()

    await _show_lines(line, console)


async def show_verifying(progress: Callable[[], VerifyProgress], console: Console) -> None:
    """Show the progress of a verification; otherwise like ``show_progress``."""
    await _show_lines(lambda: verifying_line(progress()), console)


@contextmanager
def show_resharding(console: Console) -> Iterator[Callable[[ReshardProgress], None]]:
    """Show the progress of resharding; yields the function to call with each new state.

    Args:
        console: The console; whether it is a terminal decides the form.
    """
    latest = _LatestProgress()
    with _open_display(latest.line, console) as display:

        def report(now: ReshardProgress) -> None:
            latest.update(now)
            display.show_if_due()

        yield report


class _LatestProgress:
    """The latest progress of resharding, and when its stage began."""

    def __init__(self) -> None:
        self._progress: ReshardProgress | None = None
        self._stage_began_s = 0.0

    def update(self, now: ReshardProgress) -> None:
        if self._progress is None or self._progress.stage != now.stage:
            self._stage_began_s = time.monotonic()
        self._progress = now

    def line(self) -> str:
        if self._progress is None:
            return ""
        return resharding_line(self._progress, time.monotonic() - self._stage_began_s)


async def _show_lines(line: Callable[[], str], console: Console) -> None:
    with _open_display(line, console) as display:
        while True:
            await asyncio.sleep(display.interval_s)
            display.show()


@contextmanager
def _open_display(line: Callable[[], str], console: Console) -> Iterator[_Display]:
    """Open a display. On a terminal it shows a line from the beginning, and leaves the last one on the screen."""
    if not console.is_terminal:
        yield _Display(line, lambda text: console.print(Text(text), soft_wrap=True, highlight=False), _PLAIN_INTERVAL_S)
        return
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        display = _Display(line, lambda text: live.update(Text(text, no_wrap=True), refresh=True), _LIVE_INTERVAL_S)
        try:
            display.show()
            yield display
        finally:
            display.show()


class _Display:
    """Where lines of progress are shown, and how often.

    Args:
        line: Called for the current line; an empty one is not shown.
        write: Shows a line.
        interval_s: The time between two lines.
    """

    def __init__(self, line: Callable[[], str], write: Callable[[str], None], interval_s: float) -> None:
        self.interval_s = interval_s
        self._line = line
        self._write = write
        self._shown_s = time.monotonic()

    def show(self) -> None:
        """Show the current line."""
        self._shown_s = time.monotonic()
        if text := self._line():
            self._write(text)

    def show_if_due(self) -> None:
        """Show the current line unless the last one was shown less than the interval ago."""
        if time.monotonic() - self._shown_s >= self.interval_s:
            self.show()
