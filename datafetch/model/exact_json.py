"""JSON that comes out as it went in: whatever Python's ``json`` reads, ``NaN`` and integers beyond 64 bits included.

Rules: orjson does the work, for it is ten times as fast; where it would refuse or change a value, the standard library
does it. Published rows are read with that library, so its idea of JSON is the one that counts.
"""

from __future__ import annotations

import json

import orjson

_MANY_DIGITS = b"0" * 19  # an integer of fewer is held by 64 bits; of others orjson makes floating-point numbers
_DIGITS_AS_ZEROS = bytes(ord("0") if code in b"0123456789" else ord(" ") for code in range(256))
_SURROGATES = "surrogatepass"  # as ``json.loads`` reads bytes: a lone surrogate is kept


def parse(text: bytes) -> object:
    """A value of JSON, as ``json.loads`` gives it.

    Raises:
        ValueError: It is not JSON, or not UTF-8.
        RecursionError: It is nested more deeply than can be read.
    """
    if not _has_long_integer(text):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            pass  # the other one decides, and says what is wrong
    value: object = json.loads(text.decode("utf-8", _SURROGATES))
    return value


def _has_long_integer(text: bytes) -> bool:
    """Whether there may be one; a search for a regular expression would take twenty times as long as the parser."""
    zeros = text.translate(_DIGITS_AS_ZEROS)
    start = zeros.find(_MANY_DIGITS)
    while start >= 0:
        if text[start - 1 : start] != b".":  # of a fraction, any number of digits is read alike
            return True
        end = zeros.find(b" ", start)
        start = zeros.find(_MANY_DIGITS, end) if end >= 0 else -1
    return False


def write(value: object) -> bytes:
    """A value of dicts, lists, texts, numbers, truths and None as JSON that ``parse`` reads as the same again.

    Raises:
        RecursionError: It is nested more deeply than can be written.
    """
    try:
        text = orjson.dumps(value)
    except TypeError:
        return _write_slowly(value)
    # ``null`` may be what has become of a number that is none, or has no bound.
    if b"null" in text and orjson.loads(text) != value:
        return _write_slowly(value)
    return text


def _write_slowly(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", _SURROGATES)
