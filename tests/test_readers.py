"""Readers of the files of a manifest."""

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datafetch.datasets.readers import (
    ColumnType,
    IdList,
    ParquetFile,
    list_files,
    matching_rows,
    pack_pair,
    read_id_pairs,
    read_ids,
)
from datafetch.errors import ManifestError

COLUMNS = {"id": ColumnType.INTEGER, "text": ColumnType.STRING}
INT64S = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_ids_plain_or_gzipped(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """The content decides, not the name. Blank lines and repeated ids are accepted."""
    path = tmp_path / "ids.txt"
    path.write_bytes(pack(b"5\r\n3\n\n5\n 841814333321 \n-1\n5"))
    ids = read_ids(path)
    assert ids.ids.tolist() == [-1, 3, 5, 841814333321]
    assert ids.ids.dtype == np.int64
    assert ids.duplicates == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"1\n2\nid\n", "line 3: 'id' is not an id"),
        (b"1.5\n", "line 1"),
        (b"9223372036854775808\n", "line 1"),
        (b"\xff\xfe1\n", "line 1"),
        (gzip.compress(b"1\n" * 1000, mtime=0)[:-20], "cannot read"),
        (gzip.compress(b"1\n" * 1000, mtime=0)[:12] + b"garbage garbage garbage", "cannot read"),
    ],
)
def test_a_file_that_is_not_an_id_list_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """The error names the file and the line."""
    path = tmp_path / "ids"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=message) as caught:
        read_ids(path)
    assert str(path) in str(caught.value)


def test_a_bad_id_is_named_by_its_line_in_a_long_list(tmp_path: Path) -> None:
    """The line number counts from the start of the file, not of a chunk of it."""
    path = tmp_path / "ids"
    path.write_bytes(b"1234567\n" * 300_000 + b"oops\n")
    with pytest.raises(ManifestError, match="line 300001: 'oops'"):
        read_ids(path)


@given(st.sets(INT64S), st.lists(INT64S))
def test_ids_are_found_or_not(ids: set[int], values: list[int]) -> None:
    """Looking up agrees with a set, also in an empty list and at its ends."""
    listed = IdList(np.array(sorted(ids), np.int64), 0)
    positions, present = listed.find(np.array(values, np.int64))
    assert present.tolist() == [value in ids for value in values]
    assert all(
        listed.ids[position] == value
        for position, value, is_in in zip(positions, values, present, strict=True)
        if is_in
    )


def write(path: Path, rows: int, row_group: int) -> ParquetFile:
    """Write a parquet file of this many rows, in groups of this size."""
    table = pa.table({"id": range(rows), "text": [f"text {row}" for row in range(rows)], "unread": range(rows)})
    pq.write_table(table, path, row_group_size=row_group)
    return ParquetFile(path, COLUMNS)


@pytest.mark.rotating
@settings(max_examples=25)
@given(st.sets(st.integers(0, 29_999)), st.sampled_from([700, 9_000, 30_000]))
def test_selected_rows_come_in_order(tmp_path_factory: pytest.TempPathFactory, rows: set[int], row_group: int) -> None:
    """Whatever is selected, and however the file is divided, exactly those rows come, in order."""
    file = write(tmp_path_factory.mktemp("parquet") / "x.parquet", 30_000, row_group)
    selected = list(file.select(np.array(sorted(rows), np.int64), list(COLUMNS)))
    assert selected == [{"id": row, "text": f"text {row}"} for row in sorted(rows)]


def test_matching_rows_counts_over_batches_and_groups(tmp_path: Path) -> None:
    """The numbers of matching rows are those in the file, whatever its batches and row groups are."""
    file = write(tmp_path / "x.parquet", 20_000, 3_000)
    rows = matching_rows(file, ["id"], lambda batch: batch.column("id").to_numpy() % 5_000 == 17)
    assert rows.tolist() == [17, 5_017, 10_017, 15_017]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"id": [1]}), "has no column text; it has id"),
        (pa.table({"id": ["1"], "text": ["a"]}), "column id has the type string, where an integer is needed"),
        (pa.table({"id": [1], "text": [2]}), "column text has the type int64, where text is needed"),
    ],
)
def test_a_file_with_other_columns_is_refused(tmp_path: Path, table: pa.Table, message: str) -> None:
    """The message names the file, what is missing, and what there is."""
    path = tmp_path / "x.parquet"
    pq.write_table(table, path)
    with pytest.raises(ManifestError, match=message) as caught:
        ParquetFile(path, COLUMNS)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all" * 10])
