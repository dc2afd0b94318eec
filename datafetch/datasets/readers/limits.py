"""Limits for what a manifest file may claim to contain, and for the memory that its values may take."""

from __future__ import annotations

import sys
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Int64s: TypeAlias = npt.NDArray[np.int64]

MAX_NESTING = 200
"""The maximum number of nested levels in a record. Published records have five. Pickling takes two of Python's stack
frames for each level, and Python allows 1,000 frames in all."""

_MAX_ROWS = 2**24  # accepted in a file of any size; the largest published file has 6 million
_ROW_BYTES = 8  # the least that a row with a URL and a text can take in a compressed file
_MAX_TEXT_FACTOR = 4  # a text takes four bytes a character if any of its characters is beyond 16 bits
_VALUE_BYTES = 64  # a number, a short text or an empty list as a Python object, with its reference in a list
_MEMBER_BYTES = 128  # a key and its entry in a dict
_DIGITS_LIMIT = "set_int_max_str_digits"  # part of Python's message


def max_rows(size_bytes: int) -> int:
    """Return the maximum number of rows, records or lines that a file of this size may claim to have.

    A few compressed bytes can claim any number of rows, and readers hold up to 8 bytes for each. With this limit, that
    is at most 128 MiB, or the size of the file if it is larger.
    """
    return max(_MAX_ROWS, size_bytes // _ROW_BYTES)


def max_parsed_bytes(text: bytes | str) -> int:
    """Return an upper bound of the memory that a JSON text takes when it is parsed.

    Its commas, brackets and colons bound the number of its values. That matters for texts such as a list of empty
    lists, which takes thirty times the memory of its text. Such characters inside of strings count as well, so the
    bound may be too high, but never too low.
    """
    if isinstance(text, str):
        commas, opening, colons = text.count(","), text.count("[") + text.count("{"), text.count(":")
    else:
        commas, opening, colons = text.count(b","), text.count(b"[") + text.count(b"{"), text.count(b":")
    factor = 1 if text.isascii() and not _has_escape(text) else _MAX_TEXT_FACTOR
    return len(text) * factor + (commas + opening) * _VALUE_BYTES + (opening + colons) * _MEMBER_BYTES


def explain_digit_limit(error: ValueError) -> str:
    """Describe the error for an integer that is too long for Python; return an empty string for any other error.

    Python's own message recommends calling a function, which the user of a command can't do.
    """
    return f"an integer has more than {sys.get_int_max_str_digits():,} digits" if _DIGITS_LIMIT in str(error) else ""


def is_nested_deeply(value: object, brackets: int) -> bool:
    """Whether a JSON value has more than ``MAX_NESTING`` levels, so that a later step may fail on it.

    Args:
        value: The parsed value.
        brackets: The number of brackets and braces that its text opens. Most values have so few of them that they need
            not be searched.
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
