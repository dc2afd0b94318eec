"""The ledger: the permanent record of what became of each image, as one parquet file per shard with a line per image.

Rules: a ledger file exists if and only if its shard is published. The shard's summary is in the file's metadata, so a
report reads the footers of the files and not millions of lines.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datafetch.errors import ConfigurationError, raise_if_exhausted
from datafetch.model.bounds import Count, Crc32, PlainName
from datafetch.model.ledger_line import LEGACY_SKIPPED_PREFIX, LedgerLine, ShardCounts
from datafetch.model.lost_documents import LostDocumentCounter, LostDocuments
from datafetch.model.outcome import NOT_REQUESTED, OK, Failure, FailureKind, Permission
from datafetch.model.regular_file import require_regular

SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("sample", pa.int64()),
        ("key", pa.string()),
        ("image", pa.int16()),
        ("url", pa.string()),
        ("final_url", pa.string()),
        ("outcome", pa.string()),
        ("status", pa.int16()),
        ("attempts", pa.int8()),
        ("body_bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("sha256", pa.string()),
        ("fetch_ms", pa.float32()),
        ("detail", pa.string()),
        ("permitted", pa.list_(pa.string())),
        ("is_original", pa.bool_()),
        ("is_skipped", pa.bool_()),
        ("source", pa.string()),
    ]
)
_LINE_COLUMNS = SCHEMA.names[1:]
_LATER_COLUMNS = frozenset(
    {"permitted", "is_original", "is_skipped", "source"}
)  # missing in ledgers of earlier versions
_NULLABLE = _LATER_COLUMNS | {"status", "width", "height"}
_TOTALS_KEY = b"datafetch.totals"
_COUNTS = frozenset(one.name for one in fields(ShardCounts))  # a retry would lose any other
_ROWS_KEY = b"datafetch.rows"
_OWN_ROWS_KEY = b"datafetch.own_rows"
_RETRY_KEY = b"datafetch.retry"
_FILES_KEY = b"datafetch.files"  # missing in ledgers of earlier versions
_SOME_HASH = "0" * 64
Bools: TypeAlias = npt.NDArray[np.bool_]
# Lines are buffered until they fill a row group, and are read by row group. A row group is bounded in bytes as well,
# because a URL may have 60 KB or more, and so may the one that its redirects lead to.
_ROW_GROUP_LINES = 16_384
_ROW_GROUP_BYTES = 8 * 1024 * 1024
_LINE_BYTES = 256  # approximate size of a line without its texts
_BATCH_LINES = 4096  # converted to Python objects at a time


class FileCheck(NamedTuple):
    """What a published file is compared with: its size and its CRC-32."""

    size_bytes: Count
    crc32: Crc32


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """The result of a published shard.

    Attributes:
        totals: Its counts.
        has_row: Whether each sample became a row, by position.
        own_rows: Whether each sample's row is in the shard's own file. If the output is resharded, only rows that a
            retry has added are in a file of the shard.
        retry: Number of the last retry that the shard was part of; 0 before the first.
    """

    totals: ShardCounts
    has_row: Bools
    own_rows: Bools
    retry: int = 0


class LedgerWriter:
    """Writes the ledger of one shard to a file that is not published yet; a context manager."""

    def __init__(self, path: Path, shard: str) -> None:
        self.lines = 0
        self._shard = shard
        self._pending: list[dict[str, object]] = []
        self._pending_bytes = 0
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def write(self, lines: Sequence[LedgerLine]) -> None:
        """Append lines, in the order of samples and images."""
        self.lines += len(lines)
        for line in lines:
            columns: dict[str, object] = {name: getattr(line, name) for name in _LINE_COLUMNS}
            self._pending.append({"shard": self._shard, **columns})
            self._pending_bytes += _LINE_BYTES + _text_bytes(line)
            if len(self._pending) >= _ROW_GROUP_LINES or self._pending_bytes >= _ROW_GROUP_BYTES:
                self._flush()

    def finish(self, summary: ShardSummary, files: Mapping[str, FileCheck] | None = None) -> None:
        """Write what is pending, the shard's summary, and its own files by name, but for images that have an index."""
        self._flush()
        self._writer.add_key_value_metadata(
            {
                _TOTALS_KEY: _encode_totals(summary.totals),
                _ROWS_KEY: pack_bools(summary.has_row),
                _OWN_ROWS_KEY: pack_bools(summary.own_rows),
                _RETRY_KEY: str(summary.retry).encode(),
                _FILES_KEY: orjson.dumps({name: list(check) for name, check in (files or {}).items()}),
            }
        )

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(_table(self._pending))
            self._pending.clear()
            self._pending_bytes = 0


