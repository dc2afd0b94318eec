"""Reads parquet manifest files row by row. Memory holds one batch, and the numbers of the selected rows.

A small file can claim to be huge: its footer can claim any number of rows, and a dictionary can give thousands of rows
the same text of megabytes. So the number of rows is limited in proportion to the size of the file. Before a row group
is read, its page headers (``parquet_pages``) decide how many rows a batch may have, so that a column of it takes about
``_BATCH_BYTES`` even if every value is as long as the longest text in the dictionary, or as the mean value of the page
with the largest values. A page that is too large by itself is refused.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datafetch.datasets.readers.file_kind import describe_non_parquet
from datafetch.datasets.readers.limits import Int64s, max_rows, reason
from datafetch.datasets.readers.parquet_pages import DamagedPageError, Page, read_pages
from datafetch.errors import ManifestError, raise_if_exhausted

_BATCH_ROWS = 8192  # at COYO's 200 bytes of URL and text a row, about 2 MB as Arrow and 8 MB as Python objects
_BATCH_BYTES = 8 << 20  # of one column; a batch costs only 20 µs, so small ones are affordable
_MAX_FOOTER_BYTES = 16 << 20  # published ones have some hundred kilobytes; Arrow takes ten times as much memory
_MAX_PAGE_BYTES = 64 << 20  # writers make pages of 1 MiB, or of one text if that is larger
_BUFFER_BYTES = 1 << 16  # a column chunk is streamed page by page instead of being read as a whole
_FOOTER_END = struct.Struct("<I4s")  # the length of the footer, and the magic number
_MAGIC = b"PAR1"
_START_BYTES = 1024  # the first bytes of a file, which show what it is if it is not parquet


class ColumnType(StrEnum):
    """The type of values that a column of a manifest must have."""

    INTEGER = "an integer"
    FLOAT = "a floating-point number"
    STRING = "text"
    BINARY = "bytes"


_TYPE_CHECKS: dict[ColumnType, Callable[[Any], bool]] = {
    ColumnType.INTEGER: pa.types.is_integer,
    ColumnType.FLOAT: pa.types.is_floating,
    ColumnType.STRING: lambda found: pa.types.is_string(found) or pa.types.is_large_string(found),
    ColumnType.BINARY: lambda found: pa.types.is_binary(found) or pa.types.is_large_binary(found),
}


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be read.

    Attributes:
        number: Its number in the file, counted from 0.
        reason: What is wrong with it.
    """

    number: int
    reason: str


