"""Stream manifest files as lines, rows or records.

Rules: memory is bounded whatever a file claims. It holds one batch of limited size, and a few bytes for each row, and
the number of rows is limited in proportion to the size of the file. Everything that is wrong with a file is a
``ManifestError`` that names the file; only ``json_list`` leaves the name to its caller.
"""

from datafetch.datasets.readers.ids import INDEX_BITS, IdList, pack_pair, read_id_pairs, read_ids
from datafetch.datasets.readers.json_list import JsonListError, ObjectMember, ObjectReader, RecordReader, replace_value
from datafetch.datasets.readers.jsonl import MAX_LINE_BYTES, LineFile, stem_of
from datafetch.datasets.readers.limits import (
    MAX_NESTING,
    Int64s,
    explain_digit_limit,
    is_nested_deeply,
    max_parsed_bytes,
    max_rows,
)
from datafetch.datasets.readers.listing import list_files
from datafetch.datasets.readers.parquet import BadRow, ColumnType, ParquetFile, matching_rows
from datafetch.datasets.readers.zip_directory import (
    Fingerprint,
    ZipDirectory,
    ZipEntry,
    copy_header,
    locate_directory,
)

__all__ = [
    "INDEX_BITS",
    "MAX_LINE_BYTES",
    "MAX_NESTING",
    "BadRow",
    "ColumnType",
    "Fingerprint",
    "IdList",
    "Int64s",
    "JsonListError",
    "LineFile",
    "ObjectMember",
    "ObjectReader",
    "ParquetFile",
    "RecordReader",
    "ZipDirectory",
    "ZipEntry",
    "copy_header",
    "explain_digit_limit",
    "is_nested_deeply",
    "list_files",
    "locate_directory",
    "matching_rows",
    "max_parsed_bytes",
    "max_rows",
    "pack_pair",
    "read_id_pairs",
    "read_ids",
    "replace_value",
    "stem_of",
]
