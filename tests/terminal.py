"""A command on a terminal of a given width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_MAX_BYTES = 1 << 16


class OnTerminal:
    """A running command whose standard error is a terminal; killed when the context is left.

    Args:
        command: The command.
        columns: The width of the terminal.
    """

    def __init__(self, command: Sequence[str], columns: int) -> None:
        self._command = command
        self._columns = columns

    def __enter__(self) -> Self:
        self._terminal, command_side = pty.openpty()
        fcntl.ioctl(command_side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, self._columns, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=command_side,
            env={**environment, "TERM": "xterm"},
            text=True,
        )
        os.close(command_side)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._terminal)

    def lines(self) -> Iterator[str]:
        """Yield the lines as they are shown, each state of a live line included, until the command has ended."""
        left = b""
        with suppress(OSError):  # at the end of the command, the terminal is gone
            while shown := os.read(self._terminal, _MAX_BYTES):
                *complete, left = re.split(rb"[\r\n]+", left + shown)
                for line in complete:
                    if text := _CONTROL.sub("", line.decode()).rstrip():
                        yield text
