"""Bounds on what a file may claim to have, and what its values may take in memory."""

from __future__ import annotations

import sys
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Int64s: TypeAlias = npt.NDArray[np.int64]

MAX_NESTING = 200
"""Levels of a record. Published ones have five. Pickling takes two of Python's stack frames for each level, and the
limit of those is 1,000 for all that is under way."""

_MAX_ROWS = 2**24  # whatever the size of a file; the largest published one has 6 million
_ROW_BYTES = 8  # of URL and text, compressed as well as may be
_MAX_TEXT_FACTOR = 4  # a text takes four bytes a character where one of its characters is rare
_VALUE_BYTES = 64  # of a number, a short text or an empty list as an object, with its place in a list
_MEMBER_BYTES = 128  # of a name and its place in a dict
_DIGITS_LIMIT = "set_int_max_str_digits"  # in Python's message


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.splitlines()[0]


def max_rows(size_bytes: int) -> int:
    """So many rows, records or lines a file of this size may claim to have; a few bytes can claim any number.

    What is held for each of them (8 bytes, or 1) is then no more than what the file itself takes, beyond a hundred
    megabytes or so.
    """
    return max(_MAX_ROWS, size_bytes // _ROW_BYTES)


def max_parsed_bytes(text: bytes | str) -> int:
    """The memory that a text of JSON may take when it is parsed, at most: its marks say how many values it has.

    A list of empty lists takes thirty times as much as its text. Marks inside of texts count as well, which makes the
    result larger than it need be and never smaller.
    """
    if isinstance(text, str):
        commas, opening, colons = text.count(","), text.count("[") + text.count("{"), text.count(":")
    else:
        commas, opening, colons = text.count(b","), text.count(b"[") + text.count(b"{"), text.count(b":")
    factor = 1 if text.isascii() and not _has_escape(text) else _MAX_TEXT_FACTOR
    return len(text) * factor + (commas + opening) * _VALUE_BYTES + (opening + colons) * _MEMBER_BYTES


def explain_digit_limit(error: ValueError) -> str:
    """What is wrong with an integer that Python refuses to read for its length; nothing for any other error.

    Python's own message advises to call a function, which nobody who runs a command can do.
    """
    return f"an integer has more than {sys.get_int_max_str_digits():,} digits" if _DIGITS_LIMIT in str(error) else ""


def is_nested_deeply(value: object, brackets: int) -> bool:
    """Whether a value of JSON has more than ``MAX_NESTING`` levels, so that not every later step could handle it.

    Args:
        value: As it was parsed.
        brackets: How many brackets and braces its text opens. Most values have too few of them to be looked through.
    """
    if brackets <= MAX_NESTING:
        return False
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_NESTING):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return bool(level)


def _has_escape(text: bytes | str) -> bool:
    return "\\u" in text if isinstance(text, str) else b"\\u" in text
