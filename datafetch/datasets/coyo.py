"""COYO-700M: English pairs from the web, as parquet files of URLs and captions.

Source: huggingface.co/datasets/kakaobrain/coyo-700m (CC-BY-4.0): 128 files ``part-*.snappy.parquet`` of 5.8M rows each.
Rows and selection follow VILA's data_prepare/coyo/coyo_downloader.py: the ids that are asked for, or else the fifth of
each file with the highest CLIP similarity, where it is above 0.6; the short side 336 pixels.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datafetch.datasets.dataset_defaults import DatasetDefaults
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
from datafetch.model.interfaces import Manifest, Samples
from datafetch.model.kinds import CounterName, Loader, Payload
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.options import DatasetOptions, option
from datafetch.model.sample import BAD_LINE, IdListResult, Record, Row, Sample, Shard

_SIMILARITIES = ("clip_similarity_vitb32", "clip_similarity_vitl14")
_COLUMNS = {
    "id": ColumnType.INTEGER,
    "url": ColumnType.STRING,
    "text": ColumnType.STRING,
    **dict.fromkeys(_SIMILARITIES, ColumnType.FLOAT),
}
_LEAST_SIMILARITY = np.float32(0.6)
_KEPT_SHARE = 0.2
_HALF_BITS = 16
_MAX_BITS = 2**32
_NO_FILE = -1
_NO_ID = "column id is empty"
_PART_NAME = re.compile(r"part-\d{5}(?=[-.])")
Bools: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoyoOptions(DatasetOptions):
    """What may be set for ``coyo``.

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
    options: CoyoOptions = field(default_factory=CoyoOptions)

    def bind(self, source: Path, ids: Path | None) -> CoyoManifest:
        """Open the parquet files of a folder.

        Raises:
            ManifestError: No parquet file, a file that is none, a missing column, or an unreadable id list.
        """
        files = [ParquetFile(path, _COLUMNS) for path in list_files(source, ".parquet")]
        return CoyoManifest(files, read_ids(ids) if ids else None, skips_bad_rows=self.options.skip_bad_lines)

    def to_row(self, record: Record, payload: Payload) -> Row | None:
        """The row of one pair, or None when its image did not arrive or it has no text (the loader needs both)."""
        return None if record.sample.row.get("text") is None else pair_row(record, payload)

    def is_lost(self, sample: Sample, failed: Collection[int]) -> bool:
        """Whether a pair's image failed, or it has no text, or could not be read."""
        return bool(failed) or sample.row.get("text") is None


class CoyoManifest(Manifest):
    """COYO's parquet files, with the choice of rows.

    An id is taken once, from the first file that has it: there may be a copy of a file beside it, ``part (1).parquet``.

    Args:
        files: In the order of their names.
        ids: Which ones are wanted; None takes the most similar rows of each file.
        skips_bad_rows: Whether rows that can't be read are skipped and counted.
    """

    def __init__(self, files: Sequence[ParquetFile], ids: IdList | None, *, skips_bad_rows: bool = False) -> None:
        self._ids = ids
        self._skips_bad_rows = skips_bad_rows
        self._files = dict(zip(_shard_names([file.path for file in files]), files, strict=True))
        self._choice = _Similar(files) if ids is None else _Listed(files, ids, skips_bad_rows=skips_bad_rows)

    def shards(self) -> list[Shard]:
        """One shard a file, in the order of the files' names."""
        return [Shard(name, file.path, file.rows, file.fingerprint) for name, file in self._files.items()]

    def expected_samples(self) -> int | None:
        """As many as there are ids; unknown where similarity decides."""
        return None if self._ids is None else len(self._ids.ids)

    def max_samples(self) -> int:
        """As many as there are ids, or the fifth of each file."""
        if self._ids is not None:
            return len(self._ids.ids)
        return sum(int(file.rows * _KEPT_SHARE) for file in self._files.values())

    def samples(self, shard: Shard) -> Samples:
        """The chosen rows of one file."""
        chosen = self._choice.of_file(list(self._files).index(shard.name))
        return _CoyoSamples(self._files[shard.name], chosen, skips_bad_rows=self._skips_bad_rows)

    def id_list_result(self, keys: Iterable[str], counts: Mapping[str, ShardCounts]) -> IdListResult | None:  # noqa: ARG002 - the protocol's
        """What became of the id list."""
        if self._ids is None:
            return None
        found = np.zeros(len(self._ids.ids), np.bool_)
        places, present = self._ids.find(np.fromiter((int(key) for key in keys), np.int64))
        found[places[present]] = True
        return IdListResult(len(found), self._ids.duplicates, int(len(found) - found.sum()))


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    """Rows of a file.

    Attributes:
        rows: Their numbers, ascending; 8 bytes each.
        repeated: How many others were left out because an earlier row has the same id.
        without_id: How many others were skipped because they have none.
    """

    rows: Int64s
    repeated: int
    without_id: int = 0


