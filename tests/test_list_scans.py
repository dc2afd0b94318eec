"""Scans of list files: which rows are selected, where they are, and what is kept of that."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datafetch.datasets.lists import record_blocks, scan
from datafetch.datasets.lists.open_table import open_table
from datafetch.datasets.lists.record_blocks import Block, RecordSplitter
from datafetch.datasets.lists.row_bits import RowBits
from datafetch.datasets.lists.scan import FileScan, ScanKeeper
from datafetch.datasets.lists.text_table import FieldParser
from datafetch.datasets.lists.where import parse_conditions
from datafetch.datasets.readers import BadRow


class MemoryCache:
    """Keeps scans in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def read(self, key: str, max_bytes: int) -> bytes | None:
        """What was kept."""
        content = self.kept.get(key)
        return content if content is not None and len(content) <= max_bytes else None

    def write(self, key: str, content: bytes) -> None:
        """Keep it."""
        self.kept[key] = content


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 70_000)), max_size=5), st.integers(0, 10**5), st.integers(0, 99)
)
def test_the_nth_selected_row_is_found(runs: list[tuple[bool, int]], start: int, count: int) -> None:
    """Rows are found by their number among those that are selected, also after they were kept."""
    bits = RowBits()
    for is_selected, rows in runs:
        if is_selected:
            bits.add(np.arange(rows) % 3 == 0)
        else:
            bits.add_unselected(rows)
    rows = sum(rows for _, rows in runs)
    expected = np.flatnonzero(
        np.concatenate([np.empty(0, np.bool_), *((np.arange(rows) % 3 == 0) & chosen for chosen, rows in runs)])
    )
    for one in (bits, RowBits.from_bytes(bits.to_bytes(), rows)):
        assert (one.rows, one.selected) == (rows, len(expected))
        assert one.numbers(start, start + count).tolist() == expected[start : start + count].tolist()
        assert one.numbers(0, one.selected).tolist() == expected.tolist()


def test_what_is_kept_is_not_taken_if_it_is_damaged_or_another_scans() -> None:
    """A changed byte, a shorter file or another key costs a new scan, and gives no wrong rows."""
    found = FileScan(selects=True)
    assert found.bits is not None
    found.bits.add(np.array([True, False, True]))
    found.rows, found.unreadable, found.starts, found.first_rows, found.is_complete = 3, 1, [0], [0], True
    kept = found.to_bytes("key")
    read = FileScan.from_bytes("key", kept, selects=True)
    assert read is not None
    assert (read.numbers(0, 9).tolist(), read.starts, read.rows, read.is_complete) == ([0, 2], [0], 3, True)
    assert read.unreadable == 1
    assert FileScan.from_bytes("other", kept, selects=True) is None
    for damaged in (kept[:-1], kept[:40] + bytes([kept[40] ^ 1]) + kept[41:], b"", kept + b"x"):
        assert FileScan.from_bytes("key", damaged, selects=True) is None


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".txt"])
def test_a_scan_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """What an interrupted scan has kept is not read again, and the result is that of an undisturbed one."""
    lines = {
        ".csv": ["url,n", *(f'http://a.example/{n},"{n}\n"' for n in range(5000))],
        ".jsonl": [f'{{"url": "http://a.example/{n}", "n": {n}}}' for n in range(5000)],
        ".json": ["[", ",\n".join(f'{{"url": "http://a.example/{n}", "n": {n}}}' for n in range(5000)), "]"],
        ".txt": [f"http://a.example/{n}" for n in range(5000)],
    }[suffix]
    path = tmp_path / f"list{suffix}"
    path.write_text("\n".join(lines))
    monkeypatch.setattr(record_blocks, "_BLOCK_BYTES", 4096)
    monkeypatch.setattr(scan, "_SAVED_EVERY_S", 0.0)
    table = open_table(path)
    undisturbed = table.scan((), ScanKeeper("key", path.stat().st_size, None, selects=False))
    cache, calls = MemoryCache(), itertools.count()

    def kill(_: int) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        table.scan((), ScanKeeper("key", path.stat().st_size, cache, selects=False, advance=kill))
    left: list[int] = []
    resumed = table.scan((), ScanKeeper("key", path.stat().st_size, cache, selects=False, advance=left.append))
    assert 0 < len(left) <= len(undisturbed.starts) - 3, "the blocks before the kill are not read again"
    assert (resumed.rows, resumed.starts, resumed.first_rows) == (
        undisturbed.rows,
        undisturbed.starts,
        undisturbed.first_rows,
    )
    assert resumed.rows == 5000
    numbers = np.array([0, 1, 2499, 2500, 4998, 4999])
    rows = [row for row in table.rows(resumed, numbers, ["url"]) if not isinstance(row, BadRow)]
    assert [row["url"] for row in rows] == [f"http://a.example/{number}" for number in numbers]


def calls_of(monkeypatch: pytest.MonkeyPatch, cls: type, name: str) -> list[object]:
    """Return a list that gets an entry with each call of a method."""
    calls: list[object] = []
    original = getattr(cls, name)

    def counted(self: object, *arguments: object) -> object:
        calls.append(self)
        return original(self, *arguments)

    monkeypatch.setattr(cls, name, counted)
    return calls


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_rows_that_meet_a_condition_are_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: Callable[[bytes], bytes]
) -> None:
    """A scan parses no row by itself, and of the blocks only those with a wanted row are divided into records."""
    path = tmp_path / "list.csv"
    rows = "".join(f'http://a.example/{n},{n},"{n}\n"\n' + "\n" * 9000 * (n == 12_000) for n in range(20_000))
    path.write_bytes(compress(f"url,n,text\n{rows}".encode()))
    monkeypatch.setattr(record_blocks, "_BLOCK_BYTES", 4096)
    table = open_table(path)
    parsed, divided = calls_of(monkeypatch, FieldParser, "parse"), calls_of(monkeypatch, Block, "records")
    conditions = parse_conditions(["n >= 19990"])
    found = table.scan(conditions, ScanKeeper("key", path.stat().st_size, None, selects=True))
    assert found.numbers(0, 99).tolist() == list(range(19_990, 20_000))
    assert not parsed
    assert not divided
    searched = calls_of(monkeypatch, RecordSplitter, "find_ends")
    wanted = np.array([5, 10_000, 11_999, 12_000, 12_001, 19_999])
    assert [row["n"] for row in table.rows(found, wanted, ["n"])] == [f"{n}" for n in wanted]  # type: ignore[index]
    assert len(parsed) == len(wanted)
    assert len(searched) <= len(wanted)
    assert not divided
