"""JSON comes out as it went in, whatever Python's own reads."""

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
    """Whether two values are the same, types and numbers that are none included."""
    return repr(one) == repr(other)


@given(VALUES)
@example({"a": None, "b": math.nan})
@example([2**63, -(2**63) - 1, 2**64 - 1, 2**64, math.inf, -math.inf, -0.0])
@example("\ud83d")
@example("\ud83d\ude00")
def test_whatever_is_written_is_read_again(value: Any) -> None:
    """As the very same value."""
    assert same(exact_json.parse(exact_json.write(value)), value)


@given(VALUES, st.booleans())
def test_whatever_json_writes_is_read_alike(value: Any, is_ascii: bool) -> None:
    """As the standard library reads it."""
    text = json.dumps(value, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    assert same(exact_json.parse(text), json.loads(text))


@given(
    NUMBERS, st.sampled_from(["{}", "[{}]", '{{"a":{}, "b": 0.12345678901234567890}}', "[0.00012345678901234567, {}]"])
)
def test_numbers_of_any_length_are_read_alike(number: str, around: str) -> None:
    """Integers stay integers; behind a point any number of digits may stand."""
    text = around.format(number)
    assert same(exact_json.parse(text.encode()), json.loads(text))


@given(st.text(st.sampled_from('{}[]":,\\u0d8e1-.NaIfinty \t\n'), max_size=12))
def test_what_is_no_json_is_none_here_either(text: str) -> None:
    """The two take the same for JSON."""
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
            exact_json.parse(text.encode())
    else:
        assert same(exact_json.parse(text.encode()), expected)


def test_deep_nesting_is_read_and_written() -> None:
    """As far as records may have it, and what can't be read is told."""
    deep = b"[" * 600 + b"]" * 600
    assert exact_json.write(exact_json.parse(deep)) == deep
    with pytest.raises(RecursionError):
        exact_json.parse(b"[" * 100_000)
