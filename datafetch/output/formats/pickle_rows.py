"""Read rows from pickle shards, whether written by datafetch or by a third party, without trusting them.

Rules: no pickle is loaded except by ``plain_pickle``, which only builds plain values. A shard written by datafetch is
read frame by frame, and a frame is never larger than the rest of the file or than a row may be. Any other pickled list
is loaded as a whole, which takes as much memory as its values.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from datafetch.errors import STARTS_OVER, ManifestError
from datafetch.model.regular_file import open_regular
from datafetch.output.formats.pickle_form import (
    BATCH_SEPARATOR,
    FRAME_HEADER_BYTES,
    LIST_END,
    MAX_FRAME_BYTES,
    PREAMBLE,
    encode_row,
)
from datafetch.output.formats.plain_pickle import load_row, load_whole

# A row can be larger than its third-party file, where values that are the same object are stored once.
_SPARE_ROW_BYTES = 64 * 1024 * 1024
_CHUNK_BYTES = 1 << 20
_SHARD_START = PREAMBLE + pickle.MARK + pickle.FRAME
_MAX_COUNT_BYTES = 100


def read_count(path: Path) -> int:
    """The number in a ``.count`` file, parsed as by the trainer's loader.

    Raises:
        ManifestError: The file does not contain a number.
    """
    try:
        with open_regular(path) as file:
            text = file.read(_MAX_COUNT_BYTES + 1)
        return int(text.decode("ascii").strip() if len(text) <= _MAX_COUNT_BYTES else "too long")
    except ValueError as error:
        raise ManifestError(f"{path} is not a number") from error


def read_frames(path: Path) -> Iterator[bytes]:
    """The frames of a shard's rows; the rows of a third-party pickle are encoded as datafetch would write them.

    Raises:
        ManifestError: The file is not a pickled list of dicts, or is truncated.
    """
    with path.open("rb", buffering=0) as file:
        if _is_datafetch_shard(file):
            yield from (_read(file, frame) for frame in _find_frames(path, file))
            return
    yield from _third_party_frames(path)


def stream_frames(path: Path) -> Iterator[Iterable[bytes]]:
    """The frames of a shard written by datafetch, each as chunks that must be consumed before the next frame is read.

    Raises:
        ManifestError: The file was not written by ``PickleShardWriter``, or is truncated.
    """
    with path.open("rb", buffering=0) as file:
        if not _is_datafetch_shard(file):
            raise ManifestError(f"{path} is no longer a shard written by datafetch; {STARTS_OVER}")
        for frame in _find_frames(path, file):
            yield _chunks(file, frame)


def _chunks(file: BinaryIO, frame: range) -> Iterator[bytes]:
    for start in frame[::_CHUNK_BYTES]:
        yield _read(file, range(start, min(start + _CHUNK_BYTES, frame.stop)))


def frame_sizes(path: Path) -> Iterator[int]:
    """The lengths of the frames of ``read_frames``; the rows of a shard written by datafetch are not read for this.

    Raises:
        ManifestError: As ``read_frames``.
    """
    with path.open("rb", buffering=0) as file:
        if _is_datafetch_shard(file):
            yield from map(len, _find_frames(path, file))
            return
    for frame in _third_party_frames(path):
        yield len(frame)


def read_frame(path: Path, offset: int) -> bytes:
    """The frame at an offset of a shard written by datafetch.

    Raises:
        ManifestError: There is no frame.
    """
    with open_regular(path) as file:
        return _read(file, _find_frame(path, file, offset, os.fstat(file.fileno()).st_size))


def decode_row(frame: bytes) -> dict[str, Any]:
    """Decode the row in a frame.

    Raises:
        ValueError: The frame holds something other than a dict of plain values.
    """
    row = load_row(frame)
    if not isinstance(row, dict):
        raise ValueError(f"a row is a {type(row).__name__}, not a dict")  # noqa: TRY004 - the file's fault
    return row


class _SizeLimit:
    """A file that discards what is written to it, and fails beyond a size.

    Args:
        max_bytes: The size.

    Raises:
        ValueError: In ``write``, once more bytes have been written.
    """

    def __init__(self, max_bytes: int) -> None:
        self._left_bytes = max_bytes

    def write(self, content: bytes) -> int:
        self._left_bytes -= len(content)
        if self._left_bytes < 0:
            raise ValueError("one is far larger than its file")
        return len(content)


def _third_party_frames(path: Path) -> Iterator[bytes]:
    """The rows of a third-party pickle, encoded as datafetch would write them.

    Raises:
        ManifestError: The file is not a pickled list of dicts, or a row can't be encoded by itself.
    """
    rows = _load_whole(path)
    max_bytes = path.stat().st_size + _SPARE_ROW_BYTES
    for row in rows:
        try:
            # Without a memo, an object that a row refers to several times is written several times, so a small
            # pickle may describe an enormous row. Protocol 4 is written in frames, so the limit stops it early.
            pickler = pickle.Pickler(_SizeLimit(max_bytes), 4)
            pickler.fast = True
            pickler.dump(row)
            frame = encode_row(row)
        except (ValueError, TypeError, AttributeError, RecursionError, MemoryError, pickle.PicklingError) as error:
            raise ManifestError(f"{path}: has rows that are not plain values ({error})") from error
        yield frame


def _load_whole(path: Path) -> list[dict[str, Any]]:
    with open_regular(path) as file:
        try:
            rows = load_whole(file, os.fstat(file.fileno()).st_size)
        except ValueError as error:
            raise ManifestError(f"{path}: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ManifestError(f"{path} is not a pickled list of dicts")
    return rows


def _is_datafetch_shard(file: BinaryIO) -> bool:
    """Whether a file was written by ``PickleShardWriter``."""
    return os.pread(file.fileno(), len(_SHARD_START), 0) == _SHARD_START


def _find_frames(path: Path, file: BinaryIO) -> Iterator[range]:
    """Where the frames of a shard written by datafetch are, as offsets of their bytes."""
    file_bytes = os.fstat(file.fileno()).st_size
    offset = len(_SHARD_START) - len(pickle.FRAME)
    while frame := _find_frame(path, file, offset, file_bytes):
        yield frame
        offset = frame.stop


def _find_frame(path: Path, file: BinaryIO, offset: int, file_bytes: int) -> range:
    """Where the frame at or behind an offset is, checking that it is in the file; empty at the end of the list.

    Only what is needed is read, without a buffer: rows are large.
    """
    head = os.pread(file.fileno(), len(BATCH_SEPARATOR) + FRAME_HEADER_BYTES, offset)
    if head == LIST_END:
        return range(0)
    if head.startswith(BATCH_SEPARATOR):
        offset += len(BATCH_SEPARATOR)
        head = head[len(BATCH_SEPARATOR) :]
    frame_bytes = FRAME_HEADER_BYTES + int.from_bytes(head[1:FRAME_HEADER_BYTES], "little")
    if not head.startswith(pickle.FRAME) or frame_bytes > file_bytes - offset:
        raise ManifestError(f"{path} is damaged or cut short at byte {offset}")
    if frame_bytes > MAX_FRAME_BYTES:
        raise ManifestError(f"{path} has a row of {frame_bytes:,} bytes; the limit is {MAX_FRAME_BYTES:,}")
    return range(offset, offset + frame_bytes)


def _read(file: BinaryIO, span: range) -> bytes:
    """Read the bytes at a range of offsets; fewer where the file ends before."""
    content = os.pread(file.fileno(), len(span), span.start)
    while left := span[len(content) :]:  # a system call returns 2 GiB at most
        more = os.pread(file.fileno(), len(left), left.start)
        if not more:
            break
        content += more
    return content
