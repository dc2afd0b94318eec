"""Reads parquet manifest files row by row, on this machine or on a server (``parquet_source``).

Memory holds one batch, and the numbers of the selected rows.

A small file can claim to be huge: its footer can claim any number of rows, and a dictionary can give thousands of rows
the same text of megabytes. So the number of rows is limited in proportion to the size of the file. Before a row group
is read, its page headers (``parquet_pages``) decide how many rows a batch may have, so that a column of it takes about
``_BATCH_BYTES`` even if every value is as long as the longest text in the dictionary, or as the mean value of the page
with the largest values. A page that is too large by itself is refused, and so is a row group in which the lists of a
column could take more than memory should: how long each of them is shows only when it is read.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from datafetch.datasets.readers.file_kind import describe_non_parquet
from datafetch.datasets.readers.limits import Int64s, max_rows
from datafetch.datasets.readers.parquet_pages import Chunk, DamagedPageError, Page, read_chunks, read_pages
from datafetch.datasets.readers.parquet_source import LocalParquet, OpenParquet, ParquetSource, RemoteParquet
from datafetch.errors import STARTS_OVER, ManifestError, unreadable
from datafetch.model.manifest import RemoteFile

_BATCH_ROWS = 8192  # at COYO's 200 bytes of URL and text a row, about 2 MB as Arrow and 8 MB as Python objects
_BATCH_BYTES = 8 << 20  # of one column; a batch costs only 20 µs, so small ones are affordable
_MAX_FOOTER_BYTES = 16 << 20  # published ones have some hundred kilobytes; Arrow takes ten times as much memory
_MAX_LISTS_BYTES = 512 << 20  # of the lists of a column in a row group, together
_MAX_PAGE_BYTES = 64 << 20  # writers make pages of 1 MiB, or of one text if that is larger
_BUFFER_BYTES = 1 << 16  # a column chunk is streamed page by page instead of being read as a whole
_FOOTER_END = struct.Struct("<I4s")  # the length of the footer, and the magic number
_MAGIC = b"PAR1"
_AGAIN = "download it again, or move it away"
_START_BYTES = 1024  # the first bytes of a file, which show what it is if it is not parquet
_LOADED_BYTES = 32 << 20  # of row groups that are loaded together, so that small ones don't cost a round trip each
_LIKELY_FOOTER_BYTES = 1 << 16  # loaded before the size of the footer is known


class ColumnType(StrEnum):
    """The type of values that a column of a manifest must have."""

    INTEGER = "an integer"
    FLOAT = "a floating-point number"
    STRING = "text"
    BINARY = "bytes"
    ANY = "anything"


_TYPE_CHECKS: dict[ColumnType, Callable[[Any], bool]] = {
    ColumnType.INTEGER: pa.types.is_integer,
    ColumnType.FLOAT: pa.types.is_floating,
    ColumnType.STRING: lambda found: pa.types.is_string(found) or pa.types.is_large_string(found),
    ColumnType.BINARY: lambda found: pa.types.is_binary(found) or pa.types.is_large_binary(found),
    ColumnType.ANY: lambda _: True,
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


@dataclass(frozen=True, slots=True)
class _GroupSet:
    """Row groups that are loaded together.

    Attributes:
        numbers: Their numbers.
        spans: Where their columns lie.
    """

    numbers: Sequence[int]
    spans: Sequence[tuple[int, int]]


class ParquetFile:
    """One parquet manifest file.

    Attributes:
        name: The file in messages.
        path: The file; it can be opened only if it is on this machine.
        size_bytes: Its size.
        rows: The number of its rows.
        group_rows: The number of rows of each row group.
        fingerprint: A hash of its size and its footer.
        types: The Arrow types of its columns, by name; of several with one name, that of the first.
        repeated: The names that several columns have.
    """

    def __init__(
        self,
        file: Path | RemoteFile,
        columns: Mapping[str, ColumnType] | None,
        *,
        own_files: str = "",
        row_limit: Callable[[int], int] = max_rows,
    ) -> None:
        """Read the footer of a file.

        Args:
            file: The file, on this machine or on a server.
            columns: The columns that will be read, and the types that they must have. ``image.bytes`` is the field
                ``bytes`` of a column ``image`` of structs. None takes all columns with names of their own, of any type.
            row_limit: How many rows columns of some number of bytes may claim to have.
            own_files: For messages: how operators write such files of their own; empty if they don't.

        Raises:
            ManifestError: The file can't be read, is not parquet, lacks a column, has it twice, with another type or
                beyond its end, or claims to have more rows than columns of their size may have.
        """
        self._source: ParquetSource = LocalParquet(file) if isinstance(file, Path) else RemoteParquet(file)
        self.name, self.path = self._source.name, self._source.path
        with _reading(self.name), self._source.open() as opened:
            self.size_bytes = opened.size_bytes
            self._footer_start = _find_footer(opened, self.name, own_files)
            self.fingerprint = _fingerprint(opened, self._footer_start)
            with _open(opened) as parquet:
                schema, metadata = parquet.schema_arrow, parquet.metadata
            self.types = {name: _plain_type(schema.field(schema.names.index(name)).type) for name in schema.names}
            self.repeated = {name for name, count in Counter(schema.names).items() if count > 1}
            if columns is None:
                columns = dict.fromkeys((name for name in schema.names if name not in self.repeated), ColumnType.ANY)
            self._check_types(schema, columns, own_files)
            self._leaves = _find_leaves(schema, metadata, columns)
            # The footer also has a number of rows for the whole file, which may be wrong.
            groups = map(metadata.row_group, range(metadata.num_row_groups))
            self.group_rows = [int(group.num_rows) for group in groups]
            self.rows = sum(self.group_rows)
            with opened.path.open("rb") as raw:
                chunks = read_chunks(raw, self._footer_start)
            self._chunks = self._find_chunks(chunks, metadata)
        if self.rows > row_limit(self.column_bytes(tuple(columns))):
            raise ManifestError(
                f"{self.name} claims to have {self.rows:,} rows in {self.size_bytes:,} bytes, more "
                f"than is accepted; {_AGAIN}"
            )

    def column_bytes(self, columns: Sequence[str]) -> int:
        """The size of columns in the file, in bytes."""
        return sum(chunk.stop - chunk.start for name in columns for group in self._chunks[name] for chunk in group)

    def chunks(self, column: str) -> list[Chunk]:
        """Where a column lies in each row group, and what bounds its values; of one that is not nested."""
        return [group[0] for group in self._chunks[column]]

    def batches(self, columns: Sequence[str], groups: Sequence[int] | None = None) -> Iterator[Any]:
        """Rows in order, as ``pyarrow.RecordBatch`` values of these columns.

        Args:
            columns: The columns to read.
            groups: The row groups to read, ascending; None reads all.

        Raises:
            ManifestError: The file is damaged or has changed, or has a page that is too large.
        """
        with self._opened() as (opened, parquet):
            wanted = range(len(self.group_rows)) if groups is None else groups
            for one in self._sets(wanted, columns):
                opened.load(one.spans)
                for group in one.numbers:
                    yield from self._batches(opened, parquet, group, columns)
                opened.unload()

    def select(self, wanted: Int64s, columns: Sequence[str]) -> Iterator[dict[str, Any] | BadRow]:
        """The rows with these numbers, in order; a row that can't be read is a ``BadRow``.

        Args:
            wanted: Row numbers in the file, counted from 0, ascending. Row groups without one are not read.
            columns: The columns to read.

        Raises:
            ManifestError: The file is damaged or has changed, or has a page that is too large.
        """
        with self._opened() as (opened, parquet):
            bounds = [0, *accumulate(self.group_rows)]
            needed = [number for number, (low, high) in enumerate(pairwise(bounds)) if _slice(wanted, low, high).size]
            for groups in self._sets(needed, columns):
                opened.load(groups.spans)
                for group in groups.numbers:
                    first_row = bounds[group]
                    last_row = _slice(wanted, first_row, bounds[group + 1])[-1]
                    for batch in self._batches(opened, parquet, group, columns):
                        rows = _slice(wanted, first_row, first_row + batch.num_rows)
                        if rows.size:
                            yield from _read_rows(batch.take(pa.array(rows - first_row)), rows)
                        first_row += batch.num_rows
                        if first_row > last_row:
                            break
                opened.unload()

    def _check_types(self, schema: Any, columns: Mapping[str, ColumnType], own_files: str) -> None:
        """Check that there are the columns that will be read.

        Raises:
            ManifestError: One is missing, is there twice, or has another type.
        """
        types = {name: _find_type(schema, name) for name in columns}
        if missing := [name for name, found in types.items() if found is None]:
            raise ManifestError(
                f"{self.name} has no column {', '.join(missing)}; it has {', '.join(schema.names) or 'none'}; "
                f"{own_files or 'give the published file'}"
            )
        if twice := [name for name in columns if schema.names.count(name.partition(".")[0]) > 1]:
            raise ManifestError(f"{self.name} has several columns named {', '.join(twice)}; leave one of each")
        for name, wanted in columns.items():
            if not _TYPE_CHECKS[wanted](types[name]):
                raise ManifestError(
                    f"{self.name}: column {name} has the type {types[name]}, where {wanted.value} is "
                    "needed; give the published file"
                )

    def _find_chunks(self, chunks: Sequence[Sequence[Chunk]], metadata: Any) -> Mapping[str, Sequence[Sequence[Chunk]]]:
        """Check where the columns lie; return for each its chunks in each row group: several, if it is nested.

        Raises:
            ManifestError: A part of one lies outside of the file, or they have more bytes than the file.
        """
        if len(chunks) != metadata.num_row_groups or any(len(group) != metadata.num_columns for group in chunks):
            raise ManifestError(f"{self.name} is damaged: its row groups lack columns; {_AGAIN}")
        taken = {
            name: [[group[leaf.number] for leaf in leaves] for group in chunks] for name, leaves in self._leaves.items()
        }
        for name, groups in taken.items():
            for number, group in enumerate(groups):
                if not all(0 <= chunk.start <= chunk.stop <= self._footer_start for chunk in group):
                    raise ManifestError(
                        f"{self.name} is damaged: column {name} of row group {number:,} would lie outside of it; "
                        f"{_AGAIN}"
                    )
        # Otherwise a footer of kilobytes could make the whole file be requested of a server thousands of times.
        read = {leaf.number for leaves in self._leaves.values() for leaf in leaves}
        if sum(group[number].stop - group[number].start for group in chunks for number in read) > self._footer_start:
            raise ManifestError(f"{self.name} is damaged: its columns overlap; {_AGAIN}")
        return taken

    @contextmanager
    def _opened(self) -> Iterator[tuple[OpenParquet, Any]]:
        """Open the file, and check that it is still the same."""
        with _reading(self.name), self._source.open() as opened:
            is_same = opened.size_bytes == self.size_bytes
            if is_same:
                opened.load([(self._footer_start, self.size_bytes)])
                is_same = _fingerprint(opened, self._footer_start) == self.fingerprint
            if not is_same:
                raise ManifestError(f"{self.name} has changed since it was opened; {STARTS_OVER}")
            with _open(opened) as parquet:
                yield opened, parquet

    def _sets(self, groups: Iterable[int], columns: Sequence[str]) -> Iterator[_GroupSet]:
        """Divide row groups into sets that are loaded together; a large one is a set by itself."""
        numbers: list[int] = []
        spans: list[tuple[int, int]] = []
        loaded_bytes = 0
        for number in groups:
            found = [(chunk.start, chunk.stop) for name in columns for chunk in self._chunks[name][number]]
            size_bytes = sum(stop - start for start, stop in found)
            if numbers and loaded_bytes + size_bytes > _LOADED_BYTES:
                yield _GroupSet(numbers, spans)
                numbers, spans, loaded_bytes = [], [], 0
            numbers.append(number)
            spans += found
            loaded_bytes += size_bytes
        if numbers:
            yield _GroupSet(numbers, spans)

    def _batches(self, opened: OpenParquet, parquet: Any, group: int, columns: Sequence[str]) -> Iterator[Any]:
        if not parquet.metadata.row_group(group).num_rows:
            return
        rows = min(_BATCH_ROWS, *(self._rows_at_once(opened, parquet, group, name) for name in columns))
        for batch in parquet.iter_batches(rows, row_groups=[group], columns=list(columns), use_threads=False):
            yield _without_views(batch)
            # Otherwise the heap keeps the pages of all row groups, 20 MB more for a million rows
            # (benchmarks/durability/manifest_memory.py).
            pa.default_memory_pool().release_unused()

    def _rows_at_once(self, opened: OpenParquet, parquet: Any, group: int, name: str) -> int:
        """Return how many rows of a column take about ``_BATCH_BYTES`` in the worst case.

        Raises:
            ManifestError: A page is too large, or lists are.
        """
        leaves = zip(self._leaves[name], self._chunks[name][group], strict=True)
        return min(self._rows_of_leaf(opened, parquet, group, name, leaf, chunk) for leaf, chunk in leaves)

    def _rows_of_leaf(self, opened: OpenParquet, parquet: Any, group: int, name: str, leaf: _Leaf, chunk: Chunk) -> int:
        value_bytes, values, has_dictionary, dictionary_bytes = 1, 0, False, 0
        for page in self._pages(opened, chunk):
            if page.size_bytes > _MAX_PAGE_BYTES:
                raise ManifestError(
                    f"{self.name}: column {name} has a page of {page.size_bytes:,} bytes, more than is "
                    f"accepted; {_AGAIN}"
                )
            values += max(0, page.values)
            has_dictionary = has_dictionary or page.is_dictionary_encoded
            dictionary_bytes = dictionary_bytes if page.values else max(dictionary_bytes, page.size_bytes)
            if page.values > 0:
                # If values share prefixes, each of them may be as long as the whole page.
                value_bytes = max(value_bytes, page.size_bytes // (1 if page.shares_prefixes else page.values))
        if has_dictionary and leaf.kind is ColumnType.STRING:
            value_bytes = max(value_bytes, self._longest_in_dictionary(opened, parquet, group, name))
        elif has_dictionary and leaf.kind is ColumnType.BINARY:  # each value may be all of it
            value_bytes = max(value_bytes, dictionary_bytes)
        if not leaf.is_repeated:
            return max(1, _BATCH_BYTES // value_bytes)
        # Which of the values belong to one row is not known, but mostly each row has a few.
        row_bytes = value_bytes * -(-values // max(1, self.group_rows[group]))
        if value_bytes * values > _MAX_LISTS_BYTES and values > self.group_rows[group]:
            raise ManifestError(
                f"{self.name}: the lists of column {name} may take more than {_MAX_LISTS_BYTES:,} bytes in row group "
                f"{group:,}; write smaller row groups, or leave out that column"
            )
        return max(1, _BATCH_BYTES // max(1, row_bytes))

    def _pages(self, opened: OpenParquet, chunk: Chunk) -> Iterator[Page]:
        """The pages of a column in a row group, its dictionary included."""
        with opened.path.open("rb") as raw:
            yield from read_pages(raw, chunk.start, chunk.stop - chunk.start)

    def _longest_in_dictionary(self, opened: OpenParquet, parquet: Any, group: int, name: str) -> int:
        """The length in bytes of the longest text in a column's dictionary in a row group."""
        import pyarrow.compute as pc  # noqa: PLC0415 - not all datasets need its functions, which take long to load

        # With the metadata the footer is not read again, which may no longer be loaded.
        with _open(opened, metadata=parquet.metadata, read_dictionary=[name]) as file:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[name], use_threads=False):
                texts = batch.column(name).dictionary
                if len(texts):  # a batch that has only nulls comes without the dictionary
                    return int(pc.max(pc.binary_length(texts)).as_py() or 0)
        return 0


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A part of a column that is stored by itself: all of it, unless it is nested.

    Attributes:
        number: Its number in the file.
        kind: ``STRING`` if it is a column of texts; ``BINARY`` if its values have any length; else ``ANY``.
        is_repeated: Whether a row may have several of its values.
    """

    number: int
    kind: ColumnType
    is_repeated: bool


def _find_leaves(schema: Any, metadata: Any, columns: Mapping[str, ColumnType]) -> dict[str, list[_Leaf]]:
    """The parts of columns, and of those that Arrow reads with them.

    A column that is not nested is one part, of the same name. With a column ``url``, Arrow also reads one that is named
    ``url.x``, which is not a part of it. The part that has the name of the column comes first.
    """
    stored = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    leaves = {}
    for name in columns:
        numbers = [n for n, leaf in enumerate(stored) if leaf.path == name or leaf.path.startswith(f"{name}.")]
        numbers.sort(key=lambda number: stored[number].path != name)
        is_text = _TYPE_CHECKS[ColumnType.STRING](_find_type(schema, name))
        leaves[name] = [_leaf(n, stored[n], is_text=is_text and stored[n].path == name) for n in numbers]
    return leaves


def _leaf(number: int, stored: Any, *, is_text: bool) -> _Leaf:
    if is_text:
        kind = ColumnType.STRING
    else:
        kind = ColumnType.BINARY if stored.physical_type == "BYTE_ARRAY" else ColumnType.ANY
    return _Leaf(number, kind, stored.max_repetition_level > 0)


def _open(opened: OpenParquet, **options: Any) -> Any:
    return pq.ParquetFile(opened.path, buffer_size=_BUFFER_BYTES, pre_buffer=False, **options)


def _find_type(schema: Any, name: str) -> Any:
    """The type of a column, or of a field of a column of structs; None if there is none."""
    if name in schema.names:
        return _plain_type(schema.field(schema.names.index(name)).type)
    column, _, inner = name.partition(".")
    if column not in schema.names:
        return None
    found = schema.field(schema.names.index(column)).type
    if not inner:
        return found
    fields = [found.field(number) for number in range(found.num_fields)] if pa.types.is_struct(found) else []
    return next((_plain_type(one.type) for one in fields if one.name == inner), None)


def _plain_type(found: Any) -> Any:
    """A type without views, in which some writers have their texts, and for which Arrow lacks most functions."""
    if pa.types.is_string_view(found):
        return pa.large_string()
    if pa.types.is_binary_view(found):
        return pa.large_binary()
    if pa.types.is_list(found) or pa.types.is_large_list(found):
        plain = _plain_type(found.value_type)
        if not plain.equals(found.value_type):
            return pa.list_(plain) if pa.types.is_list(found) else pa.large_list(plain)
    return found


def _without_views(batch: Any) -> Any:
    """The same rows, with columns of plain types."""
    for number, column in enumerate(batch.columns):
        if not (plain := _plain_type(column.type)).equals(column.type):
            batch = batch.set_column(number, batch.schema.field(number).name, column.cast(plain))
    return batch


def _read_rows(batch: Any, numbers: Int64s) -> Iterator[dict[str, Any] | BadRow]:
    batch = _with_times_as_text(batch)
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for index, number in enumerate(numbers.tolist()):
            yield _read_row(batch, index, number)


def _read_row(batch: Any, index: int, number: int) -> dict[str, Any] | BadRow:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except UnicodeDecodeError as error:
            return BadRow(number, f"column {name} is not UTF-8 at byte {error.start:,} of its text")
        except (ValueError, OverflowError) as error:
            return BadRow(number, f"column {name} can't be read ({str(error).splitlines()[0]})")
    return row


def _with_times_as_text(batch: Any) -> Any:
    """The same rows, with times as ISO 8601 text: Python's own values have no nanoseconds, and end in the year 9999."""
    for number, column in enumerate(batch.columns):
        if pa.types.is_temporal(column.type):
            batch = batch.set_column(number, batch.schema.field(number).name, _as_text(column))
    return batch