class _CoyoSamples(Samples):
    """The samples of one file; what is wrong with a row is detected when it is read.

    Raises:
        ManifestError: A row can't be read, and bad rows are not skipped.
    """

    def __init__(self, file: ParquetFile, chosen: _Chosen, *, skips_bad_rows: bool) -> None:
        self._file = file
        self._chosen = chosen
        self._skips_bad_rows = skips_bad_rows

    @property
    def notes(self) -> Mapping[str, int]:
        """How many rows were left out for their ids."""
        counts = {
            CounterName.REPEATED_IDS.value: self._chosen.repeated,
            CounterName.BAD_LINES.value: self._chosen.without_id,
        }
        return {name: count for name, count in counts.items() if count}

    def __len__(self) -> int:
        return len(self._chosen.rows)

    def __iter__(self) -> Iterator[Sample]:
        rows = self._file.select(self._chosen.rows, list(_COLUMNS))
        for position, (number, row) in enumerate(zip(self._chosen.rows, rows, strict=True)):
            if isinstance(row, BadRow):
                yield self._bad(position, row)
            elif row["id"] is None:
                yield self._bad(position, BadRow(int(number), _NO_ID))
            else:
                yield _sample(position, row)

    def _bad(self, position: int, row: BadRow) -> Sample:
        if not self._skips_bad_rows:
            raise _bad_row(self._file, row)
        return Sample(position, f"row {row.number}", (), {BAD_LINE: row.reason})


def _bad_row(file: ParquetFile, row: BadRow) -> ManifestError:
    return ManifestError(
        f"{file.path}, row {row.number:,} (counted from 0): {row.reason}; fix it, or skip such rows with "
        "--skip-bad-lines"
    )


def _sample(position: int, row: Mapping[str, Any]) -> Sample:
    key, url = str(row["id"]), bounded_url(row["url"])
    if not url or is_too_long(url):  # nothing can come of it, and what it was may have megabytes
        return Sample(position, key, (url,), {"id": row["id"], "text": None})
    # A number that is not there is no number to the published script's data frame, which adds as float32.
    with np.errstate(all="ignore"):
        vitb32, vitl14 = (np.float32(np.nan if row[name] is None else row[name]) for name in _SIMILARITIES)
        clip_sim = float(vitb32 + vitl14)
    return Sample(position, key, (url,), {**{name: row[name] for name in ("id", "url", "text")}, "clip_sim": clip_sim})


class _Choice(Protocol):
    """Which rows of the files are taken."""

    def of_file(self, number: int) -> _Chosen:
        """Those of one file; the same ones on every call, for which the files before it are looked through."""
        ...


class _Listed(_Choice):
    """The rows whose id is wanted; 5 bytes an id."""

    def __init__(self, files: Sequence[ParquetFile], ids: IdList, *, skips_bad_rows: bool) -> None:
        self._files = files
        self._ids = ids
        self._skips_bad_rows = skips_bad_rows
        self._first_files = np.full(len(ids.ids), _NO_FILE, np.int32)
        self._scanned = 0

    def of_file(self, number: int) -> _Chosen:
        """Those of which no file before has the id; of rows that share one, the first."""
        while self._scanned < number:
            self._scan(self._scanned)
        return self._scan(number)

    def _scan(self, number: int) -> _Chosen:
        taken = np.zeros(len(self._ids.ids), np.bool_)
        first_row = repeated = without_id = 0

        def matches(batch: Any) -> Bools:
            nonlocal first_row, repeated, without_id
            column = batch.column("id")
            values, is_there = _integers(column)
            if column.null_count and not self._skips_bad_rows:
                raise _bad_row(self._files[number], BadRow(first_row + int(np.argmin(is_there)), _NO_ID))
            first_row += batch.num_rows
            without_id += column.null_count
            places, present = self._ids.find(values)
            present &= is_there
            if pa.types.is_unsigned_integer(column.type):
                present &= values >= 0  # a list has no id from 2**63 on
            candidates = np.flatnonzero(present)
            _, first = np.unique(places[candidates], return_index=True)
            first_ones = candidates[first]
            owners = self._first_files[places[first_ones]]
            is_new = ~taken[places[first_ones]] & ((owners == _NO_FILE) | (owners == number))
            chosen = np.zeros(batch.num_rows, np.bool_)
            chosen[first_ones[is_new]] = True
            taken[places[candidates]] = True
            self._first_files[places[first_ones[is_new]]] = number
            repeated += len(candidates) - int(is_new.sum())
            return chosen

        rows = matching_rows(self._files[number], ("id",), matches)
        self._scanned = max(self._scanned, number + 1)
        return _Chosen(rows, repeated, without_id)


