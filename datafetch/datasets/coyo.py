"""COYO-700M: English pairs from the web, as parquet files of URLs and captions.

Rows and selection follow VILA's data_prepare/coyo/coyo_downloader.py. It takes the ids of a list, or else the fifth of
each file that has the highest CLIP similarity, if that is above 0.6, and shrinks images to a short side of 336 pixels.

Rows are selected by similarity without holding all similarities, since positive 32-bit floats sort like their bits. Of
the candidates, which are the rows above 0.6, one pass counts how many have each value of the upper 16 bits. That shows
which of these values the last selected row has. A second pass counts the lower 16 bits of the candidates with that
value, which gives the bits of the last selected row. A third pass selects all rows above it, and of the rows with
exactly its bits the first ones, up to the required number.

Each id is taken once, from the first row of the first file that has it, because a folder may hold copies of files. For
this, the selection from a file depends on the files before it.

On the hub, the files are read where they are: of each file the column of ids (or of similarities), when its turn comes,
and then the needed columns of the row groups that have a selected row. What a scan found is kept, for a resumed run.

Source: huggingface.co/datasets/kakaobrain/coyo-700m (CC-BY-4.0), 128 files ``part-*.snappy.parquet`` of 5.8M rows each.
"""

from __future__ import annotations

import hashlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datafetch.datasets.dataset_defaults import DatasetDefaults
from datafetch.datasets.file_scan import FileScan
from datafetch.datasets.payload import pair_row
from datafetch.datasets.readers import (
    BadRow,
    ColumnType,
    IdList,
    Int64s,
    ParquetFile,
    list_files,
    matching_rows,
    read_ids,
)
from datafetch.datasets.shared_options import SKIP_BAD_LINES
from datafetch.datasets.url_length import bounded_url, is_too_long
from datafetch.errors import ManifestError
from datafetch.model.activities import Activity, ActivityUnit
from datafetch.model.interfaces import Manifest, RemoteFile, Samples, ScanCache
from datafetch.model.kinds import CounterName, Loader, Payload
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.options import DatasetOptions, option
from datafetch.model.sample import BAD_LINE, IdListResult, Record, Row, Sample, Shard
from datafetch.model.wording import counted, sized

_SIMILARITIES = ("clip_similarity_vitb32", "clip_similarity_vitl14")
_COLUMNS = {
    "id": ColumnType.INTEGER,
    "url": ColumnType.STRING,
    "text": ColumnType.STRING,
    **dict.fromkeys(_SIMILARITIES, ColumnType.FLOAT),
}
_MIN_SIMILARITY = np.float32(0.6)  # rows have to exceed it
_KEPT_SHARE = 0.2
_HALF_BITS = 16
_MAX_BITS = 2**32
_NO_FILE = -1
_NO_ID = "column id is empty"
_PART_NAME = re.compile(r"part-\d{5}(?=[-.])")
_PUBLISHED = re.compile(r"data/part-[\w.-]+\.parquet", re.ASCII)
_FILES_AT_ONCE = 8  # whose footers are requested
_SCAN_VERSION = 1  # of what is kept; to be raised when the selection changes

_log = logging.getLogger(__name__)

