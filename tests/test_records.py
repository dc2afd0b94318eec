"""A JSON list is read from any of its records on."""

import json
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datafetch.errors import ManifestError
from datafetch.readers import RecordReader

RECORDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(
    records=st.lists(RECORDS, max_size=8),
    chunk_chars=st.sampled_from([1, 2, 3, 7, 1000]),
    indent=st.sampled_from([None, 0, 3]),
    is_escaped=st.booleans(),
)
def test_a_list_goes_on_where_it_was_left(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[object],
    chunk_chars: int,
    indent: int | None,
    is_escaped: bool,
) -> None:
    """From behind any record the others come, whatever stands between them and however little is read at a time."""
    path = tmp_path_factory.mktemp("list") / "list.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=is_escaped) + "\n", encoding="utf-8", newline="")
    for taken in range(1, len(records) + 1):
        reader = RecordReader(path, chunk_chars)
        assert list(islice(iter(reader), taken)) == records[:taken]
        again = RecordReader(path, chunk_chars, start_bytes=reader.offset_bytes())
        assert list(again) == records[taken:]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_ends_of_lines_do_not_move_anything(tmp_path: Path, newline: str) -> None:
    """Bytes are counted as they lie, not as Python reads text."""
    path = tmp_path / "list.json"
    path.write_text('[\n{"a": "é"},\n\n{"b": 2}\n]\n', encoding="utf-8", newline=newline)
    reader = RecordReader(path)
    assert next(iter(reader)) == {"a": "é"}
    assert path.read_bytes()[: reader.offset_bytes()].endswith('"é"}'.encode())
    assert list(RecordReader(path, start_bytes=reader.offset_bytes())) == [{"b": 2}]


def test_what_is_wrong_further_on_is_found(tmp_path: Path) -> None:
    """Also by whoever begins in the middle."""
    path = tmp_path / "list.json"
    path.write_text("[1, 2, 3")
    reader = RecordReader(path)
    assert next(iter(reader)) == 1
    with pytest.raises(ManifestError, match="is cut short"):
        list(RecordReader(path, start_bytes=reader.offset_bytes()))
