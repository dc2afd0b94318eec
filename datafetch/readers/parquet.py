"""Parquet manifest files to rows, by row group: memory holds one batch and the row numbers that are wanted."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from datafetch.errors import ManifestError
from datafetch.readers.words import Int64s, reason

_BATCH_ROWS = 8192  # at COYO's 200 bytes of url and text a row, about 2 MB as Arrow and 8 MB as Python objects
_BUFFER_BYTES = 1 << 16  # stream a column chunk's pages instead of reading the chunk whole
_FOOTER_END = struct.Struct("<I4s")  # length of the footer, PAR1


class ColumnType(StrEnum):
    """What a manifest's column must hold."""

    INTEGER = "an integer"
    FLOAT = "a floating-point number"
    STRING = "text"


_TYPE_CHECKS: dict[ColumnType, Callable[[Any], bool]] = {
    ColumnType.INTEGER: pa.types.is_integer,
    ColumnType.FLOAT: pa.types.is_floating,
    ColumnType.STRING: lambda found: pa.types.is_string(found) or pa.types.is_large_string(found),
}


class ParquetFile:
    """One parquet manifest file: its size, and its wanted rows."""

    def __init__(self, path: Path, columns: Mapping[str, ColumnType]) -> None:
        """Open the file and look at its footer.

        Args:
            path: The file.
            columns: The columns that will be read, and what they must hold.

        Raises:
            ManifestError: It can't be read, is no parquet file, lacks a column, or has one of another type.
        """
        self.path = path
        with _reading(path), path.open("rb") as raw, pq.ParquetFile(raw) as file:
            schema = file.schema_arrow
            self.rows = int(file.metadata.num_rows)
            self.fingerprint = _fingerprint(raw)
        if missing := [name for name in columns if name not in schema.names]:
            raise ManifestError(
                f"{path} has no column {', '.join(missing)}; it has {', '.join(schema.names) or 'none'}"
            )
        for name, wanted in columns.items():
            found = schema.field(name).type
            if not _TYPE_CHECKS[wanted](found):
                raise ManifestError(f"{path}: column {name} holds {found}, where {wanted.value} is needed")

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """All rows as ``pyarrow.RecordBatch`` values of these columns, in order, one row group after the other."""
        with _reading(self.path), self._open() as file:
            yield from _batches(file, range(file.metadata.num_row_groups), columns)

    def select(self, wanted: Int64s, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The wanted rows, in order.

        Args:
            wanted: Row numbers in the file, ascending. Row groups without one are not read.
            columns: The columns to read.
        """
        with _reading(self.path), self._open() as file:
            first_row = 0
            for group in range(file.metadata.num_row_groups):
                end_row = first_row + file.metadata.row_group(group).num_rows
                if _slice(wanted, first_row, end_row).size:
                    for batch in _batches(file, [group], columns):
                        rows = _slice(wanted, first_row, first_row + batch.num_rows) - first_row
                        if rows.size:
                            yield from batch.take(pa.array(rows)).to_pylist()
                        first_row += batch.num_rows
                first_row = end_row

    def _open(self) -> Any:
        return pq.ParquetFile(self.path, buffer_size=_BUFFER_BYTES, pre_buffer=False)


def _batches(file: Any, row_groups: Sequence[int], columns: Sequence[str]) -> Iterator[Any]:
    for batch in file.iter_batches(_BATCH_ROWS, row_groups=list(row_groups), columns=list(columns), use_threads=False):
        yield batch
        # Or the heap keeps the pages of every row group: 20 MB more for a million rows (benchmarks/manifest_memory.py).
        pa.default_memory_pool().release_unused()


def _fingerprint(file: BinaryIO) -> str:
    """Of a parquet file: its size and its footer, which holds the place, size and statistics of every column chunk."""
    size_bytes = file.seek(-_FOOTER_END.size, os.SEEK_END) + _FOOTER_END.size
    footer_bytes, _ = _FOOTER_END.unpack(file.read(_FOOTER_END.size))
    file.seek(-_FOOTER_END.size - footer_bytes, os.SEEK_END)
    return hashlib.sha256(b"%d " % size_bytes + file.read(footer_bytes)).hexdigest()[:16]


def matching_rows(file: ParquetFile, columns: Sequence[str], matches: Callable[[Any], npt.NDArray[np.bool_]]) -> Int64s:
    """The numbers of the rows that match, ascending.

    Args:
        file: Where to look.
        columns: The columns that the decision takes.
        matches: From a record batch of these columns to one truth a row.
    """
    found: list[Int64s] = []
    first_row = 0
    for batch in file.batches(columns):
        found.append(np.flatnonzero(matches(batch)).astype(np.int64) + first_row)
        first_row += batch.num_rows
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _slice(ascending: Int64s, low: int, high: int) -> Int64s:
    """The part of an ascending array with low <= value < high."""
    start, stop = np.searchsorted(ascending, (low, high))
    return ascending[start:stop]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError, pa.ArrowException) as error:
        raise ManifestError(f"cannot read {path} as parquet: {reason(error)}") from error