Bools: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoyoOptions(DatasetOptions):
    """The options of ``coyo``.

    Attributes:
        skip_bad_lines: Whether rows that can't be read are skipped and counted.
    """

    skip_bad_lines: bool = option(False, SKIP_BAD_LINES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coyo(DatasetDefaults):
    """The dataset ``coyo``."""

    name: str = "coyo"
    summary: str = "COYO-700M: 6M English pairs, step 1."
    path: str = "coyo-700m/pkl03-split"
    loader: Loader = Loader.COYO
    payloads: frozenset[Payload] = frozenset(Payload)
    id_list: str | None = "id"
    short_side_px: int | None = 336
    reads_in_place: bool = True
    options: CoyoOptions = field(default_factory=CoyoOptions)

    def bind(self, source: Path, ids: Path | None) -> CoyoManifest:
        """Open the parquet files of a folder.

        Raises:
            ManifestError: There is no parquet file, one of them is damaged or lacks a column, or the id list can't be
                read.
        """
        files = [ParquetFile(path, _COLUMNS) for path in list_files(source, ".parquet")]
        return CoyoManifest(files, read_ids(ids) if ids else None, skips_bad_rows=self.options.skip_bad_lines)

    def select_published(self, names: Sequence[str]) -> Sequence[str]:
        """The parquet files."""
        return [name for name in names if _PUBLISHED.fullmatch(name)]

    def bind_in_place(self, files: Sequence[RemoteFile], ids: Path | None) -> CoyoManifest:
        """Open parquet files on a server.

        Raises:
            ManifestError: One of them can't be read, is damaged or lacks a column, or the id list can't be read.
        """
        listed = read_ids(ids) if ids else None
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            opened = list(pool.map(partial(ParquetFile, columns=_COLUMNS), files))
        columns = _SIMILARITIES if listed is None else ("id",)
        _log.info(
            "%s of %s, read in their place: of each the %s (%s in all), and then the row groups with a selected row",
            counted(len(opened), "file"),
            sized(sum(file.size_bytes for file in opened)),
            "similarities" if listed is None else "ids",
            sized(sum(file.column_bytes(columns) for file in opened)),
        )
        return CoyoManifest(opened, listed, skips_bad_rows=self.options.skip_bad_lines, is_remote=True)

    def to_row(self, record: Record, payload: Payload) -> Row | None:
        """The row of one pair; None if its image did not arrive or it has no text, because the loader needs both."""
        return None if record.sample.row.get("text") is None else pair_row(record, payload)

    def is_lost(self, sample: Sample, failed: Collection[int]) -> bool:
        """Whether a pair's image failed, or the pair has no text or could not be read."""
        return bool(failed) or sample.row.get("text") is None


class CoyoManifest(Manifest):
    """COYO's parquet files, with the rows that are selected from them.

    Args:
        files: The files, in the order of their names.
        ids: The ids to select; None selects the rows of each file with the highest similarity.
        skips_bad_rows: Whether rows that can't be read are skipped and counted.
        is_remote: Whether the files are on a server, so that scans of them are worth keeping.
    """

    def __init__(
        self,
        files: Sequence[ParquetFile],
        ids: IdList | None,
        *,
        skips_bad_rows: bool = False,
        is_remote: bool = False,
    ) -> None:
        self._ids = ids
        self._is_remote = is_remote
        self._skips_bad_rows = skips_bad_rows
        self._files = dict(zip(_shard_names([file.path for file in files]), files, strict=True))
        self._selection: _Selection = (
            _SelectionBySimilarity(files) if ids is None else _SelectionByIds(files, ids, skips_bad_rows=skips_bad_rows)
        )

    def shards(self) -> list[Shard]:
        """One shard for each file, in the order of the files' names; its size is in rows."""
        return [Shard(name, file.path, file.rows, file.fingerprint) for name, file in self._files.items()]

    def expected_samples(self) -> int | None:
        """The number of ids; None if rows are selected by similarity."""
        return None if self._ids is None else len(self._ids.ids)

    def max_samples(self) -> int:
        """The number of ids, or a fifth of the rows of each file."""
        if self._ids is not None:
            return len(self._ids.ids)
        return sum(int(file.rows * _KEPT_SHARE) for file in self._files.values())

    def choices(self) -> list[str]:
        """VILA's choice of rows, if there is no id list."""
        if self._ids is not None:
            return []
        rows = sum(file.rows for file in self._files.values())
        choice = f"no --ids: VILA's choice takes at most {self.max_samples():,} of {rows:,} rows"
        return [f"{choice}, of each file the fifth with the highest CLIP similarity, if above {_MIN_SIMILARITY:g}"]

    def keep_scans(self, cache: ScanCache) -> None:
        """Keep what scans of files on a server find; on this machine a scan takes a moment."""
        if self._is_remote:
            self._selection.keep(cache)

    def samples(self, shard: Shard) -> Samples:
        """The selected rows of one file.

        Raises:
            ManifestError: The file, or one before it, can't be read.
        """
        selected = self._selection.select(list(self._files).index(shard.name))
        return _CoyoSamples(self._files[shard.name], selected, skips_bad_rows=self._skips_bad_rows)

    def id_list_result(self, keys: Iterable[str], counts: Mapping[str, ShardCounts]) -> IdListResult | None:  # noqa: ARG002 - the protocol's
        """How the ids of the id list were found in the files; None without a list."""
        if self._ids is None:
            return None
        found = np.zeros(len(self._ids.ids), np.bool_)
        positions, is_present = self._ids.find(np.fromiter((int(key) for key in keys), np.int64))
        found[positions[is_present]] = True
        return IdListResult(len(found), self._ids.duplicates, int(len(found) - found.sum()))


class _CoyoSamples(Samples):
    """The samples of one file. Bad rows are found only while iterating, because texts are not read before.

    Raises:
        ManifestError: While iterating: a row can't be read, and bad rows are not skipped.
    """

    def __init__(self, file: ParquetFile, selected: FileScan, *, skips_bad_rows: bool) -> None:
        self._file = file
        self._selected = selected
        self._skips_bad_rows = skips_bad_rows

    @property
    def notes(self) -> Mapping[str, int]:
        """How many rows were left out because of their ids."""
        counts = {
            CounterName.REPEATED_IDS.value: self._selected.repeated,
            CounterName.BAD_LINES.value: self._selected.without_id,
        }
        return {name: count for name, count in counts.items() if count}

    def __len__(self) -> int:
        return len(self._selected.rows)

    def __iter__(self) -> Iterator[Sample]:
        rows = self._file.select(self._selected.rows, list(_COLUMNS))
        for position, (number, row) in enumerate(zip(self._selected.rows, rows, strict=True)):
            if isinstance(row, BadRow):
                yield self._bad_sample(position, row)
            elif row["id"] is None:
                yield self._bad_sample(position, BadRow(int(number), _NO_ID))
            else:
                yield _sample(position, row)

    def _bad_sample(self, position: int, row: BadRow) -> Sample:
        if not self._skips_bad_rows:
            raise _bad_row_error(self._file, row)
        return Sample(position, f"row {row.number}", (), {BAD_LINE: row.reason})


def _bad_row_error(file: ParquetFile, row: BadRow) -> ManifestError:
    return ManifestError(
        f"{file.name}, row {row.number:,} (counted from 0): {row.reason}; fix it, or skip such rows with "
        "--skip-bad-lines"
    )


def _sample(position: int, row: Mapping[str, Any]) -> Sample:
    key, url = str(row["id"]), bounded_url(row["url"])
    if not url or is_too_long(url):  # it can't become a row, and its other values may have megabytes
        return Sample(position, key, (url,), {"id": row["id"], "text": None})
    # The published script adds the similarities in a data frame, as float32, where a missing number is NaN.
    with np.errstate(all="ignore"):
        vitb32, vitl14 = (np.float32(np.nan if row[name] is None else row[name]) for name in _SIMILARITIES)
        clip_sim = float(vitb32 + vitl14)
    return Sample(position, key, (url,), {**{name: row[name] for name in ("id", "url", "text")}, "clip_sim": clip_sim})


class _Selection(ABC):
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


class _SelectionByIds(_Selection):
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
                raise _bad_row_error(self._files[number], BadRow(first_row + int(np.argmin(has_id)), _NO_ID))
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


class _SelectionBySimilarity(_Selection):
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
    kept = int(file.rows * _KEPT_SHARE)
    cutoff = _find_cutoff(file, kept)

    def matches(batch: Any) -> Bools:
        nonlocal cutoff
        bits = _candidate_bits(batch)
        is_selected = bits > cutoff.bits
        ties = np.flatnonzero(bits == cutoff.bits)[: cutoff.ties]
        is_selected[ties] = True
        cutoff = replace(cutoff, ties=cutoff.ties - len(ties))
        return is_selected

    return matching_rows(file, _SIMILARITIES, matches)


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
    for batch in file.batches(_SIMILARITIES):
        bits = _candidate_bits(batch)
        halves = bits[(bits > 0) & (bits >> (shift + _HALF_BITS) == prefix)] >> shift & (len(counts) - 1)
        counts += np.bincount(halves, minlength=len(counts))
    return counts


def _candidate_bits(batch: Any) -> npt.NDArray[np.int64]:
    """The bits of each row's similarity if that is high enough for a candidate, and otherwise 0."""
    columns = [batch.column(name) for name in _SIMILARITIES]
    # A null becomes NaN, which is not high enough.
    vitb32, vitl14 = (column.to_numpy(zero_copy_only=False).astype(np.float32) for column in columns)
    with np.errstate(all="ignore"):
        similarity = vitb32 + vitl14
    bits = similarity.view(np.uint32).astype(np.int64)
    return np.where(similarity > _MIN_SIMILARITY, bits, 0)


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


def _shard_names(paths: Sequence[Path]) -> list[str]:
    """The part numbers in the published file names; running numbers if the files have other names."""
    parts = [match.group() for path in paths if (match := _PART_NAME.match(path.name))]
    if len(set(parts)) == len(paths):
        return parts
    return [f"part-{number:05d}" for number in range(len(paths))]
