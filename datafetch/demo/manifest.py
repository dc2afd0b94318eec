"""A small manifest in COYO's format: parquet files, and a list of wanted IDs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_ROWS_PER_TABLE = 100_000
_PARTITION_BITS = 33  # Spark numbers rows as partition << 33 | row
_UNWANTED_URL = "http://unwanted.invalid/{}.jpg"


@dataclass(frozen=True, slots=True)
class CoyoSource:
    """A source folder and an ID list.

    Attributes:
        folder: The folder of the parquet files.
        ids: The ID list.
        urls: Wanted ID → URL.
        duplicates: How many lines of the list repeat an earlier one.
        not_found: How many IDs of the list are in no file.
    """

    folder: Path
    ids: Path
    urls: dict[int, str]
    duplicates: int
    not_found: int


def write_coyo_source(folder: Path, urls: Sequence[str], *, files: int = 1, rows: int = 0, seed: int = 0) -> CoyoSource:
    """Write a manifest whose ID list selects these URLs.

    Args:
        folder: Created if it is missing.
        urls: The wanted URLs, spread evenly over the files.
        files: How many parquet files.
        rows: How many rows all files have together, including those that are not wanted; at least as many as URLs.
        seed: Determines the positions of the wanted rows.
    """
    (folder / "data").mkdir(parents=True)
    rows = max(rows, len(urls))
    rng = np.random.default_rng(seed)
    positions = np.sort(rng.choice(rows, len(urls), replace=False))
    wanted: dict[int, str] = {}
    bounds = np.linspace(0, rows, files + 1).astype(int)
    for number in range(files):
        first, end = int(bounds[number]), int(bounds[number + 1])
        in_file = {int(row) - first: urls[index] for index, row in enumerate(positions) if first <= row < end}
        wanted |= {_row_id(number, row): url for row, url in in_file.items()}
        path = folder / "data" / f"part-{number:05d}-demo-c000.snappy.parquet"
        with pq.ParquetWriter(path, _SCHEMA, compression="snappy") as writer:
            for table in _tables(number, end - first, in_file):
                writer.write_table(table)
    ids = rng.permutation(np.fromiter(wanted, np.int64))
    repeated = ids[:3]
    unknown = [_row_id(files + 1, row) for row in range(5)]
    lines = [*ids.tolist(), *repeated.tolist(), *unknown]
    id_list = folder / "ids.txt"
    id_list.write_text("".join(f"{line}\n" for line in lines))
    return CoyoSource(folder / "data", id_list, wanted, len(repeated), len(unknown))


_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("url", pa.string()),
        ("text", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("clip_similarity_vitb32", pa.float32()),
        ("clip_similarity_vitl14", pa.float32()),
    ]
)


def _row_id(file: int, row: int) -> int:
    return file << _PARTITION_BITS | row


def _tables(file: int, rows: int, wanted: dict[int, str]) -> Iterator[pa.Table]:
    for first in range(0, rows, _ROWS_PER_TABLE):
        numbers = range(first, min(first + _ROWS_PER_TABLE, rows))
        similarity = pa.array([0.35 if number in wanted else 0.2 for number in numbers], pa.float32())
        yield pa.table(
            {
                "id": [_row_id(file, number) for number in numbers],
                "url": [wanted.get(number) or _UNWANTED_URL.format(number) for number in numbers],
                "text": [f"picture {number} of file {file}" for number in numbers],
                "width": pa.array([640] * len(numbers), pa.int32()),
                "height": pa.array([480] * len(numbers), pa.int32()),
                "clip_similarity_vitb32": similarity,
                "clip_similarity_vitl14": similarity,
            },
            schema=_SCHEMA,
        )
