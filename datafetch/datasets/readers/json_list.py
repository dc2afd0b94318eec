"""Reads a JSON list or object record by record, so that half a gigabyte of records takes megabytes of memory.

A reader holds a window of the file as text, and its position in it. It looks at the characters between records itself
(brackets, commas, colons, blanks), and leaves each record to the standard library's parser, which the trainer uses as
well, so both accept the same files. That parser can't resume: if a record does not end within the window, parsing
fails, the reader appends twice as much text as the last time, and parses the record again from its beginning. So a
record of n characters costs O(n) time. A number at the very end of the window is also parsed again, because its digits
may continue.

Rules: memory holds the window and one record. Both are bounded: the window by the longest record that is accepted, and
a record by an upper bound of its memory that is computed from its text before it is parsed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TextIO

from datafetch.datasets.readers.limits import MAX_NESTING, explain_digit_limit, is_nested_deeply, max_parsed_bytes
from datafetch.errors import ManifestError
from datafetch.model.regular_file import open_regular

_MAX_RECORDS = 2**20  # accepted in a file of any size; published ones have half as many
_RECORD_BYTES = 16  # a larger file may have a record for each of these, the least that a name or a URL takes
_MAX_RECORD_CHARS = 64 << 20  # a conversation has a few thousand
_MAX_PARSED_BYTES = 256 << 20  # 64 MiB of text can become two gigabytes of empty lists
_TOO_DEEP = f"has a record that is nested more than {MAX_NESTING} levels deep"
_MAX_GAP_CHARS = 4 << 20  # between two records
_DECODER = json.JSONDecoder()
_SPACE = " \t\n\r"
_AFTER_NUMBER = {",", "]", "}", *_SPACE}


class JsonListError(ManifestError):
    """A file can't be read. The message continues a sentence that begins with the file's name."""


@dataclass(frozen=True, slots=True)
class ObjectMember:
    """A member of a JSON object."""

    name: str
    value: object


class _Reader:
    """Reads the records between an opening and a closing bracket; subclasses say what a record is.

    Args:
        path: The file, in UTF-8.
        chunk_chars: The number of characters to read at a time.
        start_bytes: The offset at which to start: 0, or a value that ``offset_bytes`` returned for this file.
        open_at: Opens the content at an offset, if the file is not the content itself.
        max_records: How many records are accepted; None for as many as a file of its size can have.
    """

    _OPENING: str
    _CLOSING: str
    _WHAT: str

    def __init__(
        self,
        path: Path,
        chunk_chars: int = 1 << 20,
        *,
        start_bytes: int = 0,
        open_at: Callable[[int], AbstractContextManager[IO[bytes]]] | None = None,
        max_records: int | None = None,
    ) -> None:
        self._path = path
        self._open_at = open_at or partial(_open_file_at, path)  # no method of its own: a cycle would keep the window
        self._max_records = max_records
        self._chunk_chars = chunk_chars
        self._start_bytes = start_bytes
        self._read_bytes = start_bytes
        self._window = ""
        self._position = 0  # in the window; everything before it is done with
        self._is_end = False
        self._unreported_bytes = 0
        self._record_start = 0  # in the window, of the record that was read last
        self._gap_start = 0  # in the window: behind the record before
        self._gap = ""  # what stood between that and the window

    def pop_read_bytes(self) -> int:
        """Return how many bytes of the file were read since the last call."""
        read_bytes, self._unreported_bytes = self._unreported_bytes, 0
        return read_bytes

    @property
    def record_text(self) -> str:
        """The record that was yielded last, as it stands in the file."""
        return self._window[self._record_start : self._position]

    @property
    def gap_text(self) -> str:
        """What stands in front of the record that was yielded last: brackets, commas, blanks; at the end, the rest."""
        return self._gap + self._window[self._gap_start : self._record_start]

    def offset_bytes(self) -> int:
        """Return the offset in the file just after the record that was yielded last.

        Takes time in proportion to the length of a chunk.
        """
        return self._read_bytes - len(self._window[self._position :].encode())

    def _records(self) -> Iterator[TextIO]:
        """Move to each record in turn, and yield the file to read it from; the caller reads exactly one record."""
        ends = {",", self._CLOSING}
        left = self._max_records or max(_MAX_RECORDS, self._path.stat().st_size // _RECORD_BYTES)
        with self._open_at(self._start_bytes) as raw, TextIOWrapper(raw, encoding="utf-8", newline="") as file:
            character = self._next_character(file)
            if self._start_bytes == 0:
                if character != self._OPENING:
                    raise JsonListError(f"is not a JSON {self._WHAT}")
                character = self._peek(file)
                if character == self._CLOSING:
                    character = self._next_character(file)
            elif character not in ends:
                raise JsonListError(f"has changed since it was opened (no record at byte {self._start_bytes:,})")
            while character != self._CLOSING:
                left -= 1
                if left < 0:  # callers hold a few bytes for each record
                    raise JsonListError("has more records than a file of its size can have")
                yield file
                self._gap, self._gap_start = "", self._position
                character = self._next_character(file)
                if character not in ends:
                    raise JsonListError("has no comma between two records" if character else "is cut short")
            if self._next_character(file):
                raise JsonListError(f"has data after its {self._WHAT}")
            self._record_start = self._position

    def _next_character(self, file: TextIO) -> str:
        """Consume the next character that is not a blank; an empty string at the end of the file."""
        character = self._peek(file)
        self._position += len(character)
        return character

    def _peek(self, file: TextIO) -> str:
        """Skip blanks, and return the next character without consuming it; an empty string at the end of the file."""
        while True:
            while self._position < len(self._window):
                if self._window[self._position] not in _SPACE:
                    return self._window[self._position]
                self._position += 1
            if self._is_end:
                return ""
            self._fill(file, self._chunk_chars)

    def _value(self, file: TextIO) -> object:
        """Parse the next value. Most lie within the window; for others, more of the file is read into it.

        Raises:
            JsonListError: It is not valid JSON, or is beyond a limit.
        """
        more_chars = self._chunk_chars
        while True:
            self._peek(file)
            self._record_start = self._position
            text_chars = len(self._window) - self._position
            is_final = self._is_end or text_chars > _MAX_RECORD_CHARS  # no more text would be read
            if text_chars > 2 * self._chunk_chars and max_parsed_bytes(self._window) > _MAX_PARSED_BYTES:
                raise JsonListError(f"has a record that may take more than {_MAX_PARSED_BYTES:,} bytes of memory")
            try:
                value, end = _DECODER.raw_decode(self._window, self._position)
            except RecursionError as error:
                raise JsonListError(_TOO_DEEP) from error
            except ValueError as error:
                if is_final or explain_digit_limit(error):
                    raise JsonListError(self._explain(error)) from error
            else:
                # The digits of a number may continue beyond the window.
                if is_final or not isinstance(value, int | float) or self._window[end : end + 1] in _AFTER_NUMBER:
                    brackets = self._window.count("[", self._position, end) + self._window.count(
                        "{", self._position, end
                    )
                    if is_nested_deeply(value, brackets):
                        raise JsonListError(_TOO_DEEP)
                    self._position = end
                    return value
            self._fill(file, more_chars)
            more_chars *= 2

    def _explain(self, error: ValueError) -> str:
        """Describe why the next value can't be parsed."""
        if too_long := explain_digit_limit(error):
            return f"has a record that can't be read: {too_long}"
        long = "" if self._is_end else f", or has a record of more than {_MAX_RECORD_CHARS:,} characters"
        return f"is not JSON, or is cut short{long}"

    def _fill(self, file: TextIO, chars: int) -> None:
        """Drop what was consumed from the window, and append text to it."""
        try:
            chunk = file.read(chars)
        except UnicodeDecodeError as error:
            raise JsonListError("is not UTF-8") from error
        chunk_bytes = len(chunk.encode())
        self._unreported_bytes += chunk_bytes
        self._read_bytes += chunk_bytes
        self._is_end = not chunk
        self._gap += self._window[self._gap_start : self._position]
        if len(self._gap) > _MAX_GAP_CHARS:
            raise JsonListError(f"has more than {_MAX_GAP_CHARS:,} blanks in a row")
        self._window = self._window[self._position :] + chunk
        self._position = self._gap_start = 0


