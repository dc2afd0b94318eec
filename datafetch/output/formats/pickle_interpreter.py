"""An interpreter for pickles that builds plain values and nothing else.

Theory of operation: a pickle is a program for a stack machine. ``Interpreter`` implements the opcodes of plain values,
and refuses all others. The few functions that pickles of rows need, such as those of NumPy's scalars, are reimplemented
here. NumPy itself is not called, because from a crafted state it builds objects that read and write memory that is not
theirs.
"""

from __future__ import annotations

import pickletools
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

_MAX_PROTOCOL = 5
# An empty dict takes 1 byte in a pickle and 64 in memory, 250 with a key. Rows with images have one in several KB.
_SPARE_CONTAINERS = 1_000_000
_BYTES_PER_CONTAINER = 32
# Memo indices count up from 0; some writers leave gaps.
_SPARE_MEMO_INDICES = 1 << 16


def max_containers(pickle_bytes: int) -> int:
    """The maximum number of lists, dicts and tuples that a pickle of this size may create."""
    return _SPARE_CONTAINERS + pickle_bytes // _BYTES_PER_CONTAINER


class Interpreter:
    """Executes the opcodes of one pickle; each public method but ``run`` implements one opcode.

    Args:
        pickle_bytes: The size of the pickle.
        allows_memo: Whether the pickle may use the memo; rows written by datafetch don't.
    """

    def __init__(self, pickle_bytes: int, *, allows_memo: bool) -> None:
        self._remaining_containers = max_containers(pickle_bytes)
        self._allows_memo = allows_memo
        self._pickle_bytes = pickle_bytes
        self._opcodes = 0
        self._end = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []

    def run(self, file: BinaryIO) -> object:
        """Execute the pickle and return its value.

        Raises:
            ValueError: The pickle is damaged, or uses something that plain values don't need.
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
        # In a row written by datafetch, anything after its end would become further elements of the shard's list.
        if self._stack or self._marks or (not self._allows_memo and self._end != self._pickle_bytes):
            raise ValueError("it holds more than one value")
        return _require_plain(value)

    def proto(self, protocol: int) -> None:
        """Check the protocol, because later ones may change the meaning of opcodes."""
        if protocol > _MAX_PROTOCOL:
            raise ValueError(f"protocol {protocol} is not supported")

    def frame(self, frame_bytes: int) -> None:
        """Do nothing: the length of a frame is only a hint for buffering."""

    def mark(self, _: object) -> None:
        """Push a mark."""
        self._marks.append(len(self._stack))

    def pop(self, _: object) -> None:
        """Drop the last value or mark."""
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop(1)

    def pop_mark(self, _: object) -> None:
        """Drop the values above the last mark."""
        self._pop_to_mark()

    def dup(self, _: object) -> None:
        """Push the last value again."""
        self._stack.append(self._top())

    def text(self, text: str) -> None:
        """Push a string of Python 2, whose encoding is unknown."""
        if not text.isascii():
            raise ValueError("it has a Python 2 string that is not ASCII")
        self._stack.append(text)

    def new_list(self, _: object) -> None:
        """Push an empty list."""
        self._make([])

    def new_dict(self, _: object) -> None:
        """Push an empty dict."""
        self._make({})

    def list_of(self, _: object) -> None:
        """Replace the values above the last mark by a list of them."""
        self._make([_require_plain(value) for value in self._pop_to_mark()])

    def dict_of(self, _: object) -> None:
        """Replace the keys and values above the last mark by a dict of them."""
        found: dict[str, object] = {}
        _set_items(found, self._pop_to_mark())
        self._make(found)

    def tuple_of(self, _: object) -> None:
        """Replace the values above the last mark by a tuple of them."""
        self._make(_tuple(self._pop_to_mark()))

    def tuple_1(self, _: object) -> None:
        """Replace the last value by a tuple of it."""
        self._make(_tuple(self._pop(1)))

    def tuple_2(self, _: object) -> None:
        """Replace the last two values by a tuple of them."""
        self._make(_tuple(self._pop(2)))

    def tuple_3(self, _: object) -> None:
        """Replace the last three values by a tuple of them."""
        self._make(_tuple(self._pop(3)))

    def append(self, _: object) -> None:
        """Append the last value to the list below it."""
        values = self._pop(1)
        self._list().append(_require_plain(values[0]))

    def appends(self, _: object) -> None:
        """Append the values above the last mark to the list below it."""
        values = self._pop_to_mark()
        self._list().extend(map(_require_plain, values))

    def set_item(self, _: object) -> None:
        """Put the last key and value into the dict below them."""
        values = self._pop(2)
        _set_items(self._top(), values)

    def set_items(self, _: object) -> None:
        """Put the keys and values above the last mark into the dict below it."""
        values = self._pop_to_mark()
        _set_items(self._top(), values)

    def put(self, index: int) -> None:
        """Store the last value in the memo, at an index that the pickle chooses."""
        if not self._allows_memo or not 0 <= index <= self._opcodes + _SPARE_MEMO_INDICES:
            raise ValueError(f"memo index {index} is out of range")
        if index >= len(self._memo):
            self._memo.extend([_UNSET] * (index + 1 - len(self._memo)))
        self._memo[index] = self._top()

    def memoize(self, _: object) -> None:
        """Store the last value in the memo, at the next index."""
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        """Push a value from the memo."""
        if not 0 <= index < len(self._memo) or self._memo[index] is _UNSET:
            raise ValueError(f"memo index {index} was never set")
        self._stack.append(self._memo[index])

    def global_name(self, name: str) -> None:
        """Push the function with a name, given as an argument."""
        module, _, attribute = name.partition(" ")
        self._stack.append(_Function.of(module, attribute))

    def stack_global(self, _: object) -> None:
        """Push the function with a name, given as the last two values."""
        module, attribute = self._pop(2)
        self._stack.append(_Function.of(module, attribute))

    def reduce(self, _: object) -> None:
        """Replace a function and its arguments by the result of the call."""
        function, arguments = self._pop(2)
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise ValueError("it calls something other than a known function")  # noqa: TRY004 - the pickle's fault
        self._stack.append(function.call(arguments))

    def build(self, _: object) -> None:
        """Set the state of a NumPy dtype; all other objects are refused."""
        (state,) = self._pop(1)
        dtype = self._top()
        if not isinstance(dtype, _Dtype):
            raise ValueError("it sets the state of an object")  # noqa: TRY004 - the pickle's fault
        dtype.set_state(state)

    def _make(self, container: object) -> None:
        self._remaining_containers -= 1
        if self._remaining_containers < 0:
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
        """Pop the last values, all of which must be above the last mark."""
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


_UNSET = object()
_VALUES = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
    }
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_ACTIONS: Mapping[str, Callable[[Interpreter, Any], None]] = {
    "PROTO": Interpreter.proto,
    "FRAME": Interpreter.frame,
    "MARK": Interpreter.mark,
    "POP": Interpreter.pop,
    "POP_MARK": Interpreter.pop_mark,
    "DUP": Interpreter.dup,
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), Interpreter.text),
    "EMPTY_LIST": Interpreter.new_list,
    "EMPTY_DICT": Interpreter.new_dict,
    "LIST": Interpreter.list_of,
    "DICT": Interpreter.dict_of,
    "TUPLE": Interpreter.tuple_of,
    "TUPLE1": Interpreter.tuple_1,
    "TUPLE2": Interpreter.tuple_2,
    "TUPLE3": Interpreter.tuple_3,
    "APPEND": Interpreter.append,
    "APPENDS": Interpreter.appends,
    "SETITEM": Interpreter.set_item,
    "SETITEMS": Interpreter.set_items,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Interpreter.put),
    "MEMOIZE": Interpreter.memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Interpreter.get),
    "GLOBAL": Interpreter.global_name,
    "STACK_GLOBAL": Interpreter.stack_global,
    "REDUCE": Interpreter.reduce,
    "BUILD": Interpreter.build,
}


def _set_items(found: object, values: list[Any]) -> None:
    """Put alternating keys and values into a dict."""
    if type(found) is not dict or len(values) % 2:
        raise ValueError("it sets items of something other than a dict")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if type(key) is not str:
            raise ValueError(f"a key is a {type(key).__name__}, not a str")
        found[key] = _require_plain(value)


class _Arguments(tuple[Any, ...]):
    """A tuple that contains a function or dtype: it may be the arguments of a call, and nothing else."""

    __slots__ = ()


def _tuple(values: list[Any]) -> tuple[Any, ...]:
    return _Arguments(values) if any(type(value) in _INTERNAL_TYPES for value in values) else tuple(values)


def _require_plain(value: Any) -> Any:
    """Return a value that may be part of a row, and refuse functions and dtypes."""
    if type(value) in _INTERNAL_TYPES:
        raise ValueError("it has a function or a dtype where a value should be")
    return value


class _Function:
    """One of the functions that rows need, as it is reimplemented here."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[tuple[Any, ...]], object]) -> None:
        self.call = call

    @classmethod
    def of(cls, module: object, name: object) -> _Function:
        """The reimplementation of a function.

        Raises:
            ValueError: It is not one that rows need.
        """
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("it calls something other than a known function")  # noqa: TRY004 - the pickle's fault
        if (module, name) not in _FUNCTIONS:
            raise ValueError(f"it calls {ascii(f'{module:.80}.{name:.80}')[1:-1]}, which is not allowed")
        return cls(_FUNCTIONS[module, name])


