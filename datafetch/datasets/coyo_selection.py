"""Which rows of COYO's files are selected: those with the ids of a list, or those with the highest CLIP similarity.

Rows are selected by similarity without holding all similarities, since positive 32-bit floats sort like their bits. Of
the candidates, which are the rows above 0.6, one pass counts how many have each value of the upper 16 bits. That shows
which of these values the last selected row has. A second pass counts the lower 16 bits of the candidates with that
value, which gives the bits of the last selected row. A third pass selects all rows above it, and of the rows with
exactly its bits the first ones, up to the required number.

Each id is taken once, from the first row of the first file that has it, because a folder may hold copies of files. For
this, the selection from a file depends on the files before it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datafetch.datasets.file_scan import FileScan
from datafetch.datasets.readers import BadRow, IdList, Int64s, ParquetFile, matching_rows
from datafetch.errors import ManifestError
from datafetch.model.activities import Activity, ActivityUnit
from datafetch.model.manifest import ScanCache

SIMILARITIES = ("clip_similarity_vitb32", "clip_similarity_vitl14")  # columns
MIN_SIMILARITY = np.float32(0.6)  # rows have to exceed it
KEPT_SHARE = 0.2  # of the rows of a file, at most
NO_ID = "column id is empty"
_HALF_BITS = 16
_MAX_BITS = 2**32
_NO_FILE = -1
_SCAN_VERSION = 1  # of what is kept; to be raised when the selection changes

Bools: TypeAlias = npt.NDArray[np.bool_]


def selection_from(files: Sequence[ParquetFile], ids: IdList | None, *, skips_bad_rows: bool) -> Selection:
    """Make the selection of rows.

    Args:
        files: The files, in order.
        ids: The ids to select; None selects the rows of each file with the highest similarity.
        skips_bad_rows: Whether rows without an id are skipped, and not refused.
    """
    return _SelectionBySimilarity(files) if ids is None else _SelectionByIds(files, ids, skips_bad_rows=skips_bad_rows)


def bad_row_error(file: ParquetFile, row: BadRow) -> ManifestError:
    """The error for a row that can't be read, unless such rows are skipped."""
    return ManifestError(
        f"{file.name}, row {row.number:,} (counted from 0): {row.reason}; fix it, or skip such rows with "
        "--skip-bad-lines"
    )


class Selection(ABC):
    """Decides which rows of the files are selected. Files are scanned in order, since each depends on those before.

    Args:
        files: The files.
        criteria: Everything else that the selection depends on.

    Attributes:
        scanned: What scans read of the files.
        cache: Keeps what scans find; None keeps nothing.
    """

    scanned: str

    def __init__(self, files: Sequence[ParquetFile], *criteria: object) -> None:
        self.cache: ScanCache | None = None
        self._files = files
        self._scanned = 0
        self._latest: tuple[int, FileScan] | None = None  # the one that is asked for again when a run begins
        self._scanning = Activity(f"reading {self.scanned}", len(files), ActivityUnit.FILE)
        self._hash = hashlib.sha256(repr((_SCAN_VERSION, type(self).__name__, *criteria)).encode())
        self._keys: list[str] = []
        for file in files:
            self._hash.update(f"{file.fingerprint} ".encode())
            self._keys.append(self._hash.hexdigest())

    def keep(self, cache: ScanCache) -> None:
        """Keep in a cache what scans find, those that were made before included."""
        self.cache = cache
        self._scanned = 0

    def select(self, number: int) -> FileScan:
        """Select the rows of the file with this number, counted from 0; the same ones on every call.

        Rows with an id that an earlier file has given are left out; of rows that share an id, the first one is taken.
        """
        while self._scanned < number:
            self._find(self._scanned)
        return self._find(number)

    def _find(self, number: int) -> FileScan:
        found = self._kept(number)
        if found is None:
            if self._latest is not None and self._latest[0] == number:
                found = self._latest[1]
            else:
                with self._scanning:
                    found = self._scan(number)
                    self._scanning.advance(number == self._scanned)
            if self.cache is not None:
                self.cache.write(self._keys[number], found.to_bytes(self._keys[number]))
        elif number == self._scanned:
            self._scanning.skip(1)
        self._take(number, found.taken)
        self._scanned = max(self._scanned, number + 1)
        self._latest = number, found
        return found

    def _kept(self, number: int) -> FileScan | None:
        if self.cache is None:
            return None
        content = self.cache.read(self._keys[number], FileScan.max_bytes(self._files[number].rows))
        return None if content is None else FileScan.from_bytes(self._keys[number], content)

    @abstractmethod
    def _scan(self, number: int) -> FileScan:
        """Read a file; all files before it have been taken."""

    @abstractmethod
    def _take(self, number: int, taken: Int64s) -> None:
        """Note what later files may not select again; the same on every call for a file."""


