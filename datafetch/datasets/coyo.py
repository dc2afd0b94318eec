"""COYO-700M: English pairs from the web, as parquet files of URLs and captions.

Source: huggingface.co/datasets/kakaobrain/coyo-700m (CC-BY-4.0): 128 files ``part-*.snappy.parquet`` of 5.8M rows each.
Rows and selection follow VILA's data_prepare/coyo/coyo_downloader.py: the ids that are asked for, or else the fifth of
each file with the highest CLIP similarity, as far as it is above 0.6; the short side 336 pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from datafetch.datasets.description import Description
from datafetch.datasets.payload import IMAGE_FIELDS, pack
from datafetch.errors import ManifestError
from datafetch.model import Encoded, Loader, Payload, Record, Row, Sample, Selection, Shard, Totals
from datafetch.protocols import Samples
from datafetch.readers import ColumnType, IdList, Int64s, ParquetFile, list_files, matching_rows, read_ids

_SIMILARITIES = ("clip_similarity_vitb32", "clip_similarity_vitl14")
_COLUMNS = {
    "id": ColumnType.INTEGER,
    "url": ColumnType.STRING,
    "text": ColumnType.STRING,
    **dict.fromkeys(_SIMILARITIES, ColumnType.FLOAT),
}
_LEAST_SIMILARITY = np.float32(0.6)
_KEPT_SHARE = 0.2
_PART_NAME = re.compile(r"part-\d{5}(?=[-.])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Coyo(Description):
    """The dataset ``coyo``."""

    name: str = "coyo"
    path: str = "coyo-700m/pkl03-split"
    loader: Loader = Loader.COYO
    payloads: frozenset[Payload] = frozenset(Payload)
    takes: frozenset[str] = frozenset({"ids"})
    short_side_px: int | None = 336

    def bind(self, source: Path, ids: Path | None) -> CoyoManifest:
        """Open the parquet files of a folder.

        Raises:
            ManifestError: No parquet file, a file that is none, a missing column, or an unreadable id list.
        """
        files = [ParquetFile(path, _COLUMNS) for path in list_files(source, ".parquet")]
        return CoyoManifest(files, read_ids(ids) if ids else None)

    def to_row(self, record: Record, payload: Payload) -> Row | None:
        """The row of one pair, or None when its image did not arrive or it has no text (the loader needs both)."""
        (outcome,) = record.outcomes
        metadata = record.sample.row
        if not isinstance(outcome, Encoded) or metadata["text"] is None:
            return None
        return {**metadata, IMAGE_FIELDS[payload]: pack(outcome.jpeg, payload)}


class CoyoManifest:
    """COYO's parquet files, with the choice of rows."""

    def __init__(self, files: Sequence[ParquetFile], ids: IdList | None) -> None:
        self._ids = ids
        self._files = dict(zip(_shard_names([file.path for file in files]), files, strict=True))

    def shards(self) -> list[Shard]:
        """One shard a file, in the order of the files' names."""
        return [Shard(name, file.path, file.rows, file.fingerprint) for name, file in self._files.items()]

    def expected_samples(self) -> int | None:
        """As many as there are ids; unknown where similarity decides."""
        return None if self._ids is None else len(self._ids.ids)

    def most_samples(self) -> int:
        """As many as there are ids, or the fifth of each file."""
        if self._ids is not None:
            return len(self._ids.ids)
        return sum(int(file.rows * _KEPT_SHARE) for file in self._files.values())

    def samples(self, shard: Shard) -> Samples:
        """The chosen rows of one file."""
        file = self._files[shard.name]
        rows = _most_similar_rows(file) if self._ids is None else _rows_with_ids(file, self._ids)
        return _CoyoSamples(file, rows)

    def facts(self) -> Mapping[str, object]:
        """Nothing more than the files and the id list."""
        return {}

    def selection(self, keys: Iterable[str], books: Mapping[str, Totals]) -> Selection | None:  # noqa: ARG002 - the protocol's
        """What became of the id list."""
        if self._ids is None:
            return None
        found = np.zeros(len(self._ids.ids), np.bool_)
        places, present = self._ids.find(np.fromiter((int(key) for key in keys), np.int64))
        found[places[present]] = True
        return Selection(len(found), self._ids.duplicates, int(len(found) - found.sum()))


@dataclass(frozen=True, slots=True)
class _CoyoSamples(Samples):
    file: ParquetFile
    rows: Int64s

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Sample]:
        for position, row in enumerate(self.file.select(self.rows, list(_COLUMNS))):
            vitb32, vitl14 = (np.float32(row[name] or 0.0) for name in _SIMILARITIES)
            metadata = {name: row[name] for name in ("id", "url", "text")}
            # float32 addition, as in the published script's data frame
            yield Sample(
                position,
                str(row["id"]),
                (row["url"] or "",),
                {**metadata, "clip_sim": float(vitb32 + vitl14)},
            )


def _rows_with_ids(file: ParquetFile, ids: IdList) -> Int64s:
    """The rows whose id is wanted; of rows that share one, the first."""
    taken = np.zeros(len(ids.ids), np.bool_)

    def wanted(batch: Any) -> npt.NDArray[np.bool_]:
        values = _integers(file, batch.column("id"))
        places, present = ids.find(values)
        chosen = np.zeros(len(values), np.bool_)
        candidates = np.flatnonzero(present)
        _, first = np.unique(places[candidates], return_index=True)
        candidates = candidates[first]
        chosen[candidates[~taken[places[candidates]]]] = True
        taken[places[candidates]] = True
        return chosen

    return matching_rows(file, ("id",), wanted)


def _most_similar_rows(file: ParquetFile) -> Int64s:
    """The fifth of the file with the highest CLIP similarity, as far as it is above 0.6; 4 bytes a row of memory.

    Rows that tie for the last place are taken in the order of the file.
    """
    parts = [_similarity(batch) for batch in file.batches(_SIMILARITIES)]
    similarity = np.concatenate(parts) if parts else np.empty(0, np.float32)
    candidates = np.flatnonzero(similarity > _LEAST_SIMILARITY)
    kept = min(int(file.rows * _KEPT_SHARE), len(candidates))
    best = candidates[np.argsort(-similarity[candidates], kind="stable")[:kept]]
    return np.sort(best).astype(np.int64)


def _similarity(batch: Any) -> npt.NDArray[np.float32]:
    vitb32, vitl14 = (pc.fill_null(batch.column(name), 0.0).to_numpy(zero_copy_only=False) for name in _SIMILARITIES)
    return np.asarray(vitb32 + vitl14, np.float32)


def _integers(file: ParquetFile, column: Any) -> Int64s:
    if column.null_count:
        raise ManifestError(f"{file.path}: column id is empty in some rows; every row needs one")
    return np.asarray(column.to_numpy(zero_copy_only=False), np.int64)


def _shard_names(paths: Sequence[Path]) -> list[str]:
    """The files' own part numbers, as published; running numbers where a folder has other names."""
    parts = [match.group() for path in paths if (match := _PART_NAME.match(path.name))]
    if len(set(parts)) == len(paths):
        return parts
    return [f"part-{number:05d}" for number in range(len(paths))]
