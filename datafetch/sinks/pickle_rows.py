"""Rows back from pickle shards, ours and others', one at a time and without trusting them.

Rules: a pickle can name any function to be called when it is loaded, so nothing here lets it name one, but for the
numbers of NumPy that scripts leave in their rows. A shard of ours is read frame by frame, a frame never being larger
than what is left of the file; any other pickle of a list is loaded whole, which takes as much memory as it has bytes.
What a pickle claims of itself is looked at before it is loaded: a few bytes of it can ask for gigabytes.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from datafetch.errors import ManifestError
from datafetch.sinks.pickle_form import FRAME_HEADER_BYTES, PREAMBLE, encode_row

# A row may be larger than the file it came from, where it holds the same thing more than once.
_SPARE_ROW_BYTES = 64 * 1024 * 1024
# Memo indices count up from 0 as things are noted down; other writers may leave some out.
_SPARE_MEMO = 1 << 16
_PUTS = frozenset({"PUT", "LONG_BINPUT"})
# What a row of plain values is made of: opcodes that stand alone, that have so many bytes behind them, and whose next
# so many bytes say how many follow.
_ALONE = (
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_TUPLE),
    *(pickle.MARK, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.APPEND, pickle.APPENDS, pickle.SETITEM, pickle.SETITEMS),
)
_FIXED = {pickle.BININT: 4, pickle.BININT1: 1, pickle.BININT2: 2, pickle.BINFLOAT: 8, pickle.FRAME: 8}
_COUNTED = {pickle.BINUNICODE: 4, pickle.BINBYTES: 4, pickle.SHORT_BINBYTES: 1, pickle.LONG1: 1}
_STEPS = [0] * 256
"""Opcode → the bytes from it to the next, as far as that is fixed; the bytes of its count, negative; 0 of any other."""
for _code in _ALONE:
    _STEPS[ord(_code)] = 1
for _code, _bytes in _FIXED.items():
    _STEPS[ord(_code)] = 1 + _bytes
for _code, _bytes in _COUNTED.items():
    _STEPS[ord(_code)] = -_bytes
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
    yield from _foreign_frames(path)


def frame_sizes(path: Path) -> Iterator[int]:
    """The lengths of what ``read_frames`` yields; of a shard of ours no row is read for it.

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
    whole = io.BytesIO(_ROW_START + frame + pickle.STOP)
    if not _is_plain(frame):
        _look_over(whole)
        whole.seek(0)
    row = _load(whole)
    if not isinstance(row, dict):
        raise ValueError(f"a row is a {type(row).__name__}, not a dict")  # noqa: TRY004 - the file's fault
    return row


def _scalar(kind: Any, content: bytes) -> Any:
    # NumPy's own makes as many zeros as a type claims to have that comes without content.
    return np.frombuffer(content, kind, count=1)[0]


def _latin1(text: str, encoding: str) -> bytes:
    # With other encodings, each upon the result of the last, a few bytes become gigabytes.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it wants text as {encoding!r:.100}")
    return text.encode("latin1")


# What bytes and NumPy's numbers are made with when they are unpickled. The package was renamed in NumPy 2.
_HARMLESS: Mapping[tuple[str, str], object] = {
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _latin1,
}


class _PlainUnpickler(pickle.Unpickler):
    """Loads values and calls nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it wants {module}.{name} to be called")
        return _HARMLESS[module, name]


def _load(file: BinaryIO) -> object:
    # A damaged or hostile pickle raises whatever the opcode it trips over raises.
    try:
        return _PlainUnpickler(file).load()
    except (pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError) as error:
        raise ValueError(f"not a pickle of plain values ({error})") from error
    except (OverflowError, MemoryError, ImportError, RecursionError) as error:
        raise ValueError(f"not a pickle that can be read ({type(error).__name__})") from error


def _is_plain(content: bytes) -> bool:
    """Whether there is nothing but what a row of ours is made of: values, and neither a memo nor a name."""
    place, end = 0, len(content)
    while place < end:
        step = _STEPS[content[place]]
        if step > 0:
            place += step
        elif step < 0:
            place += 1 - step + int.from_bytes(content[place + 1 : place + 1 - step], "little")
        else:
            return False
    return True


def _look_over(file: BinaryIO) -> None:
    """Go through the opcodes before they are obeyed, which costs a row of pairs 13 µs.

    Raises:
        ValueError: They are damaged, or want memory out of all proportion: the unpickler makes room for as many notes
            as the index of one says that there are.
    """
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name in _PUTS:
                _refuse_far_note(int(argument or 0), number)
    except ValueError as error:
        raise ValueError(f"not a pickle of plain values ({error})") from error
    except (OverflowError, MemoryError) as error:
        raise ValueError(f"not a pickle that can be read ({type(error).__name__})") from error


def _refuse_far_note(index: int, number: int) -> None:
    if not 0 <= index <= number + _SPARE_MEMO:
        raise ValueError(f"opcode {number} is for note {index}")


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
    """The rows of a pickle that is not of ours, as they would stand in one.

    Raises:
        ManifestError: It is not a pickled list of dicts, or they can't be written one by one.
    """
    rows = _load_whole(path)
    most_bytes = path.stat().st_size + _SPARE_ROW_BYTES
    for row in rows:
        try:
            # What a row shares with itself is written as often as it is there. This protocol is written out as it
            # comes, so that a row that would never end is found out early.
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
            _look_over(file)
            file.seek(0)
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
    if not head.startswith(pickle.FRAME) or FRAME_HEADER_BYTES + int.from_bytes(head[1:], "little") > size - position:
        raise ManifestError(f"{path} is damaged or cut short at byte {position}")
    return head
