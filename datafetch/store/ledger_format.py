"""The format of ledgers: the permanent record of what became of each image, as one parquet file per shard.

A ledger has a line per image, in the order of samples and images, and the summary of its shard in the file's metadata.

Rules: a ledger file exists if and only if its shard is published. Counts of samples and outcomes are read from the
footers of the files (``store.shard_summary``), and not from millions of lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datafetch.errors import ConfigurationError, raise_if_exhausted
from datafetch.model.ledger_line import LedgerLine
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
        ("received_width", pa.int32()),
        ("received_height", pa.int32()),
    ]
)
LINE_COLUMNS = SCHEMA.names[1:]  # the fields of a LedgerLine
# Ledgers of earlier versions lack these.
LATER_COLUMNS = frozenset({"permitted", "is_original", "is_skipped", "source", "received_width", "received_height"})


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


def open_ledger(path: Path) -> pq.ParquetFile:
    """Open a ledger; it is a context manager.

    Raises:
        OSError: It can't be opened, or is no regular file.
        ArrowException: It is no parquet file.
    """
    require_regular(path)
    return pq.ParquetFile(path)


def read_footer(path: Path) -> pq.FileMetaData:
    """Read what a ledger says about itself: its row groups, and the metadata of ``store.shard_summary``.

    Raises:
        ConfigurationError: The file is not a ledger.
    """
    try:
        require_regular(path)
        return pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise_if_exhausted(error)
        raise not_a_ledger(path) from error


def as_batch(lines: Sequence[LedgerLine], names: Sequence[str]) -> pa.RecordBatch:
    """Some columns of lines that are not in a ledger yet, as ``ledger_reader.read_selected`` has them."""
    return pa.RecordBatch.from_pylist(
        [{name: escaped(getattr(line, name)) for name in names} for line in lines],
        schema=pa.schema([SCHEMA.field(name) for name in names]),
    )


def escaped(value: object) -> object:
    """A value of a line. A lone surrogate, which JSON allows and UTF-8 does not, is replaced by its escape."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