class _SelectionByIds(Selection):
    """Selects the rows whose id is listed. Memory holds 5 bytes for each id, besides the list.

    What a file takes is the positions of ids in the list.
    """

    scanned = "ids"

    def __init__(self, files: Sequence[ParquetFile], ids: IdList, *, skips_bad_rows: bool) -> None:
        super().__init__(files, hashlib.sha256(ids.ids.data).hexdigest(), skips_bad_rows)
        self._ids = ids
        self._skips_bad_rows = skips_bad_rows
        self._first_files = np.full(len(ids.ids), _NO_FILE, np.int32)

    def _take(self, number: int, taken: Int64s) -> None:
        self._first_files[taken] = number

    def _scan(self, number: int) -> FileScan:
        is_taken = np.zeros(len(self._ids.ids), np.bool_)  # by an earlier row of this file
        taken = [np.empty(0, np.int64)]
        first_row = repeated = without_id = 0

        def matches(batch: Any) -> Bools:
            nonlocal first_row, repeated, without_id
            column = batch.column("id")
            values, has_id = _integers(column)
            if column.null_count and not self._skips_bad_rows:
                raise bad_row_error(self._files[number], BadRow(first_row + int(np.argmin(has_id)), NO_ID))
            first_row += batch.num_rows
            without_id += column.null_count
            positions, is_listed = self._ids.find(values)
            is_listed &= has_id
            if pa.types.is_unsigned_integer(column.type):
                is_listed &= values >= 0  # ids from 2**63 on are negative here, and a list has none of them
            candidates = np.flatnonzero(is_listed)
            _, first = np.unique(positions[candidates], return_index=True)
            first_ones = candidates[first]
            owners = self._first_files[positions[first_ones]]
            is_new = ~is_taken[positions[first_ones]] & ((owners == _NO_FILE) | (owners == number))
            is_selected = np.zeros(batch.num_rows, np.bool_)
            is_selected[first_ones[is_new]] = True
            is_taken[positions[candidates]] = True
            taken.append(positions[first_ones[is_new]].astype(np.int64))
            repeated += len(candidates) - int(is_new.sum())
            return is_selected

        rows = matching_rows(self._files[number], ("id",), matches)
        return FileScan(rows, np.concatenate(taken), repeated, without_id)


class _SelectionBySimilarity(Selection):
    """Selects the fifth of each file with the highest CLIP similarity, if that is above 0.6.

    Of rows that tie for the last place, the first ones in the file are selected. Memory holds 8 bytes for each selected
    row of all files. What a file takes is ids.
    """

    scanned = "similarities"

    def __init__(self, files: Sequence[ParquetFile]) -> None:
        super().__init__(files)
        self._ids: list[Int64s] = []  # the ids taken from each scanned file, ascending

    def _take(self, number: int, taken: Int64s) -> None:
        if number == len(self._ids):
            self._ids.append(taken)

    def _scan(self, number: int) -> FileScan:
        file = self._files[number]
        rows = _most_similar_rows(file)
        ids, has_id = _ids_of(file, rows)
        with_id = np.flatnonzero(has_id)  # rows without an id are selected too, and reported when they are read
        distinct, first = np.unique(ids[with_id], return_index=True)
        is_new = np.ones(len(distinct), np.bool_)
        for earlier in self._ids[:number]:
            is_new &= ~np.isin(distinct, earlier, assume_unique=True)
        kept = rows[np.sort(np.concatenate((with_id[first[is_new]], np.flatnonzero(~has_id))))]
        return FileScan(kept, distinct[is_new], len(rows) - len(kept))


