"""Manifest files to rows, streaming.

Rules: whatever the size of the file, and whatever it claims, memory holds one batch of it, which has a bound in bytes,
and some bytes for each row, of which a file may have no more than its own size explains. Everything that is wrong with
a file is a ``ManifestError``, which names it.
"""

from datafetch.datasets.readers.bounds import (
    MAX_NESTING,
    Int64s,
    is_nested_deeply,
    max_rows,
    parsed_bytes,
    why_too_long,
)
from datafetch.datasets.readers.ids import INDEX_BITS, IdList, pack_pair, read_id_pairs, read_ids
from datafetch.datasets.readers.json_list import Member, MemberReader, RecordReader
from datafetch.datasets.readers.jsonl import MAX_LINE_BYTES, LineFile, stem_of
from datafetch.datasets.readers.listing import list_files
from datafetch.datasets.readers.parquet import BadRow, ColumnType, ParquetFile, matching_rows

__all__ = [
    "INDEX_BITS",
    "MAX_LINE_BYTES",
    "MAX_NESTING",
    "BadRow",
    "ColumnType",
    "IdList",
    "Int64s",
    "LineFile",
    "Member",
    "MemberReader",
    "ParquetFile",
    "RecordReader",
    "is_nested_deeply",
    "list_files",
    "matching_rows",
    "max_rows",
    "pack_pair",
    "parsed_bytes",
    "read_id_pairs",
    "read_ids",
    "stem_of",
    "why_too_long",
]
