"""A safe loader for pickles of plain values from sources that are not trusted.

Rules: nothing that a pickle names is imported or called, and no object is given a state. A loaded value takes at most
about twenty times the memory of its pickle, plus that of a million lists and dicts.

Theory of operation: a pickle is a program for a stack machine, and Python's unpickler executes it: it imports, calls
and modifies whatever the program says. There are two ways through this module.

* A row as datafetch writes it uses a handful of opcodes, which only push values and put them into containers.
  ``_is_plain`` checks in one pass that a frame has no others and leaves exactly one value; then Python's fast unpickler
  can't do harm.
* Everything else is executed by ``pickle_interpreter``, which imports and calls nothing.

Both ways refuse what would exhaust the machine: containers, of which each byte of a pickle can create one, are limited
in proportion to its size, memo indices to the number of opcodes, and dict keys must be text. The hashes of text are
unpredictable; inserting a million numbers with colliding hashes into a dict would take hours.
"""

from __future__ import annotations

import pickle
from io import BytesIO
from typing import BinaryIO

from datafetch.output.formats.pickle_interpreter import Interpreter, max_containers

# The opcodes of rows that datafetch writes. Some push a value: their argument has a fixed length, or begins with a
# count of its bytes. The others pop values and put them into a container.
_FRAME, _MARK = ord(pickle.FRAME), ord(pickle.MARK)
_TUPLES = {ord(pickle.TUPLE1): 1, ord(pickle.TUPLE2): 2, ord(pickle.TUPLE3): 3}
_POPS = {ord(pickle.APPEND): 1, ord(pickle.SETITEM): 2, **_TUPLES}
"""Opcode → number of values that it pops, if it does not pop down to the last mark."""
_MAKES_TUPLE = frozenset({*_TUPLES, ord(pickle.TUPLE)})
_SETS_KEYS = frozenset(map(ord, (pickle.SETITEM, pickle.SETITEMS)))
_CONTAINERS = frozenset({*map(ord, (pickle.EMPTY_DICT, pickle.EMPTY_LIST)), *_MAKES_TUPLE})
_NO_ARGUMENT = (pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_TUPLE)
_FIXED = {pickle.BININT: 4, pickle.BININT1: 1, pickle.BININT2: 2, pickle.BINFLOAT: 8}
_COUNTED = {pickle.BINUNICODE: 4, pickle.BINBYTES: 4, pickle.SHORT_BINBYTES: 1, pickle.LONG1: 1}
_PUSHES_TEXT: list[bool | None] = [None] * 256
"""Opcode → whether the value that it pushes is text; None if it pushes none."""
_LENGTHS = [0] * 256
"""Opcode → its length in bytes with its argument; for an argument with a count, minus the bytes of the count."""
for _name in (*_NO_ARGUMENT, *_FIXED, *_COUNTED):
    _PUSHES_TEXT[ord(_name)] = _name == pickle.BINUNICODE
    _LENGTHS[ord(_name)] = -_COUNTED[_name] if _name in _COUNTED else 1 + _FIXED.get(_name, 0)
for _code in (*_MAKES_TUPLE, *_SETS_KEYS, *map(ord, (pickle.APPEND, pickle.APPENDS, pickle.MARK))):
    _LENGTHS[_code] = 1
_LENGTHS[_FRAME] = 9
_ROW_START = pickle.PROTO + bytes([4])


def load_row(frame: bytes) -> object:
    """Load the one value in a frame of a shard written by datafetch.

    Raises:
        ValueError: The frame is damaged, or holds something other than exactly one plain value.
    """
    content = b"".join((_ROW_START, frame, pickle.STOP))
    if not _is_plain(frame):
        return _load(BytesIO(content), len(content), allows_memo=False)
    try:
        return pickle.loads(content)  # noqa: S301 - _is_plain has checked every opcode
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, EOFError) as error:
        raise ValueError(f"not a pickle of plain values ({error})") from error
    except (OverflowError, MemoryError) as error:
        raise ValueError(f"not a pickle that can be read ({type(error).__name__})") from error


def load_whole(file: BinaryIO, file_bytes: int) -> object:
    """Load a third-party pickle.

    Args:
        file: The file, at its beginning.
        file_bytes: The size of the file.

    Raises:
        ValueError: The pickle is damaged, or holds something other than plain values.
    """
    return _load(file, file_bytes, allows_memo=True)


def _load(file: BinaryIO, file_bytes: int, *, allows_memo: bool) -> object:
    try:
        return Interpreter(file_bytes, allows_memo=allows_memo).run(file)
    except ValueError as error:
        raise ValueError(f"not a pickle of plain values ({error})") from error
    except (OverflowError, MemoryError) as error:
        raise ValueError(f"not a pickle that can be read ({type(error).__name__})") from error


def _is_plain(frame: bytes) -> bool:
    """Whether a frame is a row as datafetch writes it: one plain value, in which all dict keys are text."""
    offset, end = 0, len(frame)
    is_text: list[bool] = []  # for each value on the stack
    marks: list[int] = []
    containers = 0
    while offset < end:
        code = frame[offset]
        length = _LENGTHS[code]
        if not length:
            return False
        containers += code in _CONTAINERS
        pushes_text = _PUSHES_TEXT[code]
        if pushes_text is not None:
            is_text.append(pushes_text)
        elif code == _MARK:
            marks.append(len(is_text))
        elif code != _FRAME and not _apply(code, is_text, marks):
            return False
        if length < 0:
            length = 1 - length + int.from_bytes(frame[offset + 1 : offset + 1 - length], "little")
        offset += length
    return offset == end and len(is_text) == 1 and not marks and containers <= max_containers(end)


def _apply(code: int, is_text: list[bool], marks: list[int]) -> bool:
    """Pop values as an opcode does that puts them into a container; False if they are missing or a key is not text."""
    if code not in _POPS and not marks:
        return False
    first = len(is_text) - _POPS[code] if code in _POPS else marks.pop()
    if first < (marks[-1] if marks else 0) or (code in _SETS_KEYS and not all(is_text[first::2])):
        return False
    del is_text[first:]
    if code in _MAKES_TUPLE:
        is_text.append(False)
    return bool(is_text)
