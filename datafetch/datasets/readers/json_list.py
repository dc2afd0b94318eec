"""A JSON list or object, record by record: half a gigabyte of records takes megabytes of memory.

Rules: the standard library's parser, as the trainer has it, so that both take the same for JSON. What is held is one
record and a chunk of the file, and both have a bound in bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from datafetch.datasets.readers.limits import MAX_NESTING, explain_digit_limit, is_nested_deeply, max_parsed_bytes
from datafetch.errors import ManifestError

_MAX_RECORDS = 2**20  # whatever the size of a file; published ones have half as many
_RECORD_BYTES = 16  # where there are more: a name or a URL takes as many
_MAX_RECORD_CHARS = 64 << 20  # conversations are a few thousand
_MAX_PARSED_BYTES = 256 << 20  # 64 MiB of text can make two gigabytes of empty lists
_TOO_DEEP = f"has a record that is nested more than {MAX_NESTING} levels deep"
_DECODER = json.JSONDecoder()
_SPACE = " \t\n\r"
_AFTER_NUMBER = {",", "]", "}", *_SPACE}


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a JSON object."""

    name: str
    value: object


class _Reader:
    """What reads the records of a file, whatever stands between them.

    Args:
        path: The file, in UTF-8.
        chunk_chars: How much is read at a time.
        start_bytes: Where to begin: 0 is the file's beginning, anything else what ``offset_bytes`` said of this file.
    """

    _OPENING: str
    _CLOSING: str
    _WHAT: str

    def __init__(self, path: Path, chunk_chars: int = 1 << 20, *, start_bytes: int = 0) -> None:
        self._path = path
        self._chunk_chars = chunk_chars
        self._start_bytes = start_bytes
        self._read_bytes = start_bytes
        self._text = ""
        self._at = 0
        self._is_end = False
        self._taken_bytes = 0

    def pop_read_bytes(self) -> int:
        """How much of the file was read since this was asked last."""
        taken, self._taken_bytes = self._taken_bytes, 0
        return taken

    def offset_bytes(self) -> int:
        """Where the file continues behind the record that was yielded last: at the comma, the bracket or a space.

        Costs as much as a chunk is long.
        """
        return self._read_bytes - len(self._text[self._at :].encode())

    def _records(self) -> Iterator[TextIO]:
        """Comes to each record in turn: it begins at the next character that is no space."""
        ends = {",", self._CLOSING}
        left = max(_MAX_RECORDS, self._path.stat().st_size // _RECORD_BYTES)
        with self._path.open("rb") as raw, TextIOWrapper(raw, encoding="utf-8", newline="") as file:
            raw.seek(self._start_bytes)
            mark = self._mark(file)
            if self._start_bytes == 0:
                if mark != self._OPENING:
                    raise ManifestError(f"is not a JSON {self._WHAT}")
                mark = self._peek(file)
                if mark == self._CLOSING:
                    mark = self._mark(file)
            elif mark not in ends:
                raise ManifestError(f"has changed since it was opened (no record at byte {self._start_bytes:,})")
            while mark != self._CLOSING:
                left -= 1
                if left < 0:  # the reader holds some bytes for each
                    raise ManifestError("has more records than a file of its size can have")
                yield file
                mark = self._mark(file)
                if mark not in ends:
                    raise ManifestError("has no comma between two records" if mark else "is cut short")
            if self._mark(file):
                raise ManifestError(f"has data after its {self._WHAT}")

    def _mark(self, file: TextIO) -> str:
        """The next character that is no space; nothing at the end."""
        mark = self._peek(file)
        self._at += len(mark)
        return mark

    def _peek(self, file: TextIO) -> str:
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if self._is_end:
                return ""
            self._fill(file, self._chunk_chars)

    def _value(self, file: TextIO) -> object:
        """The next value. Most lie whole in the chunk at hand; for the others more and more is read."""
        more_chars = self._chunk_chars
        while True:
            self._peek(file)
            text_chars = len(self._text) - self._at
            is_all = self._is_end or text_chars > _MAX_RECORD_CHARS
            if text_chars > 2 * self._chunk_chars and max_parsed_bytes(self._text) > _MAX_PARSED_BYTES:
                raise ManifestError(f"has a record that may take more than {_MAX_PARSED_BYTES:,} bytes of memory")
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError as error:
                raise ManifestError(_TOO_DEEP) from error
            except ValueError as error:
                if too_long := explain_digit_limit(error):
                    raise ManifestError(f"has a record that can't be read: {too_long}") from error
                if is_all:
                    raise ManifestError("is not JSON, or is cut short") from error
            else:
                # A number may continue where nothing marks its end.
                if is_all or not isinstance(value, int | float) or self._text[end : end + 1] in _AFTER_NUMBER:
                    brackets = self._text.count("[", self._at, end) + self._text.count("{", self._at, end)
                    if is_nested_deeply(value, brackets):
                        raise ManifestError(_TOO_DEEP)
                    self._at = end
                    return value
            self._fill(file, more_chars)
            more_chars *= 2

    def _fill(self, file: TextIO, chars: int) -> None:
        try:
            chunk = file.read(chars)
        except UnicodeDecodeError as error:
            raise ManifestError("is not UTF-8") from error
        chunk_bytes = len(chunk.encode())
        self._taken_bytes += chunk_bytes
        self._read_bytes += chunk_bytes
        self._is_end = not chunk
        self._text = self._text[self._at :] + chunk
        self._at = 0


class RecordReader(_Reader):
    """Reads the records of a JSON list."""

    _OPENING, _CLOSING, _WHAT = "[", "]", "list"

    def __iter__(self) -> Iterator[object]:
        """The records, in order.

        Raises:
            ManifestError: It is not a JSON list, or ends early; the message says why, without the path.
            OSError: It can't be read.
        """
        for file in self._records():
            yield self._value(file)


class MemberReader(_Reader):
    """Reads the members of a JSON object."""

    _OPENING, _CLOSING, _WHAT = "{", "}", "object"

    def __iter__(self) -> Iterator[Member]:
        """The members, in order; a name may come more than once.

        Raises:
            ManifestError: It is not a JSON object, or ends early; the message says why, without the path.
            OSError: It can't be read.
        """
        for file in self._records():
            name = self._value(file)
            if not isinstance(name, str) or self._mark(file) != ":":
                raise ManifestError("is not JSON, or is cut short")
            yield Member(name, self._value(file))
