"""JSON lists and objects are read record by record, from the beginning or from any record."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datafetch.datasets.readers import ObjectReader, RecordReader
from datafetch.errors import ManifestError

RECORDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(values=st.lists(VALUES, max_size=6), chunk_chars=st.integers(1, 40), cut=st.integers(1, 50), plain=st.booleans())
def test_records_equal_those_of_the_parsed_list(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], chunk_chars: int, cut: int, plain: bool
) -> None:
    """However little is read at a time, the records are those of the file, and truncation is always noticed."""
    path = tmp_path_factory.mktemp("lists") / "list.json"
    text = json.dumps(values, ensure_ascii=not plain, indent=None if plain else 2)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    assert list(RecordReader(path, chunk_chars)) == json.loads(text)
    path.write_text(text[:-cut], encoding="utf-8")
    read: list[object] = []
    with pytest.raises(ManifestError):
        read.extend(RecordReader(path, chunk_chars))
    if read and isinstance(read[-1], int | float):  # of which a part was left, and is a number, too
        read.pop()
    assert read == values[: len(read)]


@pytest.mark.rotating
@settings(max_examples=100)
@given(
    records=st.lists(RECORDS, max_size=8),
    chunk_chars=st.sampled_from([1, 2, 3, 7, 1000]),
    indent=st.sampled_from([None, 0, 3]),
    is_escaped=st.booleans(),
)
def test_reading_continues_at_an_offset(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[object],
    chunk_chars: int,
    indent: int | None,
    is_escaped: bool,
) -> None:
    """Reading can begin behind any record, whatever separates records and however little is read at a time."""
    path = tmp_path_factory.mktemp("list") / "list.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=is_escaped) + "\n", encoding="utf-8", newline="")
    for taken in range(1, len(records) + 1):
        reader = RecordReader(path, chunk_chars)
        assert list(islice(iter(reader), taken)) == records[:taken]
        again = RecordReader(path, chunk_chars, start_bytes=reader.offset_bytes())
        assert list(again) == records[taken:]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_ends_do_not_change_offsets(tmp_path: Path, newline: str) -> None:
    """Offsets count the bytes of the file, before line ends are translated."""
    path = tmp_path / "list.json"
    path.write_text('[\n{"a": "é"},\n\n{"b": 2}\n]\n', encoding="utf-8", newline=newline)
    reader = RecordReader(path)
    assert next(iter(reader)) == {"a": "é"}
    assert path.read_bytes()[: reader.offset_bytes()].endswith('"é"}'.encode())
    assert list(RecordReader(path, start_bytes=reader.offset_bytes())) == [{"b": 2}]


def test_a_fault_after_the_offset_is_found(tmp_path: Path) -> None:
    """It is found even by a reader that begins in the middle."""
    path = tmp_path / "list.json"
    path.write_text("[1, 2, 3")
    reader = RecordReader(path)
    assert next(iter(reader)) == 1
    with pytest.raises(ManifestError, match="is cut short"):
        list(RecordReader(path, start_bytes=reader.offset_bytes()))


@pytest.mark.rotating
@settings(max_examples=50)
@given(records=st.lists(RECORDS, max_size=8), chunk_chars=st.sampled_from([1, 3, 1000]), count=st.integers(1, 3))
def test_consecutive_slices_give_the_whole_list(
    tmp_path_factory: pytest.TempPathFactory, records: list[object], chunk_chars: int, count: int
) -> None:
    """Each begins at the offset at which the one before, which began in the middle itself, ended."""
    path = tmp_path_factory.mktemp("list") / "list.json"
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    read: list[object] = []
    start_bytes = 0
    while len(read) < len(records):
        reader = RecordReader(path, chunk_chars, start_bytes=start_bytes)
        read += islice(iter(reader), count)
        assert reader.offset_bytes() > start_bytes
        start_bytes = reader.offset_bytes()
    assert read == records


@pytest.mark.parametrize("start_bytes", [1, 2, 5, 10, 11])
def test_a_list_that_has_changed_is_refused(tmp_path: Path, start_bytes: int) -> None:
    """An offset at which no record ends is refused, so that nothing else is taken for a record."""
    path = tmp_path / "list.json"
    path.write_text('[{"a": 1}, {"b": 2}]')
    with pytest.raises(ManifestError, match=rf"has changed since it was opened \(no record at byte {start_bytes}\)"):
        next(iter(RecordReader(path, start_bytes=start_bytes)))


def test_a_byte_order_mark_is_refused(tmp_path: Path) -> None:
    """The trainer refuses it, too."""
    path = tmp_path / "list.json"
    path.write_bytes(b"\xef\xbb\xbf[1]")
    with pytest.raises(ManifestError, match="is not a JSON list"):
        list(RecordReader(path))


@pytest.mark.rotating
def test_an_endless_record_is_refused(tmp_path: Path) -> None:
    """Reading stops after about a hundred megabytes, however long the file is."""
    path = tmp_path / "list.json"
    with path.open("wb") as file:
        file.write(b'[1, "')
        file.truncate(512 << 20)  # zeros that use no disk space
    reader = RecordReader(path)
    with pytest.raises(ManifestError, match="is not JSON, or is cut short"):
        list(reader)
    assert 64 << 20 < reader.pop_read_bytes() < 160 << 20


@pytest.mark.rotating
@given(
    members=st.lists(st.tuples(st.text(), VALUES), max_size=6),
    chunk_chars=st.integers(1, 40),
    plain=st.booleans(),
    taken=st.integers(1, 6),
)
def test_members_equal_those_of_the_parsed_object(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, Any]], chunk_chars: int, plain: bool, taken: int
) -> None:
    """They come in order, repeated names included, from any member on; truncation is always noticed."""
    path = tmp_path_factory.mktemp("objects") / "object.json"
    inner = ", ".join(f"{json.dumps(name)} : {json.dumps(value, ensure_ascii=not plain)}" for name, value in members)
    path.write_text(f" {{{inner}}}\n", encoding="utf-8")
    reader = ObjectReader(path, chunk_chars)
    found = list(islice(iter(reader), taken))
    assert [(member.name, member.value) for member in found] == members[:taken]
    if len(found) == taken:  # else it has come to the end
        rest = ObjectReader(path, chunk_chars, start_bytes=reader.offset_bytes())
        assert [(member.name, member.value) for member in rest] == members[taken:]
    path.write_text(f" {{{inner}", encoding="utf-8")
    with pytest.raises(ManifestError):
        list(ObjectReader(path, chunk_chars))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "is not a JSON object"),
        ("{1: 2}", "is not JSON"),
        ('{"a" 2}', "is not JSON"),
        ('{"a": 2 "b": 3}', "has no comma between two records"),
        ('{"a": 2,}', "is not JSON"),
        ('{"a": 2} 3', "has data after its object"),
        ('{"a": ' + "[" * 100_000 + "}", "nested more than 200 levels"),
    ],
)
def test_a_malformed_object_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    """The fault is found wherever it is."""
    path = tmp_path / "object.json"
    path.write_text(text)
    with pytest.raises(ManifestError, match=reason):
        list(ObjectReader(path))


def test_odd_values_are_read_as_python_reads_them(tmp_path: Path) -> None:
    """The trainer reads them in the same way."""
    path = tmp_path / "object.json"
    path.write_text('{"a": NaN, "\\ud83d": [Infinity, 99999999999999999999]}')
    assert repr([(member.name, member.value) for member in ObjectReader(path)]) == repr(
        list(json.loads(path.read_text()).items())
    )


@pytest.mark.rotating
def test_a_record_that_would_be_gigabytes_of_objects_is_refused(tmp_path: Path) -> None:
    """It is refused before it is parsed."""
    path = tmp_path / "list.json"
    path.write_text("[[" + "[]," * 3_000_000 + "[]]]")
    with pytest.raises(ManifestError, match="has a record that may take more than 268,435,456 bytes of memory"):
        list(RecordReader(path))


@pytest.mark.rotating
def test_more_records_than_a_file_of_its_size_can_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller holds a few bytes for each."""
    monkeypatch.setattr("datafetch.datasets.readers.json_list._MAX_RECORDS", 1 << 16)
    path = tmp_path / "list.json"
    path.write_text("[" + "1," * ((1 << 16) - 1) + "1]")
    assert sum(1 for _ in RecordReader(path)) == 1 << 16
    path.write_text("[" + "1," * (1 << 16) + "1]")
    with pytest.raises(ManifestError, match="has more records than a file of its size can have"):
        sum(1 for _ in RecordReader(path))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("[" * 201 + "]" * 201, "nested more than 200 levels deep"),
        ("[" * 990 + "]" * 990, "nested more than 200 levels deep"),
        ('{"a":' * 100_000, "nested more than 200 levels deep"),
        ("9" * 5000, "an integer has more than 4,300 digits"),
    ],
)
def test_a_record_that_later_steps_could_not_handle_is_refused(tmp_path: Path, record: str, reason: str) -> None:
    """The error says what is wrong. A record just within the limit is read."""
    path = tmp_path / "list.json"
    path.write_text(f"[{record}]")
    with pytest.raises(ManifestError, match=reason):
        list(RecordReader(path))
    path.write_text("[" + "[" * 200 + "]" * 200 + "," + "9" * 4300 + "]")
    assert len(list(RecordReader(path))) == 2