def _as_text(times: Any) -> Any:
    if pa.types.is_duration(times.type) or pa.types.is_interval(times.type):
        return times.cast(pa.int64()).cast(pa.string())
    try:
        return times.cast(pa.string())
    except pa.ArrowInvalid:  # of a time zone that this machine doesn't know
        return times.cast(pa.timestamp(times.type.unit)).cast(pa.string())


def _find_footer(opened: OpenParquet, name: str, own_files: str) -> int:
    """Load the footer of a file; return its offset.

    Raises:
        ManifestError: The file is not parquet, or its footer is too large.
    """
    size_bytes = opened.size_bytes
    loaded_from = max(0, size_bytes - _LIKELY_FOOTER_BYTES)
    opened.load([(0, min(_START_BYTES, loaded_from)), (loaded_from, size_bytes)])
    with opened.path.open("rb") as file:
        if description := describe_non_parquet(file.read(_START_BYTES)):
            own = f"{own_files}; a published file: " if own_files else ""
            raise ManifestError(f"{name} is not parquet: {description}; {own}{_AGAIN}")
        if size_bytes < _FOOTER_END.size:
            raise ManifestError(f"{name} is not parquet: it has {size_bytes} bytes; {_AGAIN}")
        file.seek(size_bytes - _FOOTER_END.size)
        footer_bytes, magic = _FOOTER_END.unpack(file.read(_FOOTER_END.size))
    if magic != _MAGIC or footer_bytes > size_bytes - _FOOTER_END.size:
        raise ManifestError(f"{name} is cut short, or not parquet: it has no footer; {_AGAIN}")
    if footer_bytes > _MAX_FOOTER_BYTES:
        raise ManifestError(f"{name} has a footer of {footer_bytes:,} bytes, more than is accepted; {_AGAIN}")
    footer_start = size_bytes - _FOOTER_END.size - int(footer_bytes)
    opened.load([(footer_start, max(footer_start, loaded_from))])
    return footer_start


def _fingerprint(opened: OpenParquet, footer_start: int) -> str:
    """Hash a file's size and its footer, which has the offset, size and statistics of every column chunk."""
    with opened.path.open("rb") as file:
        file.seek(footer_start)
        footer = file.read(opened.size_bytes - _FOOTER_END.size - footer_start)
    return hashlib.sha256(b"%d " % opened.size_bytes + footer).hexdigest()[:16]


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
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError, DamagedPageError, pa.ArrowException) as error:
        raise unreadable(f"{name} as parquet", error) from error