class _Dtype:
    """A NumPy dtype of a number or text: its kind, its size and its byte order.

    Args:
        arguments: The arguments that the pickle passes to ``numpy.dtype``.
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

    def set_state(self, state: object) -> None:
        """Take the byte order from a pickled state.

        Raises:
            ValueError: NumPy does not give such a dtype this state.
        """
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        has_order = self._kind == "U" or (self._format is not None and self._bytes > 1)
        sizes = (-1, -1) if self._format else (self._bytes, _CHARACTER_BYTES[self._kind])
        # The last field has flags; text has one, which older versions of NumPy did not set.
        states = [(3, order, None, None, None, *sizes, flags) for flags in ((0, 8) if self._kind == "U" else (0,))]
        if order not in (("<", ">") if has_order else ("|",)) or state not in states:
            raise ValueError("it gives a NumPy dtype an unexpected state")
        self._order = str(order)

    def value(self, content: object) -> object:
        """Decode the bytes of a scalar.

        Raises:
            ValueError: They do not have the size of this dtype.
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
"""NumPy's numeric types that Python has as well → their ``struct`` format."""
_TEXT_TYPE = re.compile(r"[US][0-9]{1,10}")
_CHARACTER_BYTES = {"U": 4, "S": 1}
_INTERNAL_TYPES = frozenset({_Function, _Dtype, _Arguments})


def _scalar(arguments: tuple[Any, ...]) -> object:
    """``numpy.core.multiarray.scalar``: a NumPy scalar, as the equivalent Python value."""
    match arguments:
        case (_Dtype() as dtype, content):
            return dtype.value(content)
    raise ValueError("it has a NumPy scalar without a dtype")


def _latin1(arguments: tuple[Any, ...]) -> bytes:
    """``codecs.encode``: bytes before protocol 3. Other encodings, repeated, turn a few bytes into gigabytes."""
    match arguments:
        case (str(text), "latin1"):
            return text.encode("latin1")
    raise ValueError("it encodes text other than as latin1")


def _no_bytes(arguments: tuple[Any, ...]) -> bytes:
    """``bytes()``: empty bytes before protocol 3. With an argument it could create any number of bytes."""
    if arguments:
        raise ValueError("it calls bytes with arguments")
    return b""


# The package was renamed in NumPy 2.
_FUNCTIONS: Mapping[tuple[str, str], Callable[[tuple[Any, ...]], object]] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
}
