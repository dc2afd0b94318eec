"""Rows back from pickle shards, ours and others', one at a time and without trusting them.

Rules: what a pickle wants is for ``plain_pickle`` to judge, which makes plain values of it and nothing else. A shard of
ours is read frame by frame, a frame never being larger than what is left of the file, nor than a row can be; any other
pickle of a list is loaded whole, which takes as much memory as its values.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from datafetch.errors import ManifestError
from datafetch.output.formats.pickle_form import FRAME_HEADER_BYTES, MOST_FRAME_BYTES, PREAMBLE, encode_row
from datafetch.output.formats.plain_pickle import load_row, load_whole

# A row may be larger than the file it came from, where it holds the same thing more than once.
_SPARE_ROW_BYTES = 64 * 1024 * 1024
_PIECE_BYTES = 1 << 20
_MOST_COUNT_BYTES = 100


def read_count(path: Path) -> int:
    """What a ``.count`` file says, as the trainer's loader reads it.

    Raises:
        ManifestError: It is not a number.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_COUNT_BYTES + 1)
        return int(text.decode("ascii").strip() if len(text) <= _MOST_COUNT_BYTES else "too long")
    except ValueError as error:
        raise ManifestError(f"{path} is not a number") from error


def read_frames(path: Path) -> Iterator[bytes]:
    """The rows of a shard as they stand in it; rows of a third-party pickle as they would stand in datafetch's own.

    Raises:
        ManifestError: It is not a pickled list of dicts, or is cut short.
    """
    with path.open("rb", buffering=1 << 20) as file:
        if _is_ours(file):
            yield from _frames(path, file)
            return
    yield from _foreign_frames(path)


def stream_frames(path: Path) -> Iterator[Iterable[bytes]]:
    """The rows of a shard written by datafetch, each in pieces that have to be taken before the next row is asked for.

    Raises:
        ManifestError: It is not laid out as ``PickleShardWriter`` does it, or is cut short.
    """
    with path.open("rb", buffering=1 << 20) as file:
        if not _is_ours(file):
            raise ManifestError(f"{path} is no shard of datafetch any more; --fresh starts over")
        size = os.fstat(file.fileno()).st_size
        while header := _next_header(path, file, size):
            end = file.tell() + int.from_bytes(header[1:], "little")
            yield _pieces(header, file, end)
            file.seek(end)


def _pieces(header: bytes, file: BinaryIO, end: int) -> Iterator[bytes]:
    yield header
    while piece := file.read(min(_PIECE_BYTES, end - file.tell())):
        yield piece


def frame_sizes(path: Path) -> Iterator[int]:
    """The lengths of what ``read_frames`` yields; of a shard written by datafetch no row is read for it.

    Raises:
        ManifestError: As ``read_frames``.
    """
    with path.open("rb", buffering=0) as file:
        if _is_ours(file):
            yield from _sizes(path, file)
            return
    for frame in _foreign_frames(path):
        yield len(frame)


def decode_row(frame: bytes) -> dict[str, Any]:
    """The row that a frame holds.

    Raises:
        ValueError: It holds something other than a dict of plain values.
    """
    row = load_row(frame)
    if not isinstance(row, dict):
        raise ValueError(f"a row is a {type(row).__name__}, not a dict")  # noqa: TRY004 - the file's fault
    return row


class _Meter:
    """Takes what is written, and keeps nothing of it.

    Raises:
        ValueError: It is more than so many bytes.
    """

    def __init__(self, most_bytes: int) -> None:
        self._left_bytes = most_bytes

    def write(self, content: bytes) -> int:
        self._left_bytes -= len(content)
        if self._left_bytes < 0:
            raise ValueError("one is far larger than its file")
        return len(content)


def _foreign_frames(path: Path) -> Iterator[bytes]:
    """The rows of a third-party pickle, as they would stand in a shard written by datafetch.

    Raises:
        ManifestError: It is not a pickled list of dicts, or they can't be written one by one.
    """
    rows = _load_whole(path)
    most_bytes = path.stat().st_size + _SPARE_ROW_BYTES
    for row in rows:
        try:
            # What a row shares with itself is written as often as it is there. This protocol is written out as it
            # comes, so that a row that would never end is detected early.
            meter = pickle.Pickler(_Meter(most_bytes), 4)
            meter.fast = True
            meter.dump(row)
            frame = encode_row(row)
        except (ValueError, TypeError, AttributeError, RecursionError, MemoryError, pickle.PicklingError) as error:
            raise ManifestError(f"{path}: has rows that are not plain values ({error})") from error
        yield frame


def _load_whole(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        try:
            rows = load_whole(file, os.fstat(file.fileno()).st_size)
        except ValueError as error:
            raise ManifestError(f"{path}: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ManifestError(f"{path} is not a pickled list of dicts")
    return rows


def _is_ours(file: BinaryIO) -> bool:
    """Whether it is laid out as ``PickleShardWriter`` does it; leaves the file behind its first MARK if so."""
    start = file.read(len(PREAMBLE) + 2)
    is_ours = start == PREAMBLE + pickle.MARK + pickle.FRAME
    if is_ours:
        file.seek(len(PREAMBLE) + len(pickle.MARK))
    return is_ours


def _frames(path: Path, file: BinaryIO) -> Iterator[bytes]:
    size = os.fstat(file.fileno()).st_size
    while header := _next_header(path, file, size):
        frame = header + file.read(int.from_bytes(header[1:], "little"))
        yield frame


def _sizes(path: Path, file: BinaryIO) -> Iterator[int]:
    size = os.fstat(file.fileno()).st_size
    while header := _next_header(path, file, size):
        body_bytes = int.from_bytes(header[1:], "little")
        file.seek(body_bytes, os.SEEK_CUR)
        yield FRAME_HEADER_BYTES + body_bytes


def _next_header(path: Path, file: BinaryIO, size: int) -> bytes:
    """The header of the next frame, which lies whole in a file of that size; nothing at the proper end of the list."""
    position = file.tell()
    head = file.read(FRAME_HEADER_BYTES)
    if head.startswith(pickle.APPENDS + pickle.MARK):
        file.seek(position + 2)
        position += 2
        head = file.read(FRAME_HEADER_BYTES)
    elif head == pickle.APPENDS + pickle.STOP:
        return b""
    frame_bytes = FRAME_HEADER_BYTES + int.from_bytes(head[1:], "little")
    if not head.startswith(pickle.FRAME) or frame_bytes > size - position:
        raise ManifestError(f"{path} is damaged or cut short at byte {position}")
    if frame_bytes > MOST_FRAME_BYTES:
        raise ManifestError(f"{path} has a row of {frame_bytes:,} bytes, and {MOST_FRAME_BYTES:,} are the most")
    return head