@pytest.mark.rotating
@settings(max_examples=100)
@given(
    records=st.lists(RECORDS, max_size=8),
    chunk_chars=st.sampled_from([1, 2, 3, 7, 1000]),
    indent=st.sampled_from([None, 0, 3]),
    end=st.sampled_from(["", "\n", " \n\n"]),
)
def test_records_and_the_gaps_between_them_are_the_file(
    tmp_path_factory: pytest.TempPathFactory, records: list[object], chunk_chars: int, indent: int | None, end: str
) -> None:
    """The text of each record is as it stands in the file, and so is what separates it from the one before."""
    path = tmp_path_factory.mktemp("list") / "list.json"
    text = json.dumps(records, indent=indent) + end
    path.write_text(text)
    reader = RecordReader(path, chunk_chars)
    pieces, gaps = [], []
    for record in reader:
        gaps.append(reader.gap_text)
        pieces.append(reader.record_text)
        assert json.loads(reader.record_text) == record
    gaps.append(reader.gap_text)
    assert all(not gap.strip("[], \n") for gap in gaps)
    assert "".join(gap + piece for gap, piece in zip(gaps, [*pieces, ""], strict=True)) == text


@pytest.mark.rotating
def test_endless_blanks_between_records_are_refused(tmp_path: Path) -> None:
    """They are held until the next record, because the trainer's list has them, too."""
    path = tmp_path / "list.json"
    path.write_text("[1," + " " * (5 << 20) + "2]")
    with pytest.raises(ManifestError, match="blanks in a row"):
        list(RecordReader(path))
