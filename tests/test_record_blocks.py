"""Blocks of records, and the fields of records."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datafetch.datasets.lists import record_blocks
from datafetch.datasets.lists.record_blocks import FieldSplitter, RecordSplitter, RecordTooLongError

PIECES = st.lists(st.sampled_from(['"', ",", "\n", "\r\n", "a", "é", '""', 'x"y']), max_size=40)


def records(content: bytes, *, quoted: bool = True) -> list[bytes]:
    """All records of some content."""
    splitter = RecordSplitter(b"," if quoted else b"")
    return [record for block in splitter.blocks(io.BytesIO(content)) for record in block.records()]


@given(PIECES)
def test_records_and_fields_are_those_of_pythons_csv(pieces: list[str]) -> None:
    """Quoted line breaks, quotes in pairs and stray quotes mean what they mean to Python's reader."""
    text = "".join(pieces)
    expected = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    fields = FieldSplitter(b",", is_quoted=True, max_fields=100)
    found = [[field.decode() for field in fields.split(record)] for record in records(text.encode())]
    if found != expected:  # only where the last quote is never closed: Python keeps the line breaks behind it
        assert [[field.strip("\r\n") for field in row] for row in found] == [
            [field.strip("\r\n") for field in row] for row in expected
        ]
        assert found[:-1] == expected[:-1]


@given(PIECES, st.integers(1, 9))
def test_blocks_of_any_size_have_the_same_records(pieces: list[str], block_bytes: int) -> None:
    """Where blocks end changes no record, and a block that is read again from its offset is the same."""
    content = "".join(pieces).encode()
    whole = records(content)
    splitter = RecordSplitter(b",")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_blocks, "_BLOCK_BYTES", block_bytes)
        blocks = list(splitter.blocks(io.BytesIO(content)))
        for number, block in enumerate(blocks):
            again = list(splitter.blocks(io.BytesIO(content[block.offset :]), block.offset))
            assert [one.content for one in again] == [one.content for one in blocks[number:]]
    assert [record for block in blocks for record in block.records()] == whole
    assert sum(block.count() for block in blocks) == len(whole)
    assert b"".join(block.content for block in blocks) == content


def test_lines_are_records_where_nothing_is_quoted() -> None:
    """A quote is a character like any other, and empty lines are no records."""
    assert records(b'a "b\r\n\r\n\nc', quoted=False) == [b'a "b', b"c"]


def test_a_record_beyond_the_limit_ends_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quote that is never closed does not fill the memory; the error says behind which record it is."""
    monkeypatch.setattr(record_blocks, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(record_blocks, "_BLOCK_BYTES", 100)
    with pytest.raises(RecordTooLongError) as raised:
        records(b'a\nb\n"' + b"x\n" * 2000)
    assert raised.value.record == 2


def test_no_more_fields_are_made_than_a_record_may_have() -> None:
    """A record of a million delimiters becomes one field too many, and not a million."""
    for is_quoted in (False, True):
        fields = FieldSplitter(b",", is_quoted=is_quoted, max_fields=3).split(b'"",' + b"," * 1_000_000)
        assert len(fields) == 4
