"""Handles Ctrl-C and SIGTERM in the process of a command; the library itself installs no signal handlers.

Rules: SIGTERM, which schedulers of clusters send, does the same as Ctrl-C. The first signal stops the run, the second
prints a line, and the third ends the process at once: what was fetched is in the spools, the kernel releases the lock,
and all child processes end with their parent. If Ctrl-C is ignored, as under ``nohup`` or after ``&`` in a script, it
stays ignored; SIGTERM never is.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress
from enum import Enum, auto
from typing import NoReturn

from datafetch.cli.exit_code import ExitCode
from datafetch.process.interrupts import SIGNALS, Interrupts

_STDERR = 2
_SHOW_CURSOR = "\x1b[?25h"  # a live line hides it
_CLEAR_LINE = "\r\x1b[2K"
_SOON_S = 0.01


class _Phase(Enum):
    LOADING = auto()
    """There is nothing to stop yet."""
    AT_WORK = auto()
    OVER = auto()
    """The work is done; the process only waits for threads."""


class CommandInterrupts(Interrupts):
    """The signal handler of a command."""

    def __init__(self) -> None:
        super().__init__()
        self._phase = _Phase.LOADING
        self._code: int = ExitCode.INTERRUPTED

    def take_over(self) -> None:
        """Install the handler until the process ends."""
        atexit.register(_ignore)  # registered first, so it runs last: after it a signal would kill the process
        sys.unraisablehook = self._raise_again
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self)
        signal.signal(signal.SIGTERM, self)

    def begin(self) -> None:
        """Record that the command is loaded: from now on there is something to stop."""
        self._phase = _Phase.AT_WORK

    def end(self, code: int) -> int:
        """Record that the work is done, so that a late signal stops nothing, and return the exit code."""
        self._phase, self._code = _Phase.OVER, code
        return code

    def __call__(self, *of_python: object) -> None:
        """Handle a signal."""
        if self._phase is _Phase.LOADING:  # an exception raised in an import may be lost, or become another one
            self._leave("interrupted before it began")
        if self._phase is _Phase.OVER and not self.count:
            self.count += 1
            return
        super().__call__(*of_python)

    def on_further_signal(self) -> None:
        """Print a line at the second signal, and end the process at the third."""
        if self.count == 2:  # noqa: PLR2004 - the second
            _say("stopping, one moment; another signal or Ctrl-C stops it at once (nothing fetched is lost)")
        else:
            self._leave("stopped at once (nothing fetched is lost)")

    def _leave(self, why: str) -> NoReturn:
        _say(why)
        os._exit(self._code)

    def _raise_again(self, lost: sys.UnraisableHookArgs) -> None:
        """Raise an interrupt again that was lost because it was raised in a finalizer, or the like."""
        if lost.exc_type is not KeyboardInterrupt:
            sys.__unraisablehook__(lost)
            return
        self.count -= 1
        threading.Timer(_SOON_S, signal.raise_signal, [signal.SIGTERM]).start()


def begin() -> None:
    """Record that the command is loaded, if the handler of the signals is this one."""
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(handler, CommandInterrupts):
        handler.begin()


def _say(message: str) -> None:
    """Write a line on standard error, even if the signal has interrupted the writing of another."""
    is_terminal = os.isatty(_STDERR)
    with suppress(OSError):
        os.write(_STDERR, f"{(_SHOW_CURSOR + _CLEAR_LINE) * is_terminal}datafetch: {message}\n".encode())


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
