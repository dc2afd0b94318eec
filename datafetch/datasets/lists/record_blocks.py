"""Divides a file of lines, or of records with quoted fields, into blocks of whole records.

A line break within quotes is no end of a record, and a quote opens a field only where a field begins. Where every quote
of a block stands where a writer of CSV would put it, the number of quotes before a line break tells whether it is
within quotes, which numpy counts for millions of lines a second. A block with any other quote is searched record by
record. Both ways find the same ends.

Rules: memory holds a few blocks. A record that is longer than the limit ends the reading.

Source: RFC 4180, and what Python's ``csv`` and Arrow make of text that deviates from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

from datafetch.datasets.lists.row_bits import Bools
from datafetch.datasets.readers import MAX_LINE_BYTES, Int64s

_BLOCK_BYTES = 1 << 20
_NEWLINE, _QUOTE, _RETURN = b'\n"\r'
_NO_DELIMITER = b""


class RecordTooLongError(ValueError):
    """A record is longer than the limit.

    Args:
        record: The number of the record, counted from 0, from where the reading began.
    """

    def __init__(self, record: int) -> None:
        super().__init__(record)
        self.record = record


@dataclass(frozen=True, slots=True)
class Block:
    """Some whole records of a file.

    Attributes:
        offset: The offset of its first byte in the content of the file.
        content: The records, each with its line break; the last one of a file may lack it.
        ends: The offsets in the content behind each record.
    """

    offset: int
    content: bytes
    ends: Int64s

    def count(self) -> int:
        """The number of records; empty lines are none."""
        return int(np.count_nonzero(self._are_records()))

    def records(self) -> list[bytes]:
        """The records without their line breaks; empty lines are none."""
        return self._records_in(np.flatnonzero(self._are_records()))

    def records_at(self, numbers: Int64s) -> list[bytes]:
        """Some of the records, by their numbers among those that are not empty."""
        return self._records_in(np.flatnonzero(self._are_records())[numbers])

    def end_of_first(self) -> int:
        """The offset in the content behind the first record; 0 if there is none."""
        first = np.flatnonzero(self._are_records())[:1]
        return int(self.ends[first[0]]) if len(first) else 0

    def _records_in(self, lines: Int64s) -> list[bytes]:
        """The records in lines that are not empty."""
        starts = np.where(lines > 0, self.ends[lines - 1], 0)
        bounds = zip(starts.tolist(), self.ends[lines].tolist(), strict=True)
        return [_without_break(self.content[start:stop]) for start, stop in bounds]

    def _are_records(self) -> Bools:
        if not self.content.strip(b"\r\n"):  # many times as fast, for what compresses to nothing
            return np.zeros(len(self.ends), np.bool_)
        sizes = np.diff(self.ends, prepend=0)
        content = np.frombuffer(self.content, np.uint8)
        has_break = content[self.ends - 1] == _NEWLINE
        has_return = content[np.maximum(0, self.ends - 1 - has_break)] == _RETURN
        text_bytes = sizes - has_break
        are_records: Bools = text_bytes - (has_return & (text_bytes > 0)) > 0
        return are_records


class RecordSplitter:
    """Finds where records end.

    Args:
        delimiter: What separates fields, if fields may be quoted; otherwise empty, and every line is a record.

    Attributes:
        delimiter: The same.
    """

    def __init__(self, delimiter: bytes = _NO_DELIMITER) -> None:
        self.delimiter = delimiter
        between = re.escape(delimiter)
        self._breaks = re.compile(rb'(?:(?<![^%b\n]))"[^"]*(?:""[^"]*)*(?:"|\Z)|\n' % between)

    def blocks(self, file: IO[bytes], offset: int = 0) -> Iterator[Block]:
        """The blocks of a file.

        Args:
            file: The file, at the beginning of a record.
            offset: The offset of this place in the content of the file.

        Raises:
            RecordTooLongError: A record is longer than ``MAX_LINE_BYTES``.
        """
        buffer, size_bytes, count = b"", _BLOCK_BYTES, 0
        while True:
            # What is looked at follows from the offset alone, so that a block that is read again is the same.
            while len(buffer) < size_bytes and (more := file.read(size_bytes - len(buffer))):
                buffer += more
            is_end = len(buffer) < size_bytes
            content = buffer[:size_bytes]
            ends = self.find_ends(content)
            if is_end and (not len(ends) or ends[-1] < len(content)):
                ends = np.append(ends, len(content))
            if not content:
                return
            if len(ends):
                size_bytes = int(ends[-1])
                if size_bytes > MAX_LINE_BYTES and int(np.max(np.diff(ends, prepend=0))) > MAX_LINE_BYTES:
                    raise RecordTooLongError(count)
                block = Block(offset, content[:size_bytes], ends)
                yield block
                count += block.count()
                offset += size_bytes
                buffer, size_bytes = buffer[size_bytes:], _BLOCK_BYTES
            elif size_bytes > MAX_LINE_BYTES:
                raise RecordTooLongError(count)
            else:
                size_bytes *= 2

    def block_at(self, file: IO[bytes], offset: int, size_bytes: int) -> Block:
        """A block of which it is known where it lies, from a file that is there."""
        content = file.read(size_bytes)
        ends = self.find_ends(content)
        if content and (not len(ends) or ends[-1] < len(content)):
            ends = np.append(ends, len(content))
        return Block(offset, content, ends)

    def find_ends(self, content: bytes) -> Int64s:
        """The offsets behind each record that ends within some bytes, which begin with a record."""
        array = np.frombuffer(content, np.uint8)
        breaks = np.flatnonzero(array == _NEWLINE)
        if not self.delimiter or b'"' not in content:
            breaks += 1
            return breaks
        quotes = np.flatnonzero(array == _QUOTE)
        before = np.searchsorted(quotes, breaks)
        if not len(breaks) or self._are_regular(array, quotes[: before[-1]]):
            outside: Int64s = breaks[before % 2 == 0].astype(np.int64) + 1
            return outside
        found = [match.end() for match in self._breaks.finditer(content) if match[0] == b"\n"]
        return np.array(found, np.int64)

    def _are_regular(self, array: np.ndarray[tuple[int], np.dtype[np.uint8]], quotes: Int64s) -> bool:
        """Whether each quote opens a field at its beginning, closes it at its end, or is one of a pair within."""
        opening, closing = quotes[::2], quotes[1::2]
        before = array[np.maximum(opening - 1, 0)]
        behind = array[np.minimum(closing + 1, len(array) - 1)]
        between = ord(self.delimiter)
        is_begun = (opening == 0) | (before == between) | (before == _NEWLINE) | (before == _QUOTE)
        is_over = (closing == len(array) - 1) | (behind == between) | (behind == _NEWLINE) | (behind == _QUOTE)
        is_over |= behind == _RETURN
        return bool(is_begun.all() and is_over.all())


def _without_break(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")


class FieldSplitter:
    """Divides records into fields.

    Args:
        delimiter: What separates fields.
        is_quoted: Whether fields may be quoted.
        max_fields: How many fields a record may have; of more, one more is returned.
    """

    def __init__(self, delimiter: bytes, *, is_quoted: bool, max_fields: int) -> None:
        self._delimiter = delimiter
        self._is_quoted = is_quoted
        self._max_fields = max_fields
        between = re.escape(delimiter)
        self._field = re.compile(rb'(?:"((?:[^"]|"")*)("|\Z))?([^%b]*)(%b|\Z)' % (between, between), re.DOTALL)

    def split(self, record: bytes) -> list[bytes]:
        """The fields of a record, without quotes around them."""
        fields, _ = self.parse(record)
        return fields

    def count_quoted(self, record: bytes) -> tuple[int, int]:
        """How many fields of a record are quoted as a whole, and how many have a quote in any other way."""
        whole = other = 0
        for match in self._field.finditer(record):
            quoted, closing, rest, _ = match.groups()
            is_whole = quoted is not None and closing == b'"' and not rest
            whole += is_whole
            other += not is_whole and b'"' in match[0]
        return whole, other

    def parse(self, record: bytes) -> tuple[list[bytes], bool]:
        """The fields of a record, and whether a quote opens the last one and nothing closes it."""
        if not self._is_quoted or b'"' not in record:
            return record.split(self._delimiter, self._max_fields), False
        fields: list[bytes] = []
        position, is_open = 0, False
        while len(fields) <= self._max_fields:
            match = self._field.match(record, position)
            assert match is not None, "it matches the empty string"
            quoted, closing, rest, end = match.groups()
            fields.append(rest if quoted is None else quoted.replace(b'""', b'"') + rest)
            position, is_open = match.end(), closing == b""
            if not end:
                break
        return fields, is_open
