"""Rows to final files and back: they know nothing of shards in progress, crashes or renames."""

from datafetch.output.formats.image_files import INDEX_SUFFIX, ImageFilesWriter, SavedFile, read_index
from datafetch.output.formats.pickle import PickleShardWriter
from datafetch.output.formats.pickle_form import MOST_FRAME_BYTES, ListLayout, encode_row, row_frame, stand_in
from datafetch.output.formats.pickle_rows import decode_row, frame_sizes, read_count, read_frames, stream_frames

__all__ = [
    "INDEX_SUFFIX",
    "MOST_FRAME_BYTES",
    "ImageFilesWriter",
    "ListLayout",
    "PickleShardWriter",
    "SavedFile",
    "decode_row",
    "encode_row",
    "frame_sizes",
    "read_count",
    "read_frames",
    "read_index",
    "row_frame",
    "stand_in",
    "stream_frames",
]
