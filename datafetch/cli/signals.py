"""Ctrl-C and SIGTERM in the command's own process. The library installs no handler for them; this does.

Rules: a cluster's scheduler says SIGTERM where a person says Ctrl-C, and means the same. The first stops the run, the
second is answered by a line, the third leaves at once: what was fetched is in the spools, the kernel gives the lock
back, and every process of ours ends with this one. A Ctrl-C that is ignored, as in ``nohup`` or behind ``&`` in a
script, stays ignored; SIGTERM never is.
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
    """Nothing has begun."""
    AT_WORK = auto()
    OVER = auto()
    """Everything is said and done, but for threads that are waited for."""


class CommandInterrupts(Interrupts):
    """What signals do to a command."""

    def __init__(self) -> None:
        super().__init__()
        self._phase = _Phase.LOADING
        self._code: int = ExitCode.INTERRUPTED

    def take_over(self) -> None:
        """Be the handler, until the process ends."""
        atexit.register(_ignore)  # the first to be registered comes last: what follows would end us by the signal
        sys.unraisablehook = self._raise_again
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self)
        signal.signal(signal.SIGTERM, self)

    def begin(self) -> None:
        """Say that everything is loaded: from now on there is something to stop."""
        self._phase = _Phase.AT_WORK

    def end(self, code: int) -> int:
        """Say that everything is done; a late signal has nothing left to stop."""
        self._phase, self._code = _Phase.OVER, code
        return code

    def __call__(self, *of_python: object) -> None:
        """Do what is due."""
        if self._phase is _Phase.LOADING:  # raised in an import it might be lost, or become another error
            self._leave("interrupted before it began")
        if self._phase is _Phase.OVER and not self.count:
            self.count += 1
            return
        super().__call__(*of_python)

    def on_further_signal(self) -> None:
        """Ask for patience at the second signal, and end the process at the third."""
        if self.count == 2:  # noqa: PLR2004 - the second
            _say("stopping, one moment; another signal or Ctrl-C stops it at once (nothing fetched is lost)")
        else:
            self._leave("stopped at once (nothing fetched is lost)")

    def _leave(self, why: str) -> NoReturn:
        _say(why)
        os._exit(self._code)

    def _raise_again(self, lost: sys.UnraisableHookArgs) -> None:
        """Have an interrupt raised once more that came where nothing can be raised, in a finalizer for instance."""
        if lost.exc_type is not KeyboardInterrupt:
            sys.__unraisablehook__(lost)
            return
        self.count -= 1
        threading.Timer(_SOON_S, signal.raise_signal, [signal.SIGTERM]).start()


def begin() -> None:
    """Say that a command is loaded and begins; without effect where another handler has the signals."""
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(handler, CommandInterrupts):
        handler.begin()


def _say(message: str) -> None:
    """Write a line on standard error, whatever was being written there when the signal came."""
    is_terminal = os.isatty(_STDERR)
    with suppress(OSError):
        os.write(_STDERR, f"{(_SHOW_CURSOR + _CLEAR_LINE) * is_terminal}datafetch: {message}\n".encode())


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
