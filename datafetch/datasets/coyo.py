"""COYO-700M: English pairs from the web, as parquet files of URLs and captions.

Rows and selection follow VILA's data_prepare/coyo/coyo_downloader.py. It takes the ids of a list, or else the fifth of
each file that has the highest CLIP similarity, if that is above 0.6, and shrinks images to a short side of 336 pixels.

On the hub, the files are read where they are: of each file the column of ids (or of similarities), when its turn comes,
and then the needed columns of the row groups that have a selected row. What a scan found is kept, for a resumed run.

Source: huggingface.co/datasets/kakaobrain/coyo-700m (CC-BY-4.0), 128 files ``part-*.snappy.parquet`` of 5.8M rows each.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datafetch.datasets.coyo_selection import (
    KEPT_SHARE,
    MIN_SIMILARITY,
    NO_ID,
    SIMILARITIES,
    bad_row_error,
    selection_from,
)
from datafetch.datasets.dataset_defaults import DatasetDefaults
from datafetch.datasets.file_scan import FileScan
from datafetch.datasets.payload import pair_row
from datafetch.datasets.readers import BadRow, ColumnType, IdList, ParquetFile, list_files, read_ids
from datafetch.datasets.shared_options import SKIP_BAD_LINES
from datafetch.datasets.url_length import bounded_url, is_too_long
from datafetch.model.kinds import CounterName, Loader, Payload
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.manifest import Manifest, RemoteFile, Samples, ScanCache
from datafetch.model.options import DatasetOptions, option
from datafetch.model.sample import BAD_LINE, IdListResult, Record, Row, Sample, Shard
from datafetch.model.wording import counted, sized

_COLUMNS = {
    "id": ColumnType.INTEGER,
    "url": ColumnType.STRING,
    "text": ColumnType.STRING,
    **dict.fromkeys(SIMILARITIES, ColumnType.FLOAT),
}
_PART_NAME = re.compile(r"part-\d{5}(?=[-.])")
_PUBLISHED = re.compile(r"data/part-[\w.-]+\.parquet", re.ASCII)
_FILES_AT_ONCE = 8  # whose footers are requested

_log = logging.getLogger(__name__)


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
        columns = SIMILARITIES if listed is None else ("id",)
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
        self._selection = selection_from(files, ids, skips_bad_rows=skips_bad_rows)

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
        return sum(int(file.rows * KEPT_SHARE) for file in self._files.values())

    def choices(self) -> list[str]:
        """VILA's choice of rows, if there is no id list."""
        if self._ids is not None:
            return []
        rows = sum(file.rows for file in self._files.values())
        choice = f"no --ids: VILA's choice takes at most {self.max_samples():,} of {rows:,} rows"
        return [f"{choice}, of each file the fifth with the highest CLIP similarity, if above {MIN_SIMILARITY:g}"]

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
                yield self._bad_sample(position, BadRow(int(number), NO_ID))
            else:
                yield _sample(position, row)

    def _bad_sample(self, position: int, row: BadRow) -> Sample:
        if not self._skips_bad_rows:
            raise bad_row_error(self._file, row)
        return Sample(position, f"row {row.number}", (), {BAD_LINE: row.reason})


def _sample(position: int, row: Mapping[str, Any]) -> Sample:
    key, url = str(row["id"]), bounded_url(row["url"])
    if not url or is_too_long(url):  # it can't become a row, and its other values may have megabytes
        return Sample(position, key, (url,), {"id": row["id"], "text": None})
    # The published script adds the similarities in a data frame, as float32, where a missing number is NaN.
    with np.errstate(all="ignore"):
        vitb32, vitl14 = (np.float32(np.nan if row[name] is None else row[name]) for name in SIMILARITIES)
        clip_sim = float(vitb32 + vitl14)
    return Sample(position, key, (url,), {**{name: row[name] for name in ("id", "url", "text")}, "clip_sim": clip_sim})


def _shard_names(paths: Sequence[Path]) -> list[str]:
    """The part numbers in the published file names; running numbers if the files have other names."""
    parts = [match.group() for path in paths if (match := _PART_NAME.match(path.name))]
    if len(set(parts)) == len(paths):
        return parts
    return [f"part-{number:05d}" for number in range(len(paths))]
