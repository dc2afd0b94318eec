"""Reads id lists: text files with one id, or one ``shard,index`` pair, a line.

A list may be gzipped, which is detected from its content, so a few bytes can expand to any number of lines. Memory is
bounded nevertheless: lines are read in chunks, and parsed ids wait in a buffer. When the buffer is as large as half of
the distinct ids that are known, and holds at least a million, the two are merged into one sorted array without
duplicates. So memory is proportional to the number of *distinct* ids, 8 bytes each and some copies during a merge, and
that number is limited. A merge sorts at most three times as many ids as were read since the last one, or a million
more, so the time is proportional to the length of the list.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datafetch.datasets.readers.limits import Int64s
from datafetch.errors import ManifestError, unreadable
from datafetch.model.regular_file import open_regular

INDEX_BITS = 32
"""The lower bits of a packed pair hold the index, and the bits above them the shard."""
_MAX_PART = 2**31
# Two words, as at the head of a table. One word, or a word and a number, is a mistake that has to be reported.
_PAIR_HEADER = re.compile(rb"""\s*(["']?)[a-z_][a-z0-9_ ]*\1\s*,\s*(["']?)[a-z_][a-z0-9_ ]*\2\s*""", re.IGNORECASE)
_PAIR_FORM = f"shard,index on a line, both below {_MAX_PART:,}"
_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_CHUNK_BYTES = 1 << 20
_MAX_LINE_BYTES = 1000
_MAX_SHOWN_CHARS = 40
_MIN_MERGED_IDS = 2**20  # the buffer is not merged before it has this many
_MAX_IDS = 2**25  # accepted in a list of any size, and 256 MiB; the published lists have 6 million


@dataclass(frozen=True, slots=True)
class IdList:
    """The ids of a list.

    Attributes:
        ids: The distinct ids or packed pairs, ascending.
        duplicates: The number of lines that repeat an earlier one.
    """

    ids: Int64s
    duplicates: int

    def find(self, values: Int64s) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Look up values.

        Returns:
            For each value its position in ``ids``, which is meaningless if the value is absent, and whether it is
            present.
        """
        if not len(self.ids):
            return np.zeros(len(values), np.intp), np.zeros(len(values), np.bool_)
        positions = np.searchsorted(self.ids, values)
        positions[positions == len(self.ids)] = 0
        return positions, self.ids[positions] == values


def read_ids(path: Path) -> IdList:
    """Read a list of integer ids, one a line.

    Raises:
        ManifestError: The file can't be read, has no id or too many, or a line is not a signed 64-bit integer.
    """
    return _read(path, _parse_id, "an id", "one integer a line, below 2**63")


def read_id_pairs(path: Path) -> IdList:
    """Read a list of ``shard,index`` pairs, one a line, as packed pairs (``pack_pair``). A header line is skipped.

    Raises:
        ManifestError: The file can't be read, has no pair or too many, or a line is not two integers of 31 bits.
    """
    return _read(path, _parse_pair, "a shard and an index", _PAIR_FORM, header=_PAIR_HEADER)


def pack_pair(shard: int, index: int) -> int:
    """Pack a shard and an index into one integer. Packed pairs sort in the same order as pairs."""
    return shard << INDEX_BITS | index


def _read(
    path: Path, parse: Callable[[bytes], int], what: str, form: str, *, header: re.Pattern[bytes] | None = None
) -> IdList:
    first_line = 1
    try:
        ids = _DistinctIds(path)
        for chunk in _chunks(path):
            lines = [line.strip() for line in chunk]
            if header and first_line == 1 and header.fullmatch(lines[0]):
                lines[0] = b""
            ids.add(_parse(path, lines, first_line, parse, (what, form)))
            first_line += len(chunk)
    except FileNotFoundError as error:
        raise ManifestError(f"there is no id list {path}; --ids takes the path of a file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(f"the id list {path}", error) from error
    id_list = ids.to_list()
    if not len(id_list.ids):
        raise ManifestError(f"the id list {path} is empty; it takes {form}")
    return id_list


class _DistinctIds:
    """Collects ids, and holds each distinct one once.

    Args:
        path: The list, whose size limits the number of distinct ids.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._max_ids = max(_MAX_IDS, path.stat().st_size)
        self._distinct = np.empty(0, np.int64)
        self._buffer: list[Int64s] = []
        self._buffered = 0
        self._added = 0

    def add(self, ids: Int64s) -> None:
        """Add ids.

        Raises:
            ManifestError: There are more distinct ids than a list of its size may have.
        """
        self._buffer.append(ids)
        self._buffered += len(ids)
        self._added += len(ids)
        if self._buffered >= max(_MIN_MERGED_IDS, len(self._distinct) // 2):
            self._merge()

    def to_list(self) -> IdList:
        """Return all ids that were added.

        Raises:
            ManifestError: As ``add`` does.
        """
        self._merge()
        return IdList(self._distinct, duplicates=self._added - len(self._distinct))

    def _merge(self) -> None:
        self._distinct = np.unique(np.concatenate((self._distinct, *self._buffer)))
        self._buffer.clear()
        self._buffered = 0
        if len(self._distinct) > self._max_ids:
            raise ManifestError(f"{self._path} has more than {self._max_ids:,} ids, the limit for a file of its size")


def _chunks(path: Path) -> Iterator[list[bytes]]:
    """The lines of a list, about ``_CHUNK_BYTES`` at a time."""
    with open_regular(path) as probe:
        opener = gzip.open if probe.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC else open
    with opener(path, "rb") as file:
        block = file.read(_CHUNK_BYTES).removeprefix(_BOM)
        while block:
            *lines, rest = block.split(b"\n")
            if len(rest) > _MAX_LINE_BYTES:  # a compressed list may claim a line of any length
                raise ManifestError(
                    f"{path} has a line of more than {_MAX_LINE_BYTES:,} bytes, so it can't be an id list; --ids takes "
                    "a text file"
                )
            more = file.read(_CHUNK_BYTES)
            yield lines if more else [*lines, rest]
            block = rest + more if more else b""


def _parse(
    path: Path, lines: Sequence[bytes], first_line: int, parse: Callable[[bytes], int], words: tuple[str, str]
) -> Int64s:
    try:
        return np.array([parse(line) for line in lines if line], dtype=np.int64)
    except (ValueError, OverflowError):
        number, line = next((n, line) for n, line in enumerate(lines, first_line) if line and not _fits(parse, line))
        shown = line[:_MAX_SHOWN_CHARS].decode("utf-8", "replace")
        what, form = words
        raise ManifestError(f"{path}, line {number}: {shown!r} is not {what}; the list takes {form}") from None


def _parse_id(line: bytes) -> int:
    return int(line)


def _parse_pair(line: bytes) -> int:
    fields = [field.strip() for field in line.split(b",")]
    if not all(map(bytes.isdigit, fields)):  # int() would also accept signs and 1_000
        raise ValueError(line)
    shard, index = map(int, fields)
    if not (shard < _MAX_PART and index < _MAX_PART):
        raise ValueError(line)
    return pack_pair(shard, index)


def _fits(parse: Callable[[bytes], int], line: bytes) -> bool:
    try:
        np.int64(parse(line))
    except (ValueError, OverflowError):
        return False
    return True
