"""Lists of wanted ids, plain or gzipped (told by content, not by name): 8 bytes an id, however often it is listed."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datafetch.datasets.readers.limits import Int64s, reason
from datafetch.errors import ManifestError, raise_if_exhausted

INDEX_BITS = 32
"""Of a packed pair; the shard's number stands above them."""
_MAX_PART = 2**31
# Two words, as they head a table; a single one, or one beside a number, is a mistake that must be told.
_PAIR_HEADER = re.compile(rb"""\s*(["']?)[a-z_][a-z0-9_ ]*\1\s*,\s*(["']?)[a-z_][a-z0-9_ ]*\2\s*""", re.IGNORECASE)
_PAIR_FORM = f"shard,index on a line, both below {_MAX_PART:,}"
_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_CHUNK_BYTES = 1 << 20
_MAX_LINE_BYTES = 1000
_MAX_SHOWN_CHARS = 40
_MERGED_IDS = 2**20  # so many wait, at least, before they are joined to those that are known
_MAX_IDS = 2**25  # of a compressed list of any size: 256 MB; the published ones have 6 million


@dataclass(frozen=True, slots=True)
class IdList:
    """The ids that are wanted.

    Attributes:
        ids: Distinct, ascending; 8 bytes each.
        duplicates: Lines that repeated an earlier one.
    """

    ids: Int64s
    duplicates: int

    def find(self, values: Int64s) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Look values up: for each, its place in ``ids`` (meaningless where absent) and whether it is there."""
        if not len(self.ids):
            return np.zeros(len(values), np.intp), np.zeros(len(values), np.bool_)
        places = np.searchsorted(self.ids, values)
        places[places == len(self.ids)] = 0
        return places, self.ids[places] == values


def read_ids(path: Path) -> IdList:
    """Read a list of integer ids, one a line, plain or gzipped (told by content, not by name).

    Raises:
        ManifestError: The file is missing, holds no id, or a line is not an integer of 64 bits.
    """
    return _read(path, _parse_id, "an id", "one integer a line, below 2**63")


def read_id_pairs(path: Path) -> IdList:
    """Read a list of ``shard,index``, one a line, perhaps below a header; each becomes one number (``pack_pair``).

    Raises:
        ManifestError: The file is missing, holds no pair, or a line is not two whole numbers of 31 bits.
    """
    return _read(path, _parse_pair, "a shard and an index", _PAIR_FORM, header=_PAIR_HEADER)


def pack_pair(shard: int, index: int) -> int:
    """A shard and an index in it as one number, in the same order as the pairs."""
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
    except (OSError, EOFError, zlib.error) as error:
        raise_if_exhausted(error)
        raise ManifestError(f"cannot read the id list {path}: {reason(error)}") from error
    listed = ids.listed()
    if not len(listed.ids):
        raise ManifestError(f"the id list {path} is empty; it takes {form}")
    return listed


class _DistinctIds:
    """Ids as they are read, each held once: a few bytes can be unpacked to any number of lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._max_ids = max(_MAX_IDS, path.stat().st_size)
        self._known = np.empty(0, np.int64)
        self._waiting: list[Int64s] = []
        self._waiting_count = 0
        self._count = 0

    def add(self, ids: Int64s) -> None:
        """Take some more.

        Raises:
            ManifestError: There are more than a list of its size can have.
        """
        self._waiting.append(ids)
        self._waiting_count += len(ids)
        self._count += len(ids)
        if self._waiting_count >= max(_MERGED_IDS, len(self._known) // 2):
            self._merge()

    def listed(self) -> IdList:
        """All of them."""
        self._merge()
        return IdList(self._known, duplicates=self._count - len(self._known))

    def _merge(self) -> None:
        self._known = np.unique(np.concatenate((self._known, *self._waiting)))
        self._waiting.clear()
        self._waiting_count = 0
        if len(self._known) > self._max_ids:
            raise ManifestError(f"{self._path} has more than {self._max_ids:,} ids, the limit for a file of its size")


def _chunks(path: Path) -> Iterator[list[bytes]]:
    with path.open("rb") as probe:
        opener = gzip.open if probe.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC else open
    with opener(path, "rb") as file:
        block = file.read(_CHUNK_BYTES).removeprefix(_BOM)
        while block:
            *lines, rest = block.split(b"\n")
            if len(rest) > _MAX_LINE_BYTES:  # a compressed list may claim a line of any length
                raise ManifestError(f"{path} has a line of more than {_MAX_LINE_BYTES:,} bytes, and is no id list")
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
    if not all(map(bytes.isdigit, fields)):  # int() takes signs and 1_000 as well
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
