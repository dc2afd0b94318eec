"""Where lines of progress and messages end up: a terminal, plain or JSON lines on standard error, a file.

Rules: what can't be written is no reason to end a run of days. The file is written in a thread of its own, because a
disk may be slow and the event loop must not wait for it.
"""

from __future__ import annotations

import logging
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from io import StringIO
from pathlib import Path
from queue import SimpleQueue
from typing import IO, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from datafetch.cli.exit_code import json_line, one_line
from datafetch.cli.progress_line import ProgressLine
from datafetch.errors import ConfigurationError

_LIVE_INTERVAL_S = 0.25
_PLAIN_INTERVAL_S = 10.0
_MAX_WAITING_LINES = 10_000  # to be written to the file of --log, while its disk hangs


class Target(ABC):
    """Somewhere where messages and lines of progress go.

    Attributes:
        interval_s: The time between two lines of progress.
        shows_ends: Whether the first and the last line are shown, however short the time between them.
        level: The least level of the messages that go there.
    """

    interval_s: float = _PLAIN_INTERVAL_S
    shows_ends: bool = True
    level: int = logging.INFO

    @contextmanager
    def progress(self) -> Iterator[None]:
        """A context in which lines of progress are shown."""
        yield

    @abstractmethod
    def show(self, line: ProgressLine) -> None:
        """Show a line of progress."""

    @abstractmethod
    def log(self, record: logging.LogRecord) -> None:
        """Show a message."""


class PlainLines(Target):
    """Lines for people, where there is no terminal: a whole line of progress now and then, and messages.

    Args:
        console: Where they are printed.
    """

    shows_ends = False

    def __init__(self, console: Console) -> None:
        self.console = console

    def show(self, line: ProgressLine) -> None:
        """Print a line of progress."""
        self.console.print(Text(line.whole()), soft_wrap=True, highlight=False)

    def log(self, record: logging.LogRecord) -> None:
        """Print a message; on a terminal, above the live line."""
        text = f"datafetch: {one_line(record.getMessage())}"
        self.console.print(Text(text), soft_wrap=True, highlight=False)


class Terminal(PlainLines):
    """A terminal: one live line, whose last state stays, and messages above it."""

    interval_s = _LIVE_INTERVAL_S
    shows_ends = True
    _live: Live | None = None

    @contextmanager
    def progress(self) -> Iterator[None]:
        """A context in which there is a live line."""
        with Live(console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as self._live:
            yield
        self._live = None

    def show(self, line: ProgressLine) -> None:
        """Replace the live line."""
        if self._live is not None:
            self._live.update(_FittedLine(line), refresh=True)


class WarningsOnly(PlainLines):
    """Lines for people who want to see neither progress nor information."""

    level = logging.WARNING

    def show(self, line: ProgressLine) -> None:
        """Show no progress."""


class JsonLines(Target):
    """One JSON object a line.

    Args:
        file: Where they are written.
        is_quiet: Whether only warnings and errors are.
    """

    def __init__(self, file: IO[str], *, is_quiet: bool) -> None:
        self._file = file
        self._is_quiet = is_quiet
        self.level = logging.WARNING if is_quiet else logging.INFO

    def show(self, line: ProgressLine) -> None:
        """Write the values of a line of progress."""
        if not self._is_quiet:
            self._write(json_line({"progress": dict(line.values)}))

    def log(self, record: logging.LogRecord) -> None:
        """Write a message."""
        self._write(json_line({"level": record.levelname.lower(), "message": one_line(record.getMessage())}))

    def _write(self, line: str) -> None:
        self._file.write(line)
        self._file.flush()


class LogFile(Target):
    """The file of ``--log``, to which a thread appends.

    Args:
        file: The file, opened to append.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lines: SimpleQueue[str | None] = SimpleQueue()  # a line every few seconds, and each message
        self._thread = threading.Thread(target=self._append_all, name="log file", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: str) -> LogFile:
        """Open the file, and create it if there is none.

        Raises:
            ConfigurationError: It can't be written.
        """
        try:
            return cls(Path(path).open("a", encoding="utf-8", errors="replace"))
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigurationError(f"cannot write to --log {path} ({why}); give the path of another file") from error

    def show(self, line: ProgressLine) -> None:
        """Append a line of progress."""
        self.append("progress", line.whole())

    def log(self, record: logging.LogRecord) -> None:
        """Append a message."""
        self.append(record.levelname.lower(), one_line(record.getMessage()))

    def append(self, kind: str, text: str) -> None:
        """Append a line, with the time."""
        time_text = datetime.now().astimezone().isoformat(timespec="seconds")
        if self._lines.qsize() < _MAX_WAITING_LINES:
            self._lines.put(f"{time_text} {kind}: {text}\n")

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._lines.put(None)
        self._thread.join()

    def _append_all(self) -> None:
        while (line := self._lines.get()) is not None:
            with suppress(OSError):
                self._file.write(line)
                self._file.flush()
        with suppress(OSError):
            self._file.close()


class ReportConsole(Console):
    """A console on standard error that ignores write errors."""

    def __init__(self) -> None:
        super().__init__(file=cast("IO[str]", StandardError()))
        _load_rich()


class StandardError:
    """Standard error, whose errors are ignored: its reader has exited, its disk is full, or its terminal is gone."""

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(sys.stderr, name)


class _FittedLine:
    """A line of progress as rich renders it: fitted into the width that the terminal has at that moment."""

    def __init__(self, line: ProgressLine) -> None:
        self._line = line

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self._line.fitted(options.max_width), no_wrap=True)


def _load_rich() -> None:
    """Have rich import now what it needs for a line; during a run there may be no descriptors left for an import."""
    for is_terminal in (True, False):
        console = Console(file=StringIO(), force_terminal=is_terminal)
        with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
            live.update(Text("a picture of 桜", no_wrap=True), refresh=True)
        console.print(Text("a picture of 桜"), soft_wrap=True, highlight=False)
