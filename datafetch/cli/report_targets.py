"""Where lines of progress and messages end up: a terminal, plain or JSON lines on standard error, a file.

Rules: what can't be written is no reason to end a run of days. The file is written in a thread of its own, because a
disk may be slow and the event loop must not wait for it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from io import StringIO
from pathlib import Path
from queue import SimpleQueue
from typing import IO, cast

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from datafetch.cli.exit_code import json_line
from datafetch.cli.progress_line import ProgressLine
from datafetch.errors import ConfigurationError
from datafetch.model.untrusted import one_line
from datafetch.store.layout import SUFFIX, OutputLayout

_LIVE_INTERVAL_S = 0.25
_PLAIN_INTERVAL_S = 10.0
_MAX_WAITING_LINES = 10_000  # to be written to the file of --log, while its disk hangs
_CLOSE_S = 5.0  # for what is left of them

_log = logging.getLogger(__name__)


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
    """The file of ``--log``, to which a thread appends; the first line that can't be written is warned of.

    Args:
        path: The file, for messages.
        descriptor: The file, opened to append; it is closed with this object.
    """

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor  # and no buffer, which Python would flush when it exits, whoever hangs
        self._lines: SimpleQueue[str | None] = SimpleQueue()  # a line every few seconds, and each message
        self._has_warned = False
        self._thread = threading.Thread(target=self._append_all, name="log file", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: str) -> LogFile:
        """Open the file, and create it if there is none.

        Raises:
            ConfigurationError: It can't be written, nobody reads the FIFO that it is, or it lies in an output.
        """
        if path == "-":
            raise ConfigurationError("--log takes the path of a file, not -; standard error has all messages already")
        try:
            output = _output_around(Path(path))
            if output is None:
                return cls(path, _open_to_append(path))
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigurationError(f"cannot write to --log {path} ({why}); give the path of another file") from error
        raise _lies_in(path, output)

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
        """Write what is left, unless that takes seconds, since nobody reads it or a disk hangs; close the file."""
        self._lines.put(None)
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            self._has_warned = True
            _log.warning("--log %s takes no more lines; the last ones are missing there", self._path)

    def _append_all(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                _write_all(self._descriptor, line.encode("utf-8", "replace"))
            except OSError as error:
                if not self._has_warned:
                    _log.warning("cannot write to --log %s (%s); lines are missing there", self._path, error.strerror)
                self._has_warned = True
        os.close(self._descriptor)


def _open_to_append(path: str) -> int:
    """Open a file to append to it, without waiting for who would read it."""
    descriptor = os.open(
        path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666
    )
    os.set_blocking(descriptor, True)
    return descriptor


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def refuse_log_within(path: str | None, outs: Iterable[str]) -> None:
    """Check that a log is not within outputs that are yet to be made.

    Args:
        path: The file of ``--log``; None if there is none.
        outs: The output folders.

    Raises:
        ConfigurationError: It is in one of them, or in its state folder.
    """
    with suppress(OSError, ValueError):  # which are reported when the file is opened
        around = frozenset() if path is None else frozenset(Path(path).resolve().parents)
        for layout in (OutputLayout(Path(out)) for out in outs):
            if path is not None and around & {layout.out.resolve(), layout.state_folder.resolve()}:
                raise _lies_in(path, layout.out)


def _lies_in(path: str, output: Path) -> ConfigurationError:
    return ConfigurationError(f"--log {path} lies in the output {output}; give the path of a file elsewhere")


def _output_around(path: Path) -> Path | None:
    """The output in whose folder or state folder a path is; None if it is in none."""
    for folder in path.resolve().parents:
        if folder.name.endswith(SUFFIX) and folder.name != SUFFIX:
            return folder.with_name(folder.name.removesuffix(SUFFIX))
        if folder.name and OutputLayout(folder).state_folder.is_dir():
            return folder
    return None


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
