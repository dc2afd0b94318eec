"""Pickles of plain values, from sources that are not trusted.

Rules: a pickle is a program, and Python's own unpickler obeys it. Here it never sees a name, a note or a state: rows as
we write them are looked over before it gets them, and everything else is carried out here, opcode by opcode. Nothing
is imported, called or set up; NumPy's numbers become Python's at once. The keys of a dict are text, whose hashes can't
be foreseen: a million numbers whose hashes collide would take hours to put into one. What is made of a pickle takes no
more memory than some twenty times its own bytes, besides the first million of its lists and dicts.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, BinaryIO

_MOST_PROTOCOL = 5
# An empty dict is one byte of a pickle and 64 of memory, 250 with a key. Rows of images have one in some kilobytes.
_SPARE_CONTAINERS = 1_000_000
_BYTES_A_CONTAINER = 32
# The indices of notes count up from 0 as things are noted down; other writers may leave some out.
_SPARE_NOTES = 1 << 16

# Rows as we write them have these opcodes alone: some bring a value, with so many bytes behind the opcode or so many
# that say how many follow; the others put values that were brought into something.
_TEXT, _FRAME, _MARK = ord(pickle.BINUNICODE), ord(pickle.FRAME), ord(pickle.MARK)
_TUPLES = {ord(pickle.TUPLE1): 1, ord(pickle.TUPLE2): 2, ord(pickle.TUPLE3): 3}
_TAKEN = {ord(pickle.APPEND): 1, ord(pickle.SETITEM): 2, **_TUPLES}
"""Opcode → how many values it takes, where no mark says so."""
_MAKES_TUPLE = frozenset({*_TUPLES, ord(pickle.TUPLE)})
_SETS_KEYS = frozenset(map(ord, (pickle.SETITEM, pickle.SETITEMS)))
_CONTAINERS = frozenset({*map(ord, (pickle.EMPTY_DICT, pickle.EMPTY_LIST)), *_MAKES_TUPLE})
_ALONE = (pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_TUPLE)
_FIXED = {pickle.BININT: 4, pickle.BININT1: 1, pickle.BININT2: 2, pickle.BINFLOAT: 8}
_COUNTED = {pickle.BINUNICODE: 4, pickle.BINBYTES: 4, pickle.SHORT_BINBYTES: 1, pickle.LONG1: 1}
_BRINGS: list[bool | None] = [None] * 256
"""Opcode → whether what it brings is text; None where it brings nothing from outside."""
_STEPS = [0] * 256
"""Opcode → the bytes from it to the next, as far as that is fixed; the bytes of its count, negative; 0 of any other."""
for _name in (*_ALONE, *_FIXED, *_COUNTED):
    _BRINGS[ord(_name)] = _name == pickle.BINUNICODE
    _STEPS[ord(_name)] = -_COUNTED[_name] if _name in _COUNTED else 1 + _FIXED.get(_name, 0)
for _code in (*_MAKES_TUPLE, *_SETS_KEYS, *map(ord, (pickle.APPEND, pickle.APPENDS, pickle.MARK))):
    _STEPS[_code] = 1
_STEPS[_FRAME] = 9
_ROW_START = pickle.PROTO + bytes([4])


def load_row(frame: bytes) -> object:
    """The one value that a frame of a shard written by datafetch holds.

    Raises:
        ValueError: It holds something other than plain values, or other than one, or is damaged.
    """
    content = b"".join((_ROW_START, frame, pickle.STOP))
    if not _is_plain(frame):
        return _load(BytesIO(content), len(content), has_notes=False)
    try:
        return pickle.loads(content)  # noqa: S301 - it has values alone, and no name in it
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, EOFError) as error:
        raise ValueError(f"not a pickle of plain values ({error})") from error
    except (OverflowError, MemoryError) as error:
        raise ValueError(f"not a pickle that can be read ({type(error).__name__})") from error


def load_whole(file: BinaryIO, file_bytes: int) -> object:
    """The value that a third-party pickle holds.

    Args:
        file: At its beginning.
        file_bytes: How long it is.

    Raises:
        ValueError: It holds something other than plain values, or is damaged.
    """
    return _load(file, file_bytes, has_notes=True)


def _load(file: BinaryIO, file_bytes: int, *, has_notes: bool) -> object:
    try:
        return _Machine(file_bytes, has_notes=has_notes).run(file)
    except ValueError as error:
        raise ValueError(f"not a pickle of plain values ({error})") from error
    except (OverflowError, MemoryError) as error:
        raise ValueError(f"not a pickle that can be read ({type(error).__name__})") from error


def _is_plain(frame: bytes) -> bool:
    """Whether it has the form of datafetch's own rows: one value, made of values alone, and with text for keys."""
    place, end = 0, len(frame)
    is_text: list[bool] = []  # of each value that waits to be put somewhere
    marks: list[int] = []
    containers = 0
    while place < end:
        code = frame[place]
        step = _STEPS[code]
        if not step:
            return False
        containers += code in _CONTAINERS
        brings = _BRINGS[code]
        if brings is not None:
            is_text.append(brings)
        elif code == _MARK:
            marks.append(len(is_text))
        elif code != _FRAME and not _put(code, is_text, marks):
            return False
        if step < 0:
            step = 1 - step + int.from_bytes(frame[place + 1 : place + 1 - step], "little")
        place += step
    return place == end and len(is_text) == 1 and not marks and containers <= _most_containers(end)


