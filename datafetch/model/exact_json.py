"""JSON that round-trips exactly: everything that Python's ``json`` reads, including ``NaN`` and large integers.

Rules: orjson does the work, because it is ten times as fast. Where it would refuse or change a value, the standard
library is used instead; published rows are read with that library, so its idea of JSON is the one that counts.
"""

from __future__ import annotations

import json

import orjson

_MANY_DIGITS = b"0" * 19  # shorter integers fit into 64 bits; of others orjson makes floating-point numbers
_DIGITS_AS_ZEROS = bytes(ord("0") if code in b"0123456789" else ord(" ") for code in range(256))
_SURROGATES = "surrogatepass"  # as ``json.loads`` decodes bytes: lone surrogates are kept


def parse(text: bytes) -> object:
    """Parse JSON into the value that ``json.loads`` returns.

    Raises:
        ValueError: The text is not JSON, or not UTF-8.
        RecursionError: It is nested too deeply.
    """
    if not _has_long_integer(text):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            pass  # the standard library decides, and describes the error
    value: object = json.loads(text.decode("utf-8", _SURROGATES))
    return value


def _has_long_integer(text: bytes) -> bool:
    """Whether an integer may exceed 64 bits. A regular expression would take 20 times as long as the parser."""
    zeros = text.translate(_DIGITS_AS_ZEROS)
    start = zeros.find(_MANY_DIGITS)
    while start >= 0:
        if text[start - 1 : start] != b".":  # orjson reads fractions with any number of digits correctly
            return True
        end = zeros.find(b" ", start)
        start = zeros.find(_MANY_DIGITS, end) if end >= 0 else -1
    return False


def write(value: object) -> bytes:
    """Write a value of dicts, lists, strings, numbers, booleans and None as JSON that ``parse`` restores exactly.

    Raises:
        RecursionError: The value is nested too deeply.
    """
    try:
        text = orjson.dumps(value)
    except TypeError:
        return _write_slowly(value)
    # orjson writes NaN and infinities as ``null``.
    if b"null" in text and orjson.loads(text) != value:
        return _write_slowly(value)
    return text


def _write_slowly(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", _SURROGATES)
