"""What the shell is told, and the one line on standard error that goes with it."""

from __future__ import annotations

import sys
from enum import IntEnum


class ExitCode(IntEnum):
    """What the shell is told."""

    COMPLETE = 0
    BUG = 1
    NOT_SOUND = 1  # the contract's, and nobody takes the two for each other: a bug says so on standard error
    WRONG_COMMAND = 2
    TOO_FEW_IMAGES = 3
    OUT_OF_RESOURCES = 4
    INTERRUPTED = 130


def complain(message: str, code: ExitCode) -> ExitCode:
    """Write one line on standard error that says what is wrong, and return the exit code that goes with it."""
    sys.stderr.write(f"datafetch: {' '.join(message.split())}\n")
    return code