def _put(code: int, is_text: list[bool], marks: list[int]) -> bool:
    """Take values as an opcode does that puts them somewhere; whether they are there, and its keys are text."""
    if code not in _TAKEN and not marks:
        return False
    first = len(is_text) - _TAKEN[code] if code in _TAKEN else marks.pop()
    if first < (marks[-1] if marks else 0) or (code in _SETS_KEYS and not all(is_text[first::2])):
        return False
    del is_text[first:]
    if code in _MAKES_TUPLE:
        is_text.append(False)
    return bool(is_text)


def _most_containers(pickle_bytes: int) -> int:
    return _SPARE_CONTAINERS + pickle_bytes // _BYTES_A_CONTAINER


class _Machine:
    """Carries out the opcodes of one pickle.

    Args:
        pickle_bytes: How long it is.
        has_notes: Whether it may use the memo, which rows written by datafetch don't.
    """

    def __init__(self, pickle_bytes: int, *, has_notes: bool) -> None:
        self._left_containers = _most_containers(pickle_bytes)
        self._has_notes = has_notes
        self._pickle_bytes = pickle_bytes
        self._opcodes = 0
        self._end = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._notes: list[Any] = []

    def run(self, file: BinaryIO) -> object:
        """The value that comes of it.

        Raises:
            ValueError: It uses anything that plain values don't need, or is damaged.
        """
        for opcode, argument, position in pickletools.genops(file):
            name = opcode.name
            self._opcodes += 1
            if name in _VALUES:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name == "STOP":
                self._end = (position or 0) + 1
            elif name in _ACTIONS:
                _ACTIONS[name](self, argument)
            else:
                raise ValueError(f"opcode {name} is not allowed")
        (value,) = self._pop(1)
        # What lies behind the end of a row would be the next values of its list.
        if self._stack or self._marks or (not self._has_notes and self._end != self._pickle_bytes):
            raise ValueError("it holds more than one value")
        return _placed(value)

    def proto(self, protocol: int) -> None:
        """The protocol; those to come may have other meanings."""
        if protocol > _MOST_PROTOCOL:
            raise ValueError(f"protocol {protocol} is not known")

    def frame(self, frame_bytes: int) -> None:
        """Only a hint how much to read at once."""

    def mark(self, _: object) -> None:
        """Begin values that belong together."""
        self._marks.append(len(self._stack))

    def pop(self, _: object) -> None:
        """Drop the last value, or mark."""
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop(1)

    def pop_mark(self, _: object) -> None:
        """Drop the values from the last mark on."""
        self._pop_to_mark()

    def dup(self, _: object) -> None:
        """Bring the last value once more."""
        self._stack.append(self._top())

    def text(self, text: str) -> None:
        """Text of Python 2, which has no encoding."""
        if not text.isascii():
            raise ValueError("it has a Python 2 string that is not ASCII")
        self._stack.append(text)

    def new_list(self, _: object) -> None:
        """An empty list."""
        self._make([])

    def new_dict(self, _: object) -> None:
        """An empty dict."""
        self._make({})

    def list_of(self, _: object) -> None:
        """A list of the values from the last mark on."""
        self._make([_placed(value) for value in self._pop_to_mark()])

    def dict_of(self, _: object) -> None:
        """A dict of the keys and values from the last mark on."""
        found: dict[str, object] = {}
        _set_items(found, self._pop_to_mark())
        self._make(found)

    def tuple_of(self, _: object) -> None:
        """A tuple of the values from the last mark on."""
        self._make(_tuple(self._pop_to_mark()))

    def tuple_1(self, _: object) -> None:
        """A tuple of the last value."""
        self._make(_tuple(self._pop(1)))

    def tuple_2(self, _: object) -> None:
        """A tuple of the last two values."""
        self._make(_tuple(self._pop(2)))

    def tuple_3(self, _: object) -> None:
        """A tuple of the last three values."""
        self._make(_tuple(self._pop(3)))

    def append(self, _: object) -> None:
        """Put the last value into the list before it."""
        values = self._pop(1)
        self._list().append(_placed(values[0]))

    def appends(self, _: object) -> None:
        """Put the values from the last mark on into the list before it."""
        values = self._pop_to_mark()
        self._list().extend(map(_placed, values))

    def set_item(self, _: object) -> None:
        """Put the last key and value into the dict before them."""
        values = self._pop(2)
        _set_items(self._top(), values)

    def set_items(self, _: object) -> None:
        """Put the keys and values from the last mark on into the dict before it."""
        values = self._pop_to_mark()
        _set_items(self._top(), values)

    def put(self, index: int) -> None:
        """Note the last value down; the place of its note is the pickle's own choice."""
        if not self._has_notes or not 0 <= index <= self._opcodes + _SPARE_NOTES:
            raise ValueError(f"memo index {index} is out of range")
        if index >= len(self._notes):
            self._notes.extend([_NO_NOTE] * (index + 1 - len(self._notes)))
        self._notes[index] = self._top()

    def memoize(self, _: object) -> None:
        """Note the last value down behind all other notes."""
        self.put(len(self._notes))

    def get(self, index: int) -> None:
        """Bring what was noted down."""
        if not 0 <= index < len(self._notes) or self._notes[index] is _NO_NOTE:
            raise ValueError(f"memo index {index} was never set")
        self._stack.append(self._notes[index])

    def global_name(self, name: str) -> None:
        """Bring what a module has under a name."""
        module, _, attribute = name.partition(" ")
        self._stack.append(_Named.of(module, attribute))

    def stack_global(self, _: object) -> None:
        """The same, module and name being the last two values."""
        module, attribute = self._pop(2)
        self._stack.append(_Named.of(module, attribute))

    def reduce(self, _: object) -> None:
        """Replace a call by the value that the known function would return."""
        named, arguments = self._pop(2)
        if not isinstance(named, _Named) or not isinstance(arguments, tuple):
            raise ValueError("it calls something other than a known function")  # noqa: TRY004 - the pickle's fault
        self._stack.append(named.make(arguments))

    def build(self, _: object) -> None:
        """Set the state of a NumPy dtype; no other object may be given one."""
        (layout,) = self._pop(1)
        number_type = self._top()
        if not isinstance(number_type, _NumberType):
            raise ValueError("it sets the state of an object")  # noqa: TRY004 - the pickle's fault
        number_type.set_up(layout)

    def _make(self, container: object) -> None:
        self._left_containers -= 1
        if self._left_containers < 0:
            raise ValueError("it has too many containers for its size")
        self._stack.append(container)

    def _top(self) -> Any:
        (value,) = self._pop(1)
        self._stack.append(value)
        return value

    def _list(self) -> list[object]:
        found = self._top()
        if type(found) is not list:
            raise ValueError("it appends to something other than a list")
        return found

    def _pop(self, count: int) -> list[Any]:
        """The last values, none of which lies before the last mark."""
        first = len(self._stack) - count
        if first < (self._marks[-1] if self._marks else 0):
            raise ValueError("stack underflow")
        values = self._stack[first:]
        del self._stack[first:]
        return values

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise ValueError("stack underflow")
        first = self._marks.pop()
        values = self._stack[first:]
        del self._stack[first:]
        return values


