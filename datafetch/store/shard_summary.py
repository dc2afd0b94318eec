"""ShardSummary: the result of a published shard, in the metadata of its ledger, with the checksums of its own files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import orjson

from datafetch.model.bounds import Count, Crc32, PlainName
from datafetch.model.ledger_line import ShardCounts
from datafetch.store.ledger_format import not_a_ledger, read_footer
from datafetch.store.packed_bools import Bools, pack_bools, unpack_bools

_TOTALS_KEY = b"datafetch.totals"
_COUNTS = frozenset(one.name for one in fields(ShardCounts))  # a retry would lose any other
_ROWS_KEY = b"datafetch.rows"
_OWN_ROWS_KEY = b"datafetch.own_rows"
_RETRY_KEY = b"datafetch.retry"
_FILES_KEY = b"datafetch.files"  # missing in ledgers of earlier versions


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


def summary_metadata(summary: ShardSummary, files: Mapping[str, FileCheck]) -> dict[bytes, bytes]:
    """The metadata of a ledger.

    Args:
        summary: The result of its shard.
        files: The shard's own files by name, but for images that have an index.
    """
    return {
        _TOTALS_KEY: _encode_totals(summary.totals),
        _ROWS_KEY: pack_bools(summary.has_row),
        _OWN_ROWS_KEY: pack_bools(summary.own_rows),
        _RETRY_KEY: str(summary.retry).encode(),
        _FILES_KEY: orjson.dumps({name: list(check) for name, check in files.items()}),
    }


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


def _read_metadata(path: Path) -> dict[bytes, bytes]:
    metadata: dict[bytes, bytes] = read_footer(path).metadata or {}
    if not metadata.keys() >= {_TOTALS_KEY, _ROWS_KEY, _OWN_ROWS_KEY, _RETRY_KEY}:
        raise not_a_ledger(path, "a ledger of this version of datafetch")
    return metadata


def _encode_totals(totals: ShardCounts) -> bytes:
    """The counts as JSON, without a field that is None: earlier versions refuse fields that they don't know."""
    values = {name: value for name in sorted(_COUNTS) if (value := getattr(totals, name)) is not None}
    return orjson.dumps(values)


def _totals(path: Path, metadata: Mapping[bytes, bytes]) -> ShardCounts:
    try:
        found = msgspec.json.decode(metadata[_TOTALS_KEY], type=dict[str, Any])
        totals = msgspec.convert(found, ShardCounts)
    except (ValueError, RecursionError) as error:
        raise not_a_ledger(path) from error
    if found.keys() - _COUNTS or totals.rows > totals.samples:
        raise not_a_ledger(path)
    return totals
