"""Manifest files to rows, streaming.

Rules: whatever the size of the file, memory holds one batch of it and the row numbers that are wanted. Everything that
is wrong with a file is a ``ManifestError``, which names it.
"""

from datafetch.readers.folder import list_files
from datafetch.readers.ids import INDEX_BITS, IdList, pack_pair, read_id_pairs, read_ids
from datafetch.readers.lines import MAX_LINE_BYTES, LineFile, stem_of
from datafetch.readers.parquet import ColumnType, ParquetFile, matching_rows
from datafetch.readers.records import RecordReader
from datafetch.readers.words import Int64s

__all__ = [
    "INDEX_BITS",
    "MAX_LINE_BYTES",
    "ColumnType",
    "IdList",
    "Int64s",
    "LineFile",
    "ParquetFile",
    "RecordReader",
    "list_files",
    "matching_rows",
    "pack_pair",
    "read_id_pairs",
    "read_ids",
    "stem_of",
]
