"""One line per image, for ever: what became of it, as a parquet file a shard.

Rules: a ledger file exists if and only if its shard is published. The shard's books stand in the file's metadata, so
that a report reads footers and not millions of lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from datafetch.errors import ConfigurationError
from datafetch.model import LedgerLine, Totals

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
    ]
)
_TOTALS_KEY = b"datafetch.totals"
_LINES_A_ROW_GROUP = 16_384  # about 8 MB of lines wait in memory


class LedgerWriter:
    """Writes one shard's ledger to a file that nobody sees yet; use it as a context manager."""

    def __init__(self, path: Path, shard: str) -> None:
        self.lines = 0
        self._shard = shard
        self._pending: list[dict[str, object]] = []
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def write(self, lines: Sequence[LedgerLine]) -> None:
        """Append lines. They come in the order of samples and images."""
        self.lines += len(lines)
        self._pending += ({"shard": self._shard, **asdict(line)} for line in lines)
        if len(self._pending) >= _LINES_A_ROW_GROUP:
            self._flush()

    def finish(self, totals: Totals) -> None:
        """Write what is pending, and the shard's books."""
        self._flush()
        self._writer.add_key_value_metadata({_TOTALS_KEY: orjson.dumps(totals)})

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.Table.from_pylist(self._pending, schema=SCHEMA))
            self._pending.clear()


def read_totals(path: Path) -> Totals:
    """The books of a published shard.

    Raises:
        ConfigurationError: The file is not a ledger.
    """
    try:
        metadata: dict[bytes, bytes] = pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise ConfigurationError(f"{path} is not a ledger of datafetch; --fresh starts over") from error
    if _TOTALS_KEY not in metadata:
        raise ConfigurationError(f"{path} is not a ledger of datafetch; --fresh starts over")
    return Totals(**orjson.loads(metadata[_TOTALS_KEY]))


def read_keys(path: Path) -> Iterator[str]:
    """The key of every image's sample, in order; a sample with several images comes several times."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["key"]):
            column: Any = batch.column("key")
            yield from column.to_pylist()
