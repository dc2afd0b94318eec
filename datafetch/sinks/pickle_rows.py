"""Rows back from pickle shards, ours and others', one at a time and without trusting them.

Rules: a pickle can name any function to be called when it is loaded, so nothing here lets it name one, but for the
numbers of NumPy that scripts leave in their rows. A shard of ours is read frame by frame, a frame never being larger
than what is left of the file; any other pickle of a list is loaded whole, which takes as much memory as it has bytes.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from datafetch.errors import ManifestError
from datafetch.sinks.pickle import FRAME_HEADER_BYTES, PREAMBLE, encode_row

# What NumPy's numbers are made with when they are unpickled. The package was renamed in NumPy 2.
_HARMLESS = frozenset(
    {
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("_codecs", "encode"),
    }
)
_ROW_START = pickle.PROTO + bytes([4])


def read_count(path: Path) -> int:
    """What a ``.count`` file says, as the trainer's loader reads it.

    Raises:
        ManifestError: It is not a number.
    """
    try:
        return int(path.read_text(encoding="ascii").strip())
    except ValueError as error:
        raise ManifestError(f"{path} is not a number") from error


def read_frames(path: Path) -> Iterator[bytes]:
    """The rows of a shard as they stand in it; rows of other people's pickles as they would stand in one of ours.

    Raises:
        ManifestError: It is not a pickled list of dicts, or is cut short.
    """
    with path.open("rb", buffering=1 << 20) as file:
        if _is_ours(file):
            yield from _frames(path, file)
            return
    for row in _load_whole(path):
        yield encode_row(row)


def frame_sizes(path: Path) -> Iterator[int]:
    """The lengths of what ``read_frames`` yields; of a shard of ours no row is read for it.

    Raises:
        ManifestError: As ``read_frames``.
    """
    with path.open("rb", buffering=0) as file:
        if _is_ours(file):
            yield from _sizes(path, file)
            return
    for row in _load_whole(path):
        yield len(encode_row(row))


def decode_row(frame: bytes) -> dict[str, Any]:
    """The row that a frame holds.

    Raises:
        ValueError: It holds something other than a dict of plain values.
    """
    row = _load(io.BytesIO(_ROW_START + frame + pickle.STOP))
    if not isinstance(row, dict):
        raise ValueError(f"a row is a {type(row).__name__}, not a dict")  # noqa: TRY004 - the file's fault
    return row


class _PlainUnpickler(pickle.Unpickler):
    """Loads values and calls nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it wants {module}.{name} to be called")
        return super().find_class(module, name)


def _load(file: BinaryIO) -> object:
    # A damaged or hostile pickle raises whatever the opcode it trips over raises.
    try:
        return _PlainUnpickler(file).load()
    except (pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError) as error:
        raise ValueError(f"not a pickle of plain values ({error})") from error
    except (OverflowError, MemoryError, ImportError, RecursionError) as error:
        raise ValueError(f"not a pickle that can be read ({type(error).__name__})") from error


def _load_whole(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        try:
            rows = _load(file)
        except ValueError as error:
            raise ManifestError(f"{path}: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ManifestError(f"{path} is not a pickled list of dicts")
    return rows


def _is_ours(file: BinaryIO) -> bool:
    """Whether it is laid out as ``PickleSink`` does it; leaves the file behind its first MARK if so."""
    start = file.read(len(PREAMBLE) + 2)
    is_ours = start == PREAMBLE + pickle.MARK + pickle.FRAME
    if is_ours:
        file.seek(len(PREAMBLE) + len(pickle.MARK))
    return is_ours


def _frames(path: Path, file: BinaryIO) -> Iterator[bytes]:
    while header := _next_header(path, file):
        frame = header + file.read(int.from_bytes(header[1:], "little"))
        yield frame


def _sizes(path: Path, file: BinaryIO) -> Iterator[int]:
    while header := _next_header(path, file):
        body_bytes = int.from_bytes(header[1:], "little")
        file.seek(body_bytes, os.SEEK_CUR)
        yield FRAME_HEADER_BYTES + body_bytes


def _next_header(path: Path, file: BinaryIO) -> bytes:
    """The header of the next frame, which lies whole in the file; nothing at the proper end of the list."""
    position = file.tell()
    head = file.read(FRAME_HEADER_BYTES)
    if head.startswith(pickle.APPENDS + pickle.MARK):
        file.seek(position + 2)
        position += 2
        head = file.read(FRAME_HEADER_BYTES)
    elif head == pickle.APPENDS + pickle.STOP:
        return b""
    left = os.fstat(file.fileno()).st_size - position
    if not head.startswith(pickle.FRAME) or FRAME_HEADER_BYTES + int.from_bytes(head[1:], "little") > left:
        raise ManifestError(f"{path} is damaged or cut short at byte {position}")
    return head