class ParquetFile:
    """One parquet manifest file.

    Attributes:
        path: The file.
        rows: The number of its rows.
        fingerprint: A hash of its size and its footer.
    """

    def __init__(self, path: Path, columns: Mapping[str, ColumnType]) -> None:
        """Read the footer of a file.

        Args:
            path: The file.
            columns: The columns that will be read, and the types that they must have. ``image.bytes`` is the field
                ``bytes`` of a column ``image`` of structs.

        Raises:
            ManifestError: The file can't be read, is not parquet, lacks a column, has it twice or with another type, or
                claims to have more rows than a file of its size may have.
        """
        self.path = path
        self._binaries = tuple(name for name, wanted in columns.items() if wanted is ColumnType.BINARY)
        self._texts = tuple(name for name, wanted in columns.items() if wanted is ColumnType.STRING)
        with _reading(path), path.open("rb") as raw:
            self.fingerprint = _fingerprint(path, raw)
            with pq.ParquetFile(raw) as file:
                schema, metadata = file.schema_arrow, file.metadata
                # The footer also has a number of rows for the whole file, which may be wrong.
                groups = map(metadata.row_group, range(metadata.num_row_groups))
                self.rows = sum(int(group.num_rows) for group in groups)
            size_bytes = os.fstat(raw.fileno()).st_size
        if self.rows > max_rows(size_bytes):
            raise ManifestError(
                f"{path} claims to have {self.rows:,} rows in {size_bytes:,} bytes, more than is accepted"
            )
        types = {name: _find_type(schema, name) for name in columns}
        if missing := [name for name, found in types.items() if found is None]:
            raise ManifestError(
                f"{path} has no column {', '.join(missing)}; it has {', '.join(schema.names) or 'none'}"
            )
        if twice := [name for name in columns if schema.names.count(name.partition(".")[0]) > 1]:
            raise ManifestError(f"{path} has several columns named {', '.join(twice)}; leave one of each")
        for name, wanted in columns.items():
            if not _TYPE_CHECKS[wanted](types[name]):
                raise ManifestError(f"{path}: column {name} has the type {types[name]}, where {wanted.value} is needed")

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """All rows in order, as ``pyarrow.RecordBatch`` values of these columns.

        Raises:
            ManifestError: The file is damaged, or has a page that is too large.
        """
        with _reading(self.path), self._open() as file:
            for group in range(file.metadata.num_row_groups):
                yield from self._batches(file, group, columns)

    def select(self, wanted: Int64s, columns: Sequence[str]) -> Iterator[dict[str, Any] | BadRow]:
        """The rows with these numbers, in order; a row that can't be read is a ``BadRow``.

        Args:
            wanted: Row numbers in the file, counted from 0, ascending. Row groups without one are not read.
            columns: The columns to read.

        Raises:
            ManifestError: The file is damaged, or has a page that is too large.
        """
        with _reading(self.path), self._open() as file:
            first_row = 0
            for group in range(file.metadata.num_row_groups):
                end_row = first_row + file.metadata.row_group(group).num_rows
                if _slice(wanted, first_row, end_row).size:
                    for batch in self._batches(file, group, columns):
                        rows = _slice(wanted, first_row, first_row + batch.num_rows)
                        if rows.size:
                            yield from _read_rows(batch.take(pa.array(rows - first_row)), rows)
                        first_row += batch.num_rows
                first_row = end_row

    def _batches(self, file: Any, group: int, columns: Sequence[str]) -> Iterator[Any]:
        if not file.metadata.row_group(group).num_rows:
            return
        rows = min(_BATCH_ROWS, *(self._rows_at_once(file, group, name) for name in columns))
        for batch in file.iter_batches(rows, row_groups=[group], columns=list(columns), use_threads=False):
            yield batch
            # Otherwise the heap keeps the pages of all row groups, 20 MB more for a million rows
            # (benchmarks/durability/manifest_memory.py).
            pa.default_memory_pool().release_unused()

    def _rows_at_once(self, file: Any, group: int, name: str) -> int:
        """Return how many rows of a column take about ``_BATCH_BYTES`` in the worst case.

        Raises:
            ManifestError: A page is too large.
        """
        row_bytes, has_dictionary, dictionary_bytes = 1, False, 0
        for page in self._pages(file, group, name):
            if page.size_bytes > _MAX_PAGE_BYTES:
                raise ManifestError(
                    f"{self.path}: column {name} has a page of {page.size_bytes:,} bytes, more than is accepted"
                )
            has_dictionary = has_dictionary or page.is_dictionary_encoded
            dictionary_bytes = dictionary_bytes if page.values else max(dictionary_bytes, page.size_bytes)
            if page.values > 0:
                # If values share prefixes, each of them may be as long as the whole page.
                row_bytes = max(row_bytes, page.size_bytes // (1 if page.shares_prefixes else page.values))
        if has_dictionary and name in self._texts:
            row_bytes = max(row_bytes, self._longest_in_dictionary(group, name))
        elif has_dictionary:  # of values that need not be looked at one by one: each may be all of it
            row_bytes = max(row_bytes, dictionary_bytes) if name in self._binaries else row_bytes
        return max(1, _BATCH_BYTES // row_bytes)

    def _pages(self, file: Any, group: int, name: str) -> Iterator[Page]:
        """The pages of a column in a row group, its dictionary included."""
        chunk = _chunk(file.metadata.row_group(group), name)
        start = chunk.data_page_offset
        if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
            start = chunk.dictionary_page_offset
        with self.path.open("rb") as raw:
            yield from read_pages(raw, start, chunk.total_compressed_size)

    def _longest_in_dictionary(self, group: int, name: str) -> int:
        """The length in bytes of the longest text in a column's dictionary in a row group."""
        with self._open(read_dictionary=[name]) as file:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[name], use_threads=False):
                texts = batch.column(0).dictionary
                if len(texts):  # a batch that has only nulls comes without the dictionary
                    return int(pc.max(pc.binary_length(texts)).as_py() or 0)
        return 0

    def _open(self, **options: Any) -> Any:
        return pq.ParquetFile(self.path, buffer_size=_BUFFER_BYTES, pre_buffer=False, **options)


def _find_type(schema: Any, name: str) -> Any:
    """The type of a column, or of a field of a column of structs; None if there is none."""
    column, _, inner = name.partition(".")
    if column not in schema.names:
        return None
    found = schema.field(schema.names.index(column)).type
    if not inner:
        return found
    fields = [found.field(number) for number in range(found.num_fields)] if pa.types.is_struct(found) else []
    return next((one.type for one in fields if one.name == inner), None)


def _chunk(group: Any, name: str) -> Any:
    """The metadata of a column in a row group."""
    chunks = (group.column(number) for number in range(group.num_columns))
    return next(chunk for chunk in chunks if chunk.path_in_schema == name)


def _read_rows(batch: Any, numbers: Int64s) -> Iterator[dict[str, Any] | BadRow]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index, number in enumerate(numbers.tolist()):
            yield _read_row(batch, index, number)


def _read_row(batch: Any, index: int, number: int) -> dict[str, Any] | BadRow:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except UnicodeDecodeError as error:
            return BadRow(number, f"column {name} is not UTF-8 at byte {error.start:,} of its text")
    return row


def _fingerprint(path: Path, file: BinaryIO) -> str:
    """Hash a file's size and its footer, which has the offset, size and statistics of every column chunk.

    Raises:
        ManifestError: The file is not parquet, or its footer is too large.
    """
    size_bytes = os.fstat(file.fileno()).st_size
    if description := describe_non_parquet(file.read(_START_BYTES)):
        raise ManifestError(f"{path} is not parquet: {description}; download it again, or move it away")
    if size_bytes < _FOOTER_END.size:
        raise ManifestError(f"{path} is not parquet: it has {size_bytes} bytes; download it again, or move it away")
    file.seek(-_FOOTER_END.size, os.SEEK_END)
    footer_bytes, magic = _FOOTER_END.unpack(file.read(_FOOTER_END.size))
    if magic != _MAGIC or footer_bytes > size_bytes - _FOOTER_END.size:
        raise ManifestError(
            f"{path} is cut short, or not parquet: it has no footer; download it again, or move it away"
        )
    if footer_bytes > _MAX_FOOTER_BYTES:
        raise ManifestError(f"{path} has a footer of {footer_bytes:,} bytes, more than is accepted")
    file.seek(-_FOOTER_END.size - footer_bytes, os.SEEK_END)
    return hashlib.sha256(b"%d " % size_bytes + file.read(footer_bytes)).hexdigest()[:16]


def matching_rows(file: ParquetFile, columns: Sequence[str], matches: Callable[[Any], npt.NDArray[np.bool_]]) -> Int64s:
    """Return the numbers of the rows that match, ascending.

    Args:
        file: The file to search.
        columns: The columns that ``matches`` needs.
        matches: Takes a record batch of these columns, and returns whether each of its rows matches.

    Raises:
        ManifestError: The file is damaged, or has a page that is too large.
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
    except (OSError, UnicodeError, DamagedPageError, pa.ArrowException) as error:
        raise_if_exhausted(error)
        raise ManifestError(f"cannot read {path} as parquet: {reason(error)}") from error
