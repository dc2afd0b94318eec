"""Rows to final files and back: they know nothing of shards in progress, crashes or renames."""

from datafetch.sinks.pickle import ListLayout, PickleSink, encode_row
from datafetch.sinks.pickle_rows import decode_row, frame_sizes, read_count, read_frames

__all__ = ["ListLayout", "PickleSink", "decode_row", "encode_row", "frame_sizes", "read_count", "read_frames"]
