"""A parquet file with a row for each sample of a shard, in row groups of bounded size.

Theory of operation: rows are held until the next one would make them larger than a row group may be, and are then
written. So which rows a group has depends on the rows alone: a shard that is read and written again has the same
bytes. The types of the columns are decided with the first group (``column_types``), or by the file that is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datafetch.datasets.lists.kept_columns import JSON
from datafetch.errors import STARTS_OVER, ManifestError, ResourceError, raise_if_exhausted
from datafetch.model.regular_file import require_regular
from datafetch.output.formats.checksummed_file import ChecksummedFile
from datafetch.output.formats.column_types import (
    IMAGE_TYPE,
    JsonText,
    arrow_field,
    as_array,
    column_types,
    features_metadata,
    type_names,
)
from datafetch.output.formats.sample_columns import IMAGE, STATUS, URL, SampleValues, is_list, with_lists, without_lists

PARQUET_SUFFIX = ".parquet"
ROW_GROUP_BYTES = 16 << 20
"""The size of the rows of a row group, without what Arrow adds; one row may be larger."""
_MAX_ROWS = 10_000
_ROW_BYTES = 256  # what a row takes besides its texts and images, roughly
_COMPRESSION = "zstd"
_SLICE_ROWS = 256  # of a row group, which become values of Python at a time
_HUGGINGFACE = b"huggingface"


class ParquetRowsWriter:
    """Writes the rows of a shard to a parquet file; a row group is in memory.

    Args:
        path: The file.
        has_images: Whether rows have an image, or a list of images, under ``image``: ``{"bytes": …, "path": …}``.
        replaced: The file that this one replaces, whose columns it has; None for a new shard.

    Raises:
        ManifestError: The file that it replaces is damaged; nothing is opened.
    """

    def __init__(self, path: Path, *, has_images: bool = False, replaced: Path | None = None) -> None:
        self.path = path
        self.rows = 0
        self._has_images = has_images
        self._types = None if replaced is None else read_types(replaced)
        self._file = ChecksummedFile(path)
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[SampleValues] = []
        self._pending_bytes = 0
        self._given: Mapping[str, str] = {}

    def write(self, row: SampleValues, types: Mapping[str, str]) -> None:
        """Append a row.

        Args:
            row: Its columns.
            types: The types of its kept columns, as far as they are known.
        """
        row_bytes = _ROW_BYTES + sum(map(_value_bytes, row.values()))
        if self._pending and (self._pending_bytes + row_bytes > ROW_GROUP_BYTES or len(self._pending) >= _MAX_ROWS):
            self._flush()
        self._given = self._given or types
        self._pending.append(row)
        self._pending_bytes += row_bytes
        self.rows += 1

    def finish(self) -> None:
        """Complete the file; without rows it is empty, and no parquet file."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
        self._file.finish()

    def check(self) -> None:
        """Read the finished file back.

        Raises:
            ResourceError: It does not have what was written.
        """
        self._file.check()
        try:
            found = pq.read_metadata(self.path).num_rows
        except (OSError, pa.ArrowException) as error:
            raise_if_exhausted(error)
            raise ResourceError(f"{self.path.name} can't be read back after it was written; check the disk") from error
        if found != self.rows:
            raise ResourceError(
                f"{self.path.name} has {found} of the {self.rows} rows that were written; check the disk"
            )

    @property
    def written_bytes(self) -> int:
        """The size of the file."""
        return self._file.written_bytes

    def checksums(self) -> dict[str, int]:
        """The CRC-32 of the file, by its name."""
        return self._file.checksums()

    def close(self) -> None:
        """Close the file, finished or not. May be called twice."""
        if self._writer is not None and self._writer.is_open:
            self._writer.close()
        self._file.close()

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._types is None:
            are_several = any(is_list(row[URL]) for row in self._pending)
            known = [{name: value for name, value in row.items() if name != IMAGE} for row in self._pending]
            self._types = column_types(known, self._given, are_several=are_several)
        are_several = self._types[URL].startswith("list")
        if self._writer is None:
            self._writer = self._open_writer(self._types, are_several=are_several)
        rows = [with_lists(row) if are_several else without_lists(row) for row in self._pending]
        arrays = [as_array([row.get(name) for row in rows], kind) for name, kind in self._types.items()]
        if self._has_images:
            target = self._writer.schema.field(IMAGE).type
            arrays.insert(0, pa.array([row[IMAGE] for row in rows], target))
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._writer.schema), len(self._pending))
        self._pending.clear()
        self._pending_bytes = 0

    def _open_writer(self, types: Mapping[str, str], *, are_several: bool) -> pq.ParquetWriter:
        fields = [arrow_field(name, kind) for name, kind in types.items()]
        metadata = None
        if self._has_images:
            fields.insert(0, pa.field(IMAGE, pa.list_(IMAGE_TYPE) if are_several else IMAGE_TYPE))
            metadata = {_HUGGINGFACE: features_metadata(types, are_several=are_several)}
        schema = pa.schema(fields, metadata)
        leaves = _leaves(schema)
        texts = [leaf for leaf in leaves if leaf.partition(".")[0] != IMAGE]
        return pq.ParquetWriter(
            pa.PythonFile(_Sink(self._file), "w"),
            schema,
            compression={leaf: _COMPRESSION if leaf in texts else "none" for leaf in leaves},
            use_dictionary=[leaf for leaf in texts if leaf.partition(".")[0] == STATUS],
            write_statistics=texts,
        )