_NO_NOTE = object()
_VALUES = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
    }
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_ACTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.proto,
    "FRAME": _Machine.frame,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.dup,
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.text),
    "EMPTY_LIST": _Machine.new_list,
    "EMPTY_DICT": _Machine.new_dict,
    "LIST": _Machine.list_of,
    "DICT": _Machine.dict_of,
    "TUPLE": _Machine.tuple_of,
    "TUPLE1": _Machine.tuple_1,
    "TUPLE2": _Machine.tuple_2,
    "TUPLE3": _Machine.tuple_3,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}


def _set_items(found: object, values: list[Any]) -> None:
    """Put keys and values, in turn, into a dict."""
    if type(found) is not dict or len(values) % 2:
        raise ValueError("it sets items of something other than a dict")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if type(key) is not str:
            raise ValueError(f"a key is a {type(key).__name__}, not a str")
        found[key] = _placed(value)


class _Arguments(tuple[Any, ...]):
    """A tuple with something in it that is no plain value: it can be called with, and put nowhere."""

    __slots__ = ()


def _tuple(values: list[Any]) -> tuple[Any, ...]:
    return _Arguments(values) if any(type(value) in _NOT_PLAIN for value in values) else tuple(values)


def _placed(value: Any) -> Any:
    """The value, which is a plain one and so may stand in a row."""
    if type(value) in _NOT_PLAIN:
        raise ValueError("it has a function or a dtype where a value should be")
    return value


