"""Untrusted pickles become plain values and nothing else: nothing is called, and memory is bounded."""

import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datafetch.output.formats.plain_pickle import load_row, load_whole

NUMBERS = [
    *(np.dtype(name).type(1) for name in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")),
    *(np.float32(0.1), np.float64(np.inf), np.int64(-(2**63)), np.uint64(2**64 - 1), np.bool_(False)),
    *(np.str_("同じ"), np.str_(""), np.bytes_(b"a\0b")),
]


def whole(content: bytes) -> object:
    """Load a third-party pickle."""
    return load_whole(BytesIO(content), len(content))


def frame(body: bytes) -> bytes:
    """A frame, as in a shard written by datafetch, with this body."""
    return b"\x95" + len(body).to_bytes(8, "little") + body


def as_frame(value: object) -> bytes:
    """A value as a frame of a shard written by datafetch."""
    buffer = BytesIO()
    pickler = pickle.Pickler(buffer, 3)
    pickler.fast = True
    pickler.dump(value)
    return frame(buffer.getvalue()[2:-1])


def body_of(value: object) -> bytes:
    """The opcodes of a value, without a memo."""
    return as_frame(value)[9:]


def read_both_ways(body: bytes) -> list[Callable[[], object]]:
    """The two readers: of a third-party pickle, and of a shard written by datafetch."""
    return [lambda: whole(b"\x80\x04" + body + b"."), lambda: load_row(frame(body))]


def refused(body: bytes, match: str = "not a pickle") -> None:
    """Check that both readers refuse a body."""
    for read in read_both_ways(body):
        with pytest.raises(ValueError, match=match):
            read()


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numbers_of_numpy_become_plain_ones(number: np.generic, protocol: int) -> None:
    """A scalar of any NumPy type is read as the Python value."""
    rows = whole(pickle.dumps([{"a": number, "b": number}, {"a": number}], protocol))
    assert rows == [{"a": number.item(), "b": number.item()}, {"a": number.item()}]
    assert isinstance(rows, list)
    assert type(rows[0]["a"]) is type(number.item())
    assert load_row(as_frame({"a": number})) == {"a": number.item()}


def test_the_order_of_bytes_is_read() -> None:
    """Numbers of either byte order are read correctly."""
    body = _scalar(_dtype("f8", (3, ">", None, None, None, -1, -1, 0)), b"\x40\0\0\0\0\0\0\0")
    assert [read() for read in read_both_ways(body)] == [2.0, 2.0]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.sampled_from(NUMBERS),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.rotating
@given(value=VALUES, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_are_read_as_by_the_unpickler(value: object, protocol: int) -> None:
    """Pickles of plain values are read as by Python's own unpickler."""
    assert whole(pickle.dumps(value, protocol)) == value
    assert load_row(as_frame(value)) == value


def test_shared_and_recursive_values_are_read() -> None:
    """The memo restores shared objects, and objects that contain themselves."""
    row: dict[str, Any] = {"text": "x"}
    row["self"] = [row]
    found: Any = whole(pickle.dumps([row, row]))
    assert found[0] is found[1] is found[0]["self"][0]


def _dtype(name: str, state: object, *, is_copied: bool = True) -> bytes:
    return b"cnumpy\ndtype\n" + body_of((name, False, is_copied)) + b"R" + body_of(state) + b"b"


def _scalar(dtype: bytes, content: object) -> bytes:
    return b"cnumpy.core.multiarray\nscalar\n(" + dtype + body_of(content) + b"tR"


PLAIN = (3, "<", None, None, None, -1, -1, 0)
OBJECTS = (3, "|", None, None, None, -1, -1, 0)
FIELDS = (3, "|", None, ("a",), {"a": ("f8", 100_000)}, 8, 1, 16)
ATTACKS = {
    "a pointer": _scalar(_dtype("O8", OBJECTS), b"A" * 8),
    "a pointer, by state": _scalar(_dtype("i8", (3, "O", None, None, None, -1, -1, 63)), b"A" * 8),
    "fields beyond the end": _scalar(_dtype("V8", FIELDS), b"A" * 8),
    "a structure": _scalar(_dtype("i8", FIELDS), b"A" * 8),
    "another size": _scalar(_dtype("S8", (3, "|", None, None, None, 200_000, 1, 0)), b"A" * 8),
    "another size of text": _scalar(_dtype("U2", (3, "<", None, None, None, 200_000, 4, 8)), b"A" * 8),
    "a size of a number": _scalar(_dtype("f8", (3, "<", None, None, None, 200_000, -1, 0)), b"A" * 8),
    "an array": _scalar(_dtype("f8", (3, "<", ("f8", (1 << 20,)), None, None, -1, -1, 0)), b"A" * 8),
    "flags": _scalar(_dtype("f8", (3, "<", None, None, None, -1, -1, 1)), b"A" * 8),
    "a state of another version": _scalar(_dtype("f8", (4, "<", None, None, None, -1, -1, 0, {})), b"A" * 8),
    "a state that is none": _scalar(_dtype("f8", {"a": 1}), b"A" * 8),
    "a type without a state": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n"
    + body_of(("f8", False, True))
    + b"R"
    + body_of(b"A" * 8)
    + b"tR",
    "too few bytes": _scalar(_dtype("f8", PLAIN), b"A"),
    "too many bytes": _scalar(_dtype("f8", PLAIN), b"A" * 9),
    "no bytes": _scalar(_dtype("f8", PLAIN), None),
    "a type that is shared": _scalar(_dtype("f8", PLAIN, is_copied=False), b"A" * 8),
    "a date": _scalar(_dtype("M8", PLAIN), b"A" * 8),
    "a type where a value should be": b"}" + body_of("a") + _dtype("f8", PLAIN) + b"s",
    "a type in a tuple": b"}" + body_of("a") + _dtype("f8", PLAIN) + b"\x85s",
    "a type alone": _dtype("f8", PLAIN),
    "a name as a value": b"}" + body_of("a") + b"cnumpy\ndtype\ns",
    "a name that is set up": b"cnumpy.core.multiarray\nscalar\n" + body_of((None, {"__defaults__": (1,)})) + b"b",
    "a dict that is set up": b"}" + body_of({"a": 1}) + b"b",
    "nothing called": b"cnumpy\ndtype\n" + body_of([1]) + b"R",
    "a value called": body_of("a") + b")R",
    "text in another encoding": b"c_codecs\nencode\n" + body_of(("61", "hex")) + b"R",
    "bytes made of a number": b"c__builtin__\nbytes\n" + body_of((1 << 40,)) + b"R",
    "something made without a call": b"cnumpy\ndtype\n)\x81",
    "a third-party object": b"(cnumpy\ndtype\no",
    "an extension": b"\x82\x01",
    "a persistent object": body_of("a") + b"Q",
    "a set": b"\x8f(K\x01K\x02\x90",
    "an array of bytes": b"\x96\x01\0\0\0\0\0\0\0A",
    "more than one value": b"}}",
    "no value": b"",
    "a mark": b"}(",
    "a value without a key": b"e}",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_state_is_set_and_nothing_is_called(attack: str) -> None:
    """Only dtypes of numbers and text are accepted, in the state that NumPy gives them, and only for a scalar."""
    refused(ATTACKS[attack])


def test_a_row_ends_where_its_frame_does() -> None:
    """Anything after the end of a row in a frame would become the next element of the trainer's list."""
    with pytest.raises(ValueError, match="more than one value"):
        load_row(frame(b"}.}"))


def test_a_frame_has_no_memo() -> None:
    """The trainer loads all rows with one memo, so a row that used it might differ from the one that was checked."""
    for body in (b"}q\0", b"}\x94", b"h\0"):
        with pytest.raises(ValueError, match="memo index"):
            load_row(frame(body))


COLLIDING: dict[str, list[Any]] = {
    "numbers": [number * (2**61 - 1) for number in range(1, 30)],
    "fractions": [2.0 ** (61 * number) for number in range(1, 16)],
    "bytes": [bytes([number]) for number in range(20)],
    "tuples": [(number * (2**61 - 1),) for number in range(1, 20)],
    "nothing": [None],
}


@pytest.mark.parametrize("keys", COLLIDING)
@pytest.mark.parametrize("how", ["at once", "one by one", "made of them"])
def test_keys_are_text(keys: str, how: str) -> None:
    """Keys with predictable hashes are refused before they are put into a dict, at any depth."""
    pairs = [body_of(key) + b"N" for key in COLLIDING[keys]]
    body = {
        "at once": b"}(" + b"".join(pairs) + b"u",
        "one by one": b"}" + b"".join(pair + b"s" for pair in pairs),
        "made of them": b"(" + b"".join(pairs) + b"d",
    }[how]
    refused(body)
    refused(b"}" + body_of("a") + b"]" + body + b"as")


@pytest.mark.rotating
def test_a_deep_key_is_refused() -> None:
    """Hashing deeply nested tuples would overflow the stack of the process."""
    refused(b"})" + b"\x85" * 200_000 + b"Ns", match="a key is a tuple")


@pytest.mark.parametrize("opcode", [b"}", b"]", b")\x85", b"(l", b"(d"])
def test_containers_are_limited(opcode: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists and dicts, which take one byte in a pickle and hundreds in memory, are limited."""
    monkeypatch.setattr("datafetch.output.formats.pickle_interpreter._SPARE_CONTAINERS", 1000)
    body = b"](" + opcode * 20_000 + b"e"
    tracemalloc.start()
    refused(body)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_memo_indices_are_limited() -> None:
    """A memo index far away does not allocate memory for all indices before it."""
    puts = b"".join(b"r" + (60_000 * number).to_bytes(4, "little") for number in range(1, 500))
    tracemalloc.start()
    refused(b"N" + puts)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def _fuzz(folder: Path, seed: int, mutants: int) -> None:
    script = Path(__file__).with_name("pickle_fuzz.py")
    command = [sys.executable, str(script), str(folder), str(seed), str(mutants)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"seed {seed} ended with {done.returncode}: {done.stderr[-2000:]}"
    read = int(done.stdout.split()[0])
    assert 0 < read < mutants


@pytest.mark.rotating
def test_no_mutant_ends_a_process(tmp_path: Path) -> None:
    """Mutated shards with NumPy numbers are read or refused by both commands, and the process survives."""
    _fuzz(tmp_path, seed=1, mutants=300)


@pytest.mark.rotating
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_no_mutant_of_many_ends_a_process(tmp_path: Path, seed: int) -> None:
    """Thousands of mutants are read or refused by both commands, and the process survives."""
    _fuzz(tmp_path, seed=seed, mutants=2000)