class _Sink:
    """A file as Arrow writes to one; it stays open."""

    closed = False

    def __init__(self, file: ChecksummedFile) -> None:
        self._file = file

    def write(self, piece: bytes) -> int:
        self._file.write(piece)
        return len(piece)

    def flush(self) -> None:
        """Do nothing: the file is flushed when it is finished."""

    def close(self) -> None:
        """Do nothing: whoever has opened the file closes it."""


def _leaves(schema: pa.Schema) -> list[str]:
    """The paths of the columns as parquet names them."""
    return [path for field in schema for path in _paths(field.name, field.type)]


def _paths(path: str, kind: pa.DataType) -> Iterator[str]:
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _paths(f"{path}.{field.name}", field.type)
    elif pa.types.is_list(kind):
        yield from _paths(f"{path}.list.element", kind.value_type)
    else:
        yield path


def _value_bytes(value: object) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_value_bytes, value.values()))
    if isinstance(value, Sequence):
        return sum(map(_value_bytes, value))
    return 0


def read_types(path: Path) -> dict[str, str]:
    """The types of the columns of a file of rows.

    Raises:
        ManifestError: The file is damaged.
    """
    try:
        require_regular(path)
        return type_names(pq.read_schema(path))
    except (OSError, pa.ArrowException) as error:
        raise_if_exhausted(error)
        raise no_longer_ours(path) from error


def read_parquet_rows(path: Path) -> Iterator[SampleValues]:
    """The rows of a file, in order; a row group is in memory.

    Raises:
        ManifestError: The file is damaged.
    """
    try:
        require_regular(path)
        with pq.ParquetFile(path) as file:
            json_columns = [name for name, kind in type_names(file.schema_arrow).items() if kind == JSON]
            for number in range(file.num_row_groups):
                group = file.read_row_group(number, use_threads=False)
                for start in range(0, group.num_rows, _SLICE_ROWS):
                    for row in group.slice(start, _SLICE_ROWS).to_pylist():
                        yield row | {name: JsonText(row[name]) for name in json_columns if row[name] is not None}
    except (OSError, pa.ArrowException) as error:
        raise_if_exhausted(error)
        raise no_longer_ours(path) from error


def no_longer_ours(path: Path) -> ManifestError:
    """The error for a file of a shard that is not as it was written."""
    return ManifestError(f"{path} is no longer a file of a shard written by datafetch; {STARTS_OVER}")
