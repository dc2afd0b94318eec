"""Where progress and log messages go: a terminal, standard error that is none, and the file of ``--log``.

Rules: what can't be written is no reason to end a run of days. The library logs and leaves it to the command where that
goes. The file is written in a thread of its own, because a disk may be slow and the event loop must not wait for it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from pathlib import Path
from queue import SimpleQueue
from typing import IO, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from datafetch.cli.exit_code import json_line, one_line
from datafetch.cli.progress_line import ProgressLine, step_line, with_step
from datafetch.errors import ConfigurationError
from datafetch.model import steps
from datafetch.model.options import Effect, Option, OptionGroup, option
from datafetch.model.steps import StepProgress

_LIVE_INTERVAL_S = 0.25
_PLAIN_INTERVAL_S = 10.0
_NEARLY = 0.9  # of the interval, for a loop's clock is not the one that is read here
_LIBRARY = "datafetch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporting:
    """How a command that takes long reports what it does; its options are the same for all of them.

    Attributes:
        log: The file to which log messages and lines of progress are appended; None for no file.
        log_json: Whether standard error gets JSON objects in place of lines for people.
        quiet: Whether standard error gets neither progress nor information, but only warnings and errors.
    """

    log: str | None = option(
        None,
        Option(
            help="Append messages and lines of progress to FILE, with the time of each.",
            group=OptionGroup.BEHAVIOUR,
            effect=Effect.NONE,
            metavar="FILE",
        ),
    )
    log_json: bool = option(
        False,
        Option(
            help="Messages and progress on standard error as one JSON object a line.",
            group=OptionGroup.BEHAVIOUR,
            effect=Effect.NONE,
        ),
    )
    quiet: bool = option(
        False,
        Option(
            help="No progress and no information on standard error, only warnings and errors.",
            group=OptionGroup.BEHAVIOUR,
            effect=Effect.NONE,
        ),
    )


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


class Reporter(logging.Handler):
    """Passes lines of progress, and the messages that the library logs in any thread, to all targets.

    A step besides fetching (``model.steps``) has a line of its own, or a field of the line that is shown already.

    Args:
        targets: Where they go.
    """

    def __init__(self, *targets: Target) -> None:
        super().__init__()
        self._targets = targets
        self._shown_s: dict[Target, float] = {}
        self._steps: dict[str, StepProgress] = {}
        self._step_lines = ExitStack()
        self._is_showing = self._shows_step = False

    @property
    def interval_s(self) -> float:
        """How often there should be a new line of progress."""
        return min(target.interval_s for target in self._targets)

    @contextmanager
    def progress(self) -> Iterator[None]:
        """A context in which lines of progress are shown."""
        self.end_step_line()
        self._is_showing = True
        self._shown_s = dict.fromkeys(self._targets, time.monotonic())
        try:
            with ExitStack() as stack:
                for target in self._targets:
                    stack.enter_context(target.progress())
                yield
        finally:
            self._is_showing = False

    def show(self, line: ProgressLine, *, is_end: bool = False) -> None:
        """Show a line of progress, wherever the last one was shown long enough ago.

        Args:
            line: The line.
            is_end: Whether it is the first or the last one.
        """
        for step in list(self._steps.values())[:1] if self._is_showing else ():
            line = with_step(line, step)
        self._show(line, is_end=is_end)

    def emit(self, record: logging.LogRecord) -> None:
        """Show a message, without its traceback, as one line; or the progress of a step."""
        with suppress(Exception):  # what can't be shown is no reason to end a run
            step = getattr(record, "step", None)
            if isinstance(step, StepProgress):
                self._show_step(step)
                return
        for target in self._targets:
            if record.levelno >= target.level:
                with suppress(Exception):
                    target.log(record)

    def end_step_line(self) -> None:
        """End the line of a step, if there is one."""
        if self._shows_step:
            self._shows_step = False
            self._step_lines.close()

    def _show_step(self, step: StepProgress) -> None:
        """Show a step in a line of its own, unless another line is shown, which gets it with its next state."""
        if step.is_at_work:
            self._steps[step.what] = step
        else:
            self._steps.pop(step.what, None)
        if self._is_showing:
            return
        if step.is_at_work and not self._shows_step:
            self._shows_step = True
            self._shown_s = dict.fromkeys(self._targets, time.monotonic())
            for target in self._targets:
                self._step_lines.enter_context(target.progress())
        if self._shows_step:
            self._show(step_line(step), is_end=not step.is_at_work)
        if not self._steps:
            self.end_step_line()

    def _show(self, line: ProgressLine, *, is_end: bool) -> None:
        now_s = time.monotonic()
        for target in self._targets:
            is_due = now_s - self._shown_s.get(target, now_s) >= target.interval_s * _NEARLY
            if is_due or (is_end and target.shows_ends):
                self._shown_s[target] = now_s
                target.show(line)


@contextmanager
def open_reporter(reporting: Reporting | None = None) -> Iterator[Reporter]:
    """Report what a command does until the context is left; what stops it is written to the file of ``--log``, too.

    Raises:
        ConfigurationError: That file can't be written.
    """
    reporting = reporting or Reporting()
    targets: list[Target] = [_on_standard_error(reporting)]
    with ExitStack() as stack:
        if reporting.log is not None:
            log_file = LogFile.open(reporting.log)
            targets.append(log_file)
            stack.callback(log_file.close)
            stack.enter_context(_logged_end(log_file))
        reporter = Reporter(*targets)
        stack.enter_context(receiving(reporter))
        stack.callback(reporter.end_step_line)
        yield reporter


@contextmanager
def receiving(reporter: Reporter) -> Iterator[None]:
    """Let a reporter have the library's messages, from level INFO, and its steps, until the context is left."""
    library = logging.getLogger(_LIBRARY)
    levels = {library: logging.INFO, logging.getLogger(steps.LOGGER): logging.DEBUG}
    before = {logger: logger.level for logger in levels}
    library.addHandler(reporter)
    for logger, level in levels.items():
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
        library.removeHandler(reporter)


@contextmanager
def _logged_end(log_file: LogFile) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        is_interrupt = isinstance(error, KeyboardInterrupt)
        log_file.append("error", "interrupted" if is_interrupt else one_line(str(error) or repr(error)))
        raise


def _on_standard_error(reporting: Reporting) -> Target:
    if reporting.log_json:
        return JsonLines(cast("IO[str]", _StandardError()), is_quiet=reporting.quiet)
    console = ReportConsole()
    if reporting.quiet:
        return WarningsOnly(console)
    return Terminal(console) if console.is_terminal else PlainLines(console)


class ReportConsole(Console):
    """A console on standard error that ignores write errors."""

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