def _text_bytes(line: LedgerLine) -> int:
    return len(line.url) + len(line.final_url) + len(line.key) + len(line.detail)


def _table(lines: Sequence[Mapping[str, object]]) -> pa.Table:
    """Lines as an Arrow table. A lone surrogate, which JSON allows and UTF-8 does not, is replaced by its escape."""
    try:
        return pa.Table.from_pylist(lines, schema=SCHEMA)
    except UnicodeEncodeError:
        valid = [{name: _escaped(value) for name, value in line.items()} for line in lines]
        return pa.Table.from_pylist(valid, schema=SCHEMA)


def _escaped(value: object) -> object:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _encode_totals(totals: ShardCounts) -> bytes:
    """The counts as JSON, without a field that is None: earlier versions refuse fields that they don't know."""
    values = {name: value for name in sorted(_COUNTS) if (value := getattr(totals, name)) is not None}
    return orjson.dumps(values)


def pack_bools(values: Bools) -> bytes:
    """Pack truth values into compressed text, one bit each."""
    return base64.b85encode(zlib.compress(np.packbits(values).tobytes()))


def unpack_bools(packed: bytes | str, count: int) -> Bools:
    """Unpack the values of ``pack_bools``.

    Args:
        packed: The compressed text.
        count: The number of values.

    Raises:
        ValueError: The text does not hold this number of values.
    """
    size_bytes = -(-count // 8)
    try:
        bits = zlib.decompressobj().decompress(base64.b85decode(packed), size_bytes + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(bits) != size_bytes:
        raise ValueError(f"{len(bits):,} bytes for {count:,} values")
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(np.bool_)


def read_shard_counts(path: Path) -> ShardCounts:
    """The counts of a published shard.

    Raises:
        ConfigurationError: The file is not a ledger.
    """
    return _totals(path, _read_metadata(path))


def sum_shard_counts(paths: Iterable[Path]) -> ShardCounts:
    """The summed counts of those shards that are published.

    Raises:
        ConfigurationError: A file is not a ledger.
    """
    return ShardCounts.sum(read_shard_counts(path) for path in paths if path.exists())


def read_shard_summary(path: Path) -> ShardSummary:
    """The summary of a published shard.

    Raises:
        ConfigurationError: The file is not a ledger.
    """
    metadata = _read_metadata(path)
    totals = _totals(path, metadata)
    try:
        return ShardSummary(
            totals,
            unpack_bools(metadata[_ROWS_KEY], totals.samples),
            unpack_bools(metadata[_OWN_ROWS_KEY], totals.samples),
            msgspec.json.decode(metadata[_RETRY_KEY], type=Count),
        )
    except ValueError as error:
        raise not_a_ledger(path) from error


def read_file_checks(path: Path) -> Mapping[str, FileCheck]:
    """The own files of a published shard as they were written, by name; none in ledgers of earlier versions.

    Raises:
        ConfigurationError: The file is not a ledger.
    """
    try:
        return msgspec.json.decode(_read_metadata(path).get(_FILES_KEY, b"{}"), type=dict[PlainName, FileCheck])
    except (ValueError, RecursionError) as error:
        raise not_a_ledger(path) from error


def not_a_ledger(path: Path, kind: str = "a ledger of datafetch") -> ConfigurationError:
    """The error for a file that is not a ledger. Its advice affects no other shard.

    Args:
        path: The file.
        kind: What the file should have been.
    """
    return ConfigurationError(
        f"{path} is not {kind}; put back a copy, or delete it and run 'datafetch prepare' as before, which "
        "fetches the images of that shard again; if the output is resharded, only a copy helps, or --fresh"
    )


def _read_metadata(path: Path) -> dict[bytes, bytes]:
    try:
        metadata: dict[bytes, bytes] = _metadata(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise_if_exhausted(error)
        raise not_a_ledger(path) from error
    if not metadata.keys() >= {_TOTALS_KEY, _ROWS_KEY, _OWN_ROWS_KEY, _RETRY_KEY}:
        raise not_a_ledger(path, "a ledger of this version of datafetch")
    return metadata


def _metadata(path: Path) -> pq.FileMetaData:
    require_regular(path)
    return pq.read_metadata(path)


def _open(path: Path) -> pq.ParquetFile:
    require_regular(path)
    return pq.ParquetFile(path)


def count_lost_documents(path: Path) -> LostDocuments:
    """Count the lost documents of a published shard, whose ledger is of an earlier version and lacks their number."""
    has_row, counter = read_shard_summary(path).has_row, LostDocumentCounter()
    for lines in read_samples(path):
        if not has_row[lines[0].sample]:
            counter.add([line.outcome for line in lines])
    return counter.result()


def read_samples(path: Path) -> Iterator[tuple[LedgerLine, ...]]:
    """The lines of each sample that has images, in the order of samples and images."""
    with _open(path) as file:
        lines = (LedgerLine.from_fields(line) for batch in _batches(file, _LINE_COLUMNS) for line in batch.to_pylist())
        for _, sample in groupby(lines, attrgetter("sample")):
            yield tuple(sample)


def read_failures(path: Path) -> set[Failure]:
    """The distinct failures of a ledger, by what decides whether they may pass: kind, status and a hash of a body.

    NOT_REQUESTED is among them if a sample has no other failure; otherwise a retry follows the others.
    """
    columns = ["sample", "outcome", "status", "sha256"]
    found: set[tuple[str, int | None, bool]] = set()
    not_requested, with_others = set(), set()
    with _open(path) as file:
        for batch in _batches(file, columns):
            for sample, outcome, status, sha256 in zip(*(batch[name].to_pylist() for name in columns), strict=True):
                if outcome == FailureKind.NOT_REQUESTED:
                    not_requested.add(sample)
                elif outcome != OK:
                    with_others.add(sample)
                    found.add((outcome, status, bool(sha256)))
    failures = {
        Failure(FailureKind(outcome), status=status, sha256=_SOME_HASH if has_body else "")
        for outcome, status, has_body in found
    }
    return failures | {NOT_REQUESTED} if not_requested - with_others else failures


def count_unpermitted(path: Path, kind: FailureKind, permission: Permission) -> int:
    """The number of images that were requested and failed with a kind although a permission was not used."""
    count = 0
    with _open(path) as file:
        for batch in _batches(file, ["outcome", "detail", "permitted", "is_skipped"]):
            requested = without_skipped(batch)
            lines = requested.filter(pc.equal(requested["outcome"], kind.value)).to_pylist()
            count += sum(permission not in (line.get("permitted") or ()) for line in lines)
    return count


def without_skipped(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The lines of images other than those that were not requested because their document was lost.

    Args:
        batch: Lines with the columns ``detail`` and, if the ledger has it, ``is_skipped``.
    """
    if "is_skipped" in batch.schema.names:
        return batch.filter(pc.invert(batch["is_skipped"]))
    return batch.filter(pc.invert(pc.starts_with(batch["detail"], LEGACY_SKIPPED_PREFIX)))


def _totals(path: Path, metadata: Mapping[bytes, bytes]) -> ShardCounts:
    try:
        found = msgspec.json.decode(metadata[_TOTALS_KEY], type=dict[str, Any])
        totals = msgspec.convert(found, ShardCounts)
    except (ValueError, RecursionError) as error:
        raise not_a_ledger(path) from error
    if found.keys() - _COUNTS or totals.rows > totals.samples:
        raise not_a_ledger(path)
    return totals


def read_keys(path: Path) -> Iterator[str]:
    """The key of each image's sample, in order; a sample with several images is repeated."""
    with _open(path) as file:
        for batch in _batches(file, ["key"]):
            column: Any = batch.column("key")
            yield from column.to_pylist()


def read_columns(path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of all lines, in order, in batches of at most a few thousand lines and a few megabytes.

    Raises:
        FileNotFoundError: The ledger does not exist, perhaps no longer.
        ConfigurationError: The file is not a ledger.
    """
    try:
        with _open(path) as file:
            if not {SCHEMA.field(name) for name in names if name not in _LATER_COLUMNS} <= set(file.schema_arrow):
                raise pa.ArrowInvalid("other columns")
            yield from _batches(file, list(names))
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise_if_exhausted(error)
        raise not_a_ledger(path) from error


def read_selected(
    path: Path, names: Sequence[str], select: Callable[[pa.RecordBatch], pa.Array]
) -> Iterator[list[LedgerLine]]:
    """The lines that are selected by some of their columns, in order, a few thousand at a time.

    The other columns are read only where a line is selected, so that most of a large ledger is never decompressed.

    Args:
        path: The ledger.
        names: The columns that decide.
        select: Takes a batch of these columns, and returns a boolean for each of its lines.

    Raises:
        FileNotFoundError: The ledger does not exist, perhaps no longer.
        ConfigurationError: The file is not a ledger.
    """
    try:
        with _open(path) as file:
            if not {SCHEMA.field(name) for name in _LINE_COLUMNS if name not in _LATER_COLUMNS} <= set(
                file.schema_arrow
            ):
                raise pa.ArrowInvalid("other columns")
            for group in range(file.num_row_groups):
                masks = [select(batch) for batch in _group_batches(file, group, list(names))]
                if any(mask.true_count for mask in masks):
                    for mask, batch in zip(masks, _group_batches(file, group, _LINE_COLUMNS), strict=True):
                        yield _lines(batch.filter(mask))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:  # a value error is an unknown permission, for example
        raise_if_exhausted(error)
        raise not_a_ledger(path) from error


def row_group_lines(path: Path) -> list[int]:
    """The number of lines in each row group of a ledger.

    Raises:
        ConfigurationError: The file is not a ledger.
    """
    try:
        metadata = _metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise_if_exhausted(error)
        raise not_a_ledger(path) from error
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


class RowGroup:
    """A row group of a ledger in memory, whose lines are converted one at a time."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def line(self, number: int) -> LedgerLine:
        """The line with this number in the row group, counted from 0."""
        return LedgerLine.from_fields(self._table.slice(number, 1).to_pylist()[0])


def read_row_group(path: Path, group: int) -> RowGroup:
    """Read one row group of a ledger.

    Raises:
        ConfigurationError: The file is not a ledger, or has changed.
    """
    try:
        with _open(path) as file:
            return RowGroup(file.read_row_group(group, columns=_LINE_COLUMNS, use_threads=False).combine_chunks())
    except (OSError, pa.ArrowException) as error:
        raise_if_exhausted(error)
        raise not_a_ledger(path) from error


def _lines(batch: pa.RecordBatch) -> list[LedgerLine]:
    """A batch as lines.

    Raises:
        ValueError: A value is missing, or is none that datafetch writes.
    """
    if any(batch[name].null_count for name in batch.schema.names if name not in _NULLABLE):
        raise ValueError("values are missing")
    return [LedgerLine.from_fields(line) for line in batch.to_pylist()]


def as_batch(lines: Sequence[LedgerLine], names: Sequence[str]) -> pa.RecordBatch:
    """Some columns of lines that are not in a ledger yet, as ``read_selected`` has them."""
    return pa.RecordBatch.from_pylist(
        [{name: _escaped(getattr(line, name)) for name in names} for line in lines],
        schema=pa.schema([SCHEMA.field(name) for name in names]),
    )


def _batches(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of all lines, in batches that do not extend beyond a row group."""
    for group in range(file.num_row_groups):
        yield from _group_batches(file, group, columns)


def _group_batches(file: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of the lines of a row group, in batches of the same lines whatever the columns."""
    yield from file.iter_batches(_BATCH_LINES, row_groups=[group], columns=columns, use_threads=False)