def _open_file_at(path: Path, offset: int) -> IO[bytes]:
    file = open_regular(path)
    file.seek(offset)
    return file


class RecordReader(_Reader):
    """Reads the records of a JSON list."""

    _OPENING, _CLOSING, _WHAT = "[", "]", "list"

    def __iter__(self) -> Iterator[object]:
        """The records, in order.

        Raises:
            JsonListError: The file is not a JSON list, is cut short, or is beyond a limit.
            OSError: The file can't be read.
        """
        for file in self._records():
            yield self._value(file)


class ObjectReader(_Reader):
    """Reads the members of a JSON object."""

    _OPENING, _CLOSING, _WHAT = "{", "}", "object"

    def __iter__(self) -> Iterator[ObjectMember]:
        """The members, in order; a name may be repeated.

        Raises:
            JsonListError: The file is not a JSON object, is cut short, or is beyond a limit.
            OSError: The file can't be read.
        """
        for file in self._records():
            name = self._value(file)
            if not isinstance(name, str) or self._next_character(file) != ":":
                raise JsonListError("is not JSON, or is cut short")
            yield ObjectMember(name, self._value(file))


def replace_value(text: str, name: str, value: object) -> str:
    """Replace the value of a member in the text of a JSON object; all else keeps its form.

    Args:
        text: The object, which has been parsed before.
        name: The member's name; of several with this name, the last is replaced, which is the one that counts.
        value: The new value.
    """
    position = text.index("{") + 1
    span = (0, 0)
    while True:
        while text[position] in _SPACE or text[position] == ",":
            position += 1
        if text[position] == "}":
            break
        found, position = _DECODER.raw_decode(text, position)
        position = text.index(":", position) + 1
        while text[position] in _SPACE:
            position += 1
        start = position
        _, position = _DECODER.raw_decode(text, start)
        if found == name:
            span = (start, position)
    start, stop = span
    if not stop:
        return text
    return text[:start] + json.dumps(value, ensure_ascii=text.isascii()) + text[stop:]
