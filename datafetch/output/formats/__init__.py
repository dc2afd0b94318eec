"""Output formats: from rows to files and back. They know nothing about fetching or about other shards."""

from __future__ import annotations

from collections.abc import Mapping

from datafetch.output.formats.checksummed_file import crc32_of
from datafetch.output.formats.files import FilesFormat
from datafetch.output.formats.image_files import ImageFilesFormat
from datafetch.output.formats.output_format import OutputFormat, PublishedFile, PublishedRow, ShardFormat, ShardWriter
from datafetch.output.formats.parquet import ParquetFormat
from datafetch.output.formats.pickle import COUNT_SUFFIX, ROWS_SUFFIX, PickleFormat, PickleShardWriter
from datafetch.output.formats.pickle_form import MAX_FRAME_BYTES, FrameOffsets, encode_row
from datafetch.output.formats.pickle_rows import decode_row, frame_sizes, read_count, read_frames
from datafetch.output.formats.webdataset import WebDatasetFormat
from datafetch.store.layout import OutputLayout

__all__ = [
    "COUNT_SUFFIX",
    "FORMATS",
    "MAX_FRAME_BYTES",
    "ROWS_SUFFIX",
    "FilesFormat",
    "FrameOffsets",
    "ImageFilesFormat",
    "OutputFormat",
    "ParquetFormat",
    "PickleFormat",
    "PickleShardWriter",
    "PublishedFile",
    "PublishedRow",
    "ShardFormat",
    "ShardWriter",
    "WebDatasetFormat",
    "crc32_of",
    "decode_row",
    "encode_row",
    "format_of",
    "frame_sizes",
    "read_count",
    "read_frames",
]

_ALL: tuple[OutputFormat, ...] = (
    PickleFormat(),
    ImageFilesFormat(),
    WebDatasetFormat(),
    ParquetFormat(),
    FilesFormat(),
)
FORMATS: Mapping[str, OutputFormat] = {one.name: one for one in _ALL}


def format_of(layout: OutputLayout) -> OutputFormat:
    """The format of an output."""
    return FORMATS[layout.output_format]
