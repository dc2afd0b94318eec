"""Everything that Python's own JSON parser reads is restored exactly."""

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datafetch.model import exact_json

TEXTS = st.text(st.characters())  # lone surrogates included
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)
NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,4})?", fullmatch=True)


def same(one: Any, other: Any) -> bool:
    """Return whether two values are the same, including their types and NaN."""
    return repr(one) == repr(other)


@given(VALUES)
@example({"a": None, "b": math.nan})
@example([2**63, -(2**63) - 1, 2**64 - 1, 2**64, math.inf, -math.inf, -0.0])
@example("\ud83d")
@example("\ud83d\ude00")
def test_written_values_are_restored(value: Any) -> None:
    """A value that is written is restored exactly."""
    assert same(exact_json.parse(exact_json.write(value)), value)


@given(VALUES, st.booleans())
def test_json_of_the_standard_library_is_read_alike(value: Any, is_ascii: bool) -> None:
    """JSON of the standard library is read as by the standard library."""
    text = json.dumps(value, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    assert same(exact_json.parse(text), json.loads(text))


@given(
    NUMBERS, st.sampled_from(["{}", "[{}]", '{{"a":{}, "b": 0.12345678901234567890}}', "[0.00012345678901234567, {}]"])
)
def test_numbers_of_any_length_are_read_alike(number: str, around: str) -> None:
    """Integers stay integers of any length; fractions may have any number of digits."""
    text = around.format(number)
    assert same(exact_json.parse(text.encode()), json.loads(text))


@given(st.text(st.sampled_from('{}[]":,\\u0d8e1-.NaIfinty \t\n'), max_size=12))
def test_invalid_json_is_refused(text: str) -> None:
    """Datafetch's parser refuses the same texts as Python's own."""
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
            exact_json.parse(text.encode())
    else:
        assert same(exact_json.parse(text.encode()), expected)


def test_deep_nesting_is_read_and_written() -> None:
    """Nesting is supported as deep as in the standard library, and beyond that an error is raised."""
    deep = b"[" * 600 + b"]" * 600
    assert exact_json.write(exact_json.parse(deep)) == deep
    with pytest.raises(RecursionError):
        exact_json.parse(b"[" * 100_000)
