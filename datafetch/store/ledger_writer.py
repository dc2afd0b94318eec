"""LedgerWriter: writes the ledger of one shard, in row groups of bounded size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from datafetch.model.ledger_line import LedgerLine
from datafetch.store.ledger_format import LINE_COLUMNS, SCHEMA, escaped
from datafetch.store.shard_summary import FileCheck, ShardSummary, summary_metadata

# Lines are buffered until they fill a row group, and are read by row group. A row group is bounded in bytes as well,
# because a URL may have 60 KB or more, and so may the one that its redirects lead to.
_ROW_GROUP_LINES = 16_384
_ROW_GROUP_BYTES = 8 * 1024 * 1024
_LINE_BYTES = 256  # approximate size of a line without its texts


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
            columns: dict[str, object] = {name: getattr(line, name) for name in LINE_COLUMNS}
            self._pending.append({"shard": self._shard, **columns})
            self._pending_bytes += _LINE_BYTES + _text_bytes(line)
            if len(self._pending) >= _ROW_GROUP_LINES or self._pending_bytes >= _ROW_GROUP_BYTES:
                self._flush()

    def finish(self, summary: ShardSummary, files: Mapping[str, FileCheck] | None = None) -> None:
        """Write what is pending, the shard's summary, and its own files by name, but for images that have an index."""
        self._flush()
        self._writer.add_key_value_metadata(summary_metadata(summary, files or {}))

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(_table(self._pending))
            self._pending.clear()
            self._pending_bytes = 0


def _text_bytes(line: LedgerLine) -> int:
    return len(line.url) + len(line.final_url) + len(line.key) + len(line.detail)


def _table(lines: Sequence[Mapping[str, object]]) -> pa.Table:
    """Lines as an Arrow table."""
    try:
        return pa.Table.from_pylist(lines, schema=SCHEMA)
    except UnicodeEncodeError:
        valid = [{name: escaped(value) for name, value in line.items()} for line in lines]
        return pa.Table.from_pylist(valid, schema=SCHEMA)