def _most_similar_rows(file: ParquetFile) -> Int64s:
    """Return the numbers of the rows with the highest similarity, ascending. The file is read three times."""
    kept = int(file.rows * KEPT_SHARE)
    cutoff = _find_cutoff(file, kept)

    def matches(batch: Any) -> Bools:
        nonlocal cutoff
        bits = _candidate_bits(batch)
        is_selected = bits > cutoff.bits
        ties = np.flatnonzero(bits == cutoff.bits)[: cutoff.ties]
        is_selected[ties] = True
        cutoff = replace(cutoff, ties=cutoff.ties - len(ties))
        return is_selected

    return matching_rows(file, SIMILARITIES, matches)


@dataclass(frozen=True, slots=True)
class _Cutoff:
    """Which similarities are selected.

    Attributes:
        bits: The similarity of the last selected row, as the bits of a float32; all higher ones are selected.
        ties: How many of the rows with exactly this similarity are selected.
    """

    bits: int
    ties: int


def _find_cutoff(file: ParquetFile, kept: int) -> _Cutoff:
    """Find the cutoff that selects this many candidates, or all if there are fewer."""
    prefix, left = 0, kept
    for shift in (_HALF_BITS, 0):
        counts = _count_halves(file, prefix, shift)
        if shift and counts.sum() <= kept:
            return _Cutoff(0, 0)  # selects all candidates
        if not kept:
            return _Cutoff(_MAX_BITS, 0)  # selects none
        above = np.cumsum(counts[::-1])[::-1] - counts
        half = int(np.flatnonzero(above < left)[0])
        prefix, left = prefix << _HALF_BITS | half, left - int(above[half])
    return _Cutoff(prefix, left)


def _count_halves(file: ParquetFile, prefix: int, shift: int) -> Int64s:
    """Count the candidates for each value of one half of their bits.

    Args:
        file: The file.
        prefix: Only candidates whose bits begin with this are counted; of the upper half, 0.
        shift: 16 for the upper half of the bits, 0 for the lower.

    Returns:
        65,536 counts.
    """
    counts = np.zeros(1 << _HALF_BITS, np.int64)
    for batch in file.batches(SIMILARITIES):
        bits = _candidate_bits(batch)
        halves = bits[(bits > 0) & (bits >> (shift + _HALF_BITS) == prefix)] >> shift & (len(counts) - 1)
        counts += np.bincount(halves, minlength=len(counts))
    return counts


def _candidate_bits(batch: Any) -> npt.NDArray[np.int64]:
    """The bits of each row's similarity if that is high enough for a candidate, and otherwise 0."""
    columns = [batch.column(name) for name in SIMILARITIES]
    # A null becomes NaN, which is not high enough.
    vitb32, vitl14 = (column.to_numpy(zero_copy_only=False).astype(np.float32) for column in columns)
    with np.errstate(all="ignore"):
        similarity = vitb32 + vitl14
    bits = similarity.view(np.uint32).astype(np.int64)
    return np.where(similarity > MIN_SIMILARITY, bits, 0)


def _ids_of(file: ParquetFile, rows: Int64s) -> tuple[Int64s, Bools]:
    """Return the ids of the given rows, and whether each row has one."""
    parts: list[tuple[Int64s, Bools]] = [(np.empty(0, np.int64), np.empty(0, np.bool_))]
    first_row = 0
    for batch in file.batches(("id",)):
        start, stop = np.searchsorted(rows, (first_row, first_row + batch.num_rows))
        parts.append(_integers(batch.column("id").take(pa.array(rows[start:stop] - first_row))))
        first_row += batch.num_rows
    ids, has_id = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(has_id)


def _integers(column: Any) -> tuple[Int64s, Bools]:
    """Return a column's ids as 64-bit integers, those from 2**63 on as negative ones, and whether each is not null."""
    is_valid = np.asarray(column.is_valid().to_numpy(zero_copy_only=False))
    numbers = column.fill_null(0) if column.null_count else column
    return np.asarray(numbers.to_numpy(zero_copy_only=False)).astype(np.int64), is_valid