class _Similar(_Choice):
    """The fifth of each file with the highest CLIP similarity, where it is above 0.6; 8 bytes a row that is taken.

    Rows that tie for the last place are taken in the order of the file.
    """

    def __init__(self, files: Sequence[ParquetFile]) -> None:
        self._files = files
        self._ids: list[Int64s] = []  # of each file that was looked through, ascending

    def of_file(self, number: int) -> _Chosen:
        """Those of which no file before has taken the id; of rows that share one, the first."""
        while len(self._ids) < number:
            self._choose(len(self._ids))
        return self._choose(number)

    def _choose(self, number: int) -> _Chosen:
        file = self._files[number]
        rows = _most_similar_rows(file)
        ids, is_there = _ids_of(file, rows)
        with_id = np.flatnonzero(is_there)  # what is wrong with the others is detected when they are read
        distinct, first = np.unique(ids[with_id], return_index=True)
        is_new = np.ones(len(distinct), np.bool_)
        for earlier in self._ids[:number]:
            is_new &= ~np.isin(distinct, earlier, assume_unique=True)
        if number == len(self._ids):
            self._ids.append(distinct[is_new])
        kept = rows[np.sort(np.concatenate((with_id[first[is_new]], np.flatnonzero(~is_there))))]
        return _Chosen(kept, len(rows) - len(kept))


def _most_similar_rows(file: ParquetFile) -> Int64s:
    """The numbers of the rows with the highest similarity; the file is read three times, and no similarity is held."""
    kept = int(file.rows * _KEPT_SHARE)
    last = _last_kept(file, kept)

    def matches(batch: Any) -> Bools:
        nonlocal last
        bits = _candidate_bits(batch)
        chosen = bits > last.bits
        ties = np.flatnonzero(bits == last.bits)[: last.rows]
        chosen[ties] = True
        last = replace(last, rows=last.rows - len(ties))
        return chosen

    return matching_rows(file, _SIMILARITIES, matches)


@dataclass(frozen=True, slots=True)
class _Last:
    """Up to where rows are kept.

    Attributes:
        bits: Of the similarity of the last one: positive numbers sort as their bits do.
        rows: How many of the rows with exactly this similarity are kept.
    """

    bits: int
    rows: int


def _last_kept(file: ParquetFile, kept: int) -> _Last:
    """The last of so many candidates with the highest similarities; two counts, of 16 bits each, find it."""
    prefix, left = 0, kept
    for shift in (_HALF_BITS, 0):
        counts = _count_halves(file, prefix, shift)
        if shift and counts.sum() <= kept:
            return _Last(0, 0)  # all of them
        if not kept:
            return _Last(_MAX_BITS, 0)  # none
        above = np.cumsum(counts[::-1])[::-1] - counts
        half = int(np.flatnonzero(above < left)[0])
        prefix, left = prefix << _HALF_BITS | half, left - int(above[half])
    return _Last(prefix, left)


def _count_halves(file: ParquetFile, prefix: int, shift: int) -> Int64s:
    """How many candidates there are for each value of the 16 bits at a place, behind a prefix."""
    counts = np.zeros(1 << _HALF_BITS, np.int64)
    for batch in file.batches(_SIMILARITIES):
        bits = _candidate_bits(batch)
        halves = bits[(bits > 0) & (bits >> (shift + _HALF_BITS) == prefix)] >> shift & (len(counts) - 1)
        counts += np.bincount(halves, minlength=len(counts))
    return counts


def _candidate_bits(batch: Any) -> npt.NDArray[np.int64]:
    """The bits of each row's similarity where it is high enough, and otherwise 0."""
    columns = [batch.column(name) for name in _SIMILARITIES]
    vitb32, vitl14 = (column.to_numpy(zero_copy_only=False).astype(np.float32) for column in columns)  # null is NaN
    with np.errstate(all="ignore"):
        similarity = vitb32 + vitl14
    bits = similarity.view(np.uint32).astype(np.int64)
    return np.where(similarity > _LEAST_SIMILARITY, bits, 0)


def _ids_of(file: ParquetFile, rows: Int64s) -> tuple[Int64s, Bools]:
    """The ids of some rows, which tell rows apart, and whether each row has one."""
    parts: list[tuple[Int64s, Bools]] = [(np.empty(0, np.int64), np.empty(0, np.bool_))]
    first_row = 0
    for batch in file.batches(("id",)):
        start, stop = np.searchsorted(rows, (first_row, first_row + batch.num_rows))
        parts.append(_integers(batch.column("id").take(pa.array(rows[start:stop] - first_row))))
        first_row += batch.num_rows
    ids, is_there = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(is_there)


def _integers(column: Any) -> tuple[Int64s, Bools]:
    """Ids as numbers of 64 bits, those from 2**63 on as negative ones, and whether each is there."""
    is_there = np.asarray(column.is_valid().to_numpy(zero_copy_only=False))
    numbers = column.fill_null(0) if column.null_count else column
    return np.asarray(numbers.to_numpy(zero_copy_only=False)).astype(np.int64), is_there


def _shard_names(paths: Sequence[Path]) -> list[str]:
    """The files' own part numbers, as published; running numbers where a folder has other names."""
    parts = [match.group() for path in paths if (match := _PART_NAME.match(path.name))]
    if len(set(parts)) == len(paths):
        return parts
    return [f"part-{number:05d}" for number in range(len(paths))]
