"""How a command reports: lines of progress, activities and the library's messages, passed to wherever its options say.

Rules: the library logs, and leaves it to the command where that goes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import IO, cast

from datafetch.cli.exit_code import message_of
from datafetch.cli.progress_line import ProgressLine, activity_line, with_activity
from datafetch.cli.report_targets import (
    JsonLines,
    LogFile,
    PlainLines,
    ReportConsole,
    StandardError,
    Target,
    Terminal,
    WarningsOnly,
)
from datafetch.errors import DatafetchError
from datafetch.model import activities
from datafetch.model.activities import ActivityProgress
from datafetch.model.options import Effect, Option, OptionGroup, option
from datafetch.model.untrusted import one_line

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


class Reporter(logging.Handler):
    """Passes lines of progress, and the messages that the library logs in any thread, to all targets.

    An activity besides fetching (``model.activities``) has a line of its own, or a field of the line that is shown.

    Args:
        targets: Where they go.
    """

    def __init__(self, *targets: Target) -> None:
        super().__init__()
        self._targets = targets
        self._shown_s: dict[Target, float] = {}
        self._activities: dict[str, ActivityProgress] = {}
        self._activity_lines = ExitStack()
        self._is_showing = self._shows_activity = False
        self._switching = threading.RLock()  # activities begin and end in any thread

    @property
    def interval_s(self) -> float:
        """How often there should be a new line of progress."""
        return min(target.interval_s for target in self._targets)

    @contextmanager
    def progress(self) -> Iterator[None]:
        """A context in which lines of progress are shown."""
        with self._switching:
            self.end_activity_line()
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
        for activity in list(self._activities.values())[:1] if self._is_showing else ():
            line = with_activity(line, activity)
        self._show(line, is_end=is_end)

    def emit(self, record: logging.LogRecord) -> None:
        """Show a message, without its traceback, as one line; or the progress of an activity."""
        with suppress(Exception):  # what can't be shown is no reason to end a run
            activity = getattr(record, "activity", None)
            if isinstance(activity, ActivityProgress):
                self._show_activity(activity)
                return
        for target in self._targets:
            if record.levelno >= target.level:
                with suppress(Exception):
                    target.log(record)

    def end_activity_line(self) -> None:
        """End the line of an activity, if there is one."""
        with self._switching:
            if self._shows_activity:
                self._shows_activity = False
                self._activity_lines.close()

    def _show_activity(self, activity: ActivityProgress) -> None:
        """Show an activity in a line of its own, unless another line is shown, which gets it with its next state."""
        with self._switching:
            if activity.is_at_work:
                self._activities[activity.what] = activity
            else:
                self._activities.pop(activity.what, None)
            if self._is_showing:
                return
            if activity.is_at_work and not self._shows_activity:
                self._shows_activity = True
                self._shown_s = dict.fromkeys(self._targets, time.monotonic())
                for target in self._targets:
                    self._activity_lines.enter_context(target.progress())
            if self._shows_activity:
                self._show(activity_line(activity), is_end=not activity.is_at_work)
            if not self._activities:
                self.end_activity_line()

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
        ConfigurationError: That file can't be written, or lies in an output.
    """
    reporting = reporting or Reporting()
    targets = [_on_standard_error(reporting)]
    log_file = None if reporting.log is None else LogFile.open(reporting.log)
    reporter = Reporter(*targets, *([] if log_file is None else [log_file]))
    with receiving(reporter), ExitStack() as stack:
        if log_file is not None:
            stack.callback(log_file.close)
            stack.enter_context(_logged_end(log_file))
        stack.callback(reporter.end_activity_line)
        yield reporter


@contextmanager
def receiving(reporter: Reporter) -> Iterator[None]:
    """Let a reporter have the library's messages, from level INFO, and its activities, until the context is left."""
    library = logging.getLogger(_LIBRARY)
    levels = {library: logging.INFO, logging.getLogger(activities.LOGGER): logging.DEBUG}
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
        log_file.append("error", one_line(_reason(error)))
        raise


def _reason(error: BaseException) -> str:
    """What stopped a command, as standard error has it."""
    match error:
        case KeyboardInterrupt():
            return "interrupted"
        case DatafetchError():
            return message_of(error)
    return str(error) or repr(error)


def _on_standard_error(reporting: Reporting) -> Target:
    if reporting.log_json:
        return JsonLines(cast("IO[str]", StandardError()), is_quiet=reporting.quiet)
    console = ReportConsole()
    if reporting.quiet:
        return WarningsOnly(console)
    return Terminal(console) if console.is_terminal else PlainLines(console)
