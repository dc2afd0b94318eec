"""What the shell is told, and the one line on standard error that goes with it."""

from __future__ import annotations

import sys
from contextlib import suppress
from enum import IntEnum

_MAX_CHARS = 2000
_END_CHARS = 500  # of them, what to do about it included


class ExitCode(IntEnum):
    """What the shell is told."""

    COMPLETE = 0
    BUG = 1
    NOT_SOUND = 1  # same number by contract; a bug is told by its traceback
    WRONG_COMMAND = 2
    TOO_FEW_IMAGES = 3
    OUT_OF_RESOURCES = 4
    INTERRUPTED = 130


def complain(message: str, code: ExitCode) -> ExitCode:
    """Write one line on standard error that says what is wrong, and return the exit code that goes with it."""
    with suppress(OSError):  # the exit code counts, also where the line finds no room
        sys.stderr.write(f"datafetch: {one_line(message)}\n")
    return code


def one_line(text: str) -> str:
    """Text as it may stand in a line on a terminal: without control characters, and of bounded length.

    Messages quote file names, columns, keys and names in pickles, which are other people's: none of them is to move the
    cursor, hide what stands before it, or bury it under a megabyte. The end is kept, for it says what to do.
    """
    words = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    if len(words) <= _MAX_CHARS:
        return words
    return f"{words[: _MAX_CHARS - _END_CHARS - 3]} … {words[-_END_CHARS:]}"