class _Named:
    """What a name that rows need stands for: something that makes a value."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[tuple[Any, ...]], object]) -> None:
        self.make = make

    @classmethod
    def of(cls, module: object, name: object) -> _Named:
        """What stands for a name.

        Raises:
            ValueError: No row needs it.
        """
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("it calls something other than a known function")  # noqa: TRY004 - the pickle's fault
        if (module, name) not in _MAKERS:
            raise ValueError(f"it calls {ascii(f'{module:.80}.{name:.80}')[1:-1]}, which is not allowed")
        return cls(_MAKERS[module, name])


class _NumberType:
    """A type of NumPy's numbers or texts, as far as rows have them: its kind, its size, the order of its bytes.

    Args:
        arguments: What NumPy's type would be made with.
    """

    __slots__ = ("_bytes", "_format", "_kind", "_order")

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        match arguments:
            case (str(name), False | 0, True | 1) if name in _FORMATS or _TEXT_TYPE.fullmatch(name):
                self._kind, self._format = name[0], _FORMATS.get(name)
            case _:
                raise ValueError("it has a NumPy dtype other than of numbers and text")
        characters = 0 if self._format else int(name[1:])
        self._bytes = struct.calcsize(self._format) if self._format else characters * _CHARACTER_BYTES[self._kind]
        self._order = ""

    def set_up(self, layout: object) -> None:
        """Take the order of bytes.

        Raises:
            ValueError: The state is another than NumPy gives such a type.
        """
        order = layout[1] if isinstance(layout, tuple) and len(layout) > 1 else None
        has_order = self._kind == "U" or (self._format is not None and self._bytes > 1)
        sizes = (-1, -1) if self._format else (self._bytes, _CHARACTER_BYTES[self._kind])
        # The last is for flags, of which text has one that older versions of NumPy did not set.
        states = [(3, order, None, None, None, *sizes, flags) for flags in ((0, 8) if self._kind == "U" else (0,))]
        if order not in (("<", ">") if has_order else ("|",)) or layout not in states:
            raise ValueError("it gives a NumPy dtype an unexpected state")
        self._order = str(order)

    def value(self, content: object) -> object:
        """The value of these bytes.

        Raises:
            ValueError: They are not of this type.
        """
        if not isinstance(content, bytes) or len(content) != self._bytes or not self._order:
            raise ValueError("a NumPy scalar has other bytes than its dtype")
        if self._format:
            (value,) = struct.unpack(self._order.replace("|", "<") + self._format, content)
            return value
        if self._kind == "S":
            return content.rstrip(b"\0")
        return content.decode("utf-32-be" if self._order == ">" else "utf-32-le").rstrip("\0")


_FORMATS = {
    "b1": "?",
    "f2": "e",
    "f4": "f",
    "f8": "d",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
}
"""NumPy's types of numbers that Python has as well, as ``struct`` calls them."""
_TEXT_TYPE = re.compile(r"[US][0-9]{1,10}")
_CHARACTER_BYTES = {"U": 4, "S": 1}
_NOT_PLAIN = frozenset({_Named, _NumberType, _Arguments})


def _scalar(arguments: tuple[Any, ...]) -> object:
    """A number of NumPy, or a text, as Python has it."""
    match arguments:
        case (_NumberType() as number_type, content):
            return number_type.value(content)
    raise ValueError("it has a NumPy scalar without a dtype")


def _latin1(arguments: tuple[Any, ...]) -> bytes:
    """Bytes, as protocols before 3 have them; other encodings, one upon the other, make gigabytes of a few bytes."""
    match arguments:
        case (str(text), "latin1"):
            return text.encode("latin1")
    raise ValueError("it encodes text other than as latin1")


def _no_bytes(arguments: tuple[Any, ...]) -> bytes:
    """Empty bytes, as protocols before 3 have them; with arguments it would make as many as a number says."""
    if arguments:
        raise ValueError("it calls bytes with arguments")
    return b""


# The package was renamed in NumPy 2.
_MAKERS: Mapping[tuple[str, str], Callable[[tuple[Any, ...]], object]] = {
    ("numpy", "dtype"): _NumberType,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
}