def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever is wrong with the bytes, the file is named."""
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=r"x\.parquet"):
        ParquetFile(path, COLUMNS)


def test_a_file_that_breaks_while_it_is_read_is_named(tmp_path: Path) -> None:
    """A manifest that is damaged in the middle is an error for the operator, not a crash."""
    path = tmp_path / "x.parquet"
    file = write(path, 20_000, 20_000)
    content = bytearray(path.read_bytes())
    content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=r"x\.parquet"):
        list(file.select(np.arange(20_000), list(COLUMNS)))


def test_files_of_a_folder_are_sorted(tmp_path: Path) -> None:
    """Hidden files and those with other suffixes are left out. The path of a file gives that file."""
    for name in ("b.parquet", "a.parquet", "_SUCCESS", ".c.parquet", "d.json"):
        (tmp_path / name).touch()
    assert [path.name for path in list_files(tmp_path, ".parquet")] == ["a.parquet", "b.parquet"]
    assert list_files(tmp_path / "d.json", ".parquet") == [tmp_path / "d.json"]
    assert [path.name for path in list_files(tmp_path, ".parquet", ".json")] == ["a.parquet", "b.parquet", "d.json"]


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_a_folder_without_files_is_refused(tmp_path: Path, name: str) -> None:
    """An empty folder and a missing one are reported before anything else happens."""
    with pytest.raises(ManifestError, match="--source"):
        list_files(tmp_path / name, ".parquet")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("header", [b"", b"shard_number,index\n", b"shard, index \r\n"])
def test_pairs_are_packed_into_numbers(tmp_path: Path, pack: Callable[[bytes], bytes], header: bytes) -> None:
    """The numbers sort as the pairs do. Repeated pairs are counted, and a header is skipped."""
    path = tmp_path / "pairs"
    path.write_bytes(pack(header + b"7,0\n 12, 3 \r\n\n7,0\n0,9\n"))
    pairs = read_id_pairs(path)
    assert pairs.ids.tolist() == [pack_pair(0, 9), pack_pair(7, 0), pack_pair(12, 3)]
    assert pairs.duplicates == 1


@pytest.mark.parametrize(
    "line",
    [b"7", b"7,", b"7,1,2", b"-1,0", b"1_0,2", b"x,1", b"2147483648,0", b"0,2147483648", b"\xff,1", b"shard,index"],
)
def test_a_line_that_is_not_a_pair_is_named(tmp_path: Path, line: bytes) -> None:
    """The error names the line, and the form that the list takes."""
    path = tmp_path / "pairs"
    path.write_bytes(b"1,1\n" + line + b"\n")
    with pytest.raises(ManifestError, match=r"line 2: .* is not a shard and an index; the list takes shard,index"):
        read_id_pairs(path)


@pytest.mark.parametrize("line", [b"oops", b"x,2", b"7,x", b"shard,index,url", b"7;1"])
def test_only_two_words_are_a_header(tmp_path: Path, line: bytes) -> None:
    """Anything else in the first line may be a mistyped pair, and is reported."""
    path = tmp_path / "pairs"
    path.write_bytes(line + b"\n1,1\n")
    with pytest.raises(ManifestError, match="line 1: "):
        read_id_pairs(path)


@pytest.mark.parametrize("lines", [131_071, 131_072, 131_073])
def test_a_header_after_the_first_line_is_refused(tmp_path: Path, lines: int) -> None:
    """This holds even at the beginning of the second MiB, where the reader begins a new chunk of the file."""
    path = tmp_path / "pairs"
    path.write_bytes(b"123,456\n" * lines + b"shard,index\n")
    with pytest.raises(ManifestError, match=f"line {lines + 1}: 'shard,index' is not a shard and an index"):
        read_id_pairs(path)


def test_a_header_alone_is_an_empty_list(tmp_path: Path) -> None:
    """The error says which form the list takes."""
    path = tmp_path / "pairs"
    path.write_bytes(b"shard,index\n")
    with pytest.raises(ManifestError, match="is empty; it takes shard,index on a line"):
        read_id_pairs(path)


@pytest.mark.parametrize("read", [read_ids, read_id_pairs])
def test_a_list_with_an_endless_line_is_refused(tmp_path: Path, read: Callable[[Path], IdList]) -> None:
    """A compressed list may have a line of any length, which is not read to its end."""
    path = tmp_path / "ids"
    path.write_bytes(gzip.compress(b" " * (64 << 20), 1))
    tracemalloc.start()
    try:
        with pytest.raises(ManifestError, match="has a line of more than 1,000 bytes"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=30)
@given(st.lists(st.text("0123456789\n", max_size=30)))
def test_ids_are_the_same_however_the_list_is_read(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    """Chunk borders, a byte order mark and a missing last line end make no difference."""
    digits = "".join(parts).replace("\n\n", "\n")
    lines = [line[:18] for line in digits.split("\n") if line] * 3000
    text = "\n".join(lines)
    path = tmp_path_factory.mktemp("ids") / "ids"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    if lines:
        assert read_ids(path).ids.tolist() == sorted(set(map(int, lines)))


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)), min_size=2))
def test_packed_pairs_sort_as_pairs_do(pairs: list[tuple[int, int]]) -> None:
    """Different pairs have different numbers."""
    assert [pack_pair(*pair) for pair in sorted(pairs)] == sorted(pack_pair(*pair) for pair in pairs)
    assert len({pack_pair(*pair) for pair in pairs}) == len(set(pairs))
