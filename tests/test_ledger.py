"""The memory of writing and reading a ledger is bounded in bytes, and not only in lines."""

import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from outputs import line
from test_spool import FAILURE, make_result, make_sample

from datafetch.errors import ConfigurationError
from datafetch.model.ledger_line import LedgerLine, ShardCounts
from datafetch.model.lost_documents import LostDocuments
from datafetch.model.report import FailureCounts
from datafetch.store.ledger_reader import count_failures, read_columns, read_keys, read_samples
from datafetch.store.ledger_writer import LedgerWriter
from datafetch.store.packed_bools import pack_bools
from datafetch.store.shard_summary import ShardSummary, read_shard_counts, read_shard_summary

URL_BYTES = 60_000
LINES = 1500
MOST_BYTES = 60_000_000  # a row group as lines, several times over; all lines have 180 MB


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a ledger of very long lines."""
    path = tmp_path / "part-00000.parquet"
    write(path)
    return path


def long_lines() -> Iterator[LedgerLine]:
    """Yield lines of images whose redirects led to URLs as long as a response's head may be."""
    for number in range(LINES):
        line = make_result(make_sample(number), 0, FAILURE).line
        yield replace(line, final_url=f"http://example.org/{number}?" + "x" * URL_BYTES, detail="y" * URL_BYTES)


def write(path: Path) -> None:
    """Write a ledger of these lines."""
    with LedgerWriter(path, "part-00000") as ledger:
        for line in long_lines():
            ledger.write((line,))
        none = np.zeros(LINES, np.bool_)
        ledger.finish(ShardSummary(ShardCounts(LINES, 0, {"timeout": LINES}), none, none))


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the peak of Python's memory during a call."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_long_lines_are_written_some_megabytes_at_a_time(tmp_path: Path) -> None:
    """Lines of a hundred kilobytes don't wait for thousands of others."""
    path = tmp_path / "part-00000.parquet"
    assert peak_bytes(lambda: write(path)) < MOST_BYTES
    groups = pq.read_metadata(path)
    assert (
        max(groups.row_group(number).num_rows for number in range(groups.num_row_groups)) * 2 * URL_BYTES < 10_000_000
    )


@pytest.mark.rotating
def test_long_lines_are_read_some_megabytes_at_a_time(path: Path) -> None:
    """Reading a ledger takes no more memory than writing it."""

    def read() -> None:
        assert sum(len(lines) for lines in read_samples(path)) == LINES

    assert peak_bytes(read) < MOST_BYTES
    columns = ["url", "final_url", "outcome", "detail"]
    assert all(batch.nbytes < 10_000_000 for batch in read_columns(path, columns))


@pytest.mark.rotating
def test_all_lines_come_back_in_order(path: Path) -> None:
    """Row groups of different sizes are one sequence of lines."""
    assert [lines[0].sample for lines in read_samples(path)] == list(range(LINES))
    assert list(read_keys(path)) == [lines[0].key for lines in read_samples(path)]


@pytest.mark.parametrize(
    "totals",
    [
        {"samples": 2, "rows": 3, "outcomes": {"ok": 3}},
        {"samples": -1, "rows": 0, "outcomes": {}},
        {"samples": 2, "rows": 1, "outcomes": {"ok": -1}},
        {"samples": True, "rows": 0, "outcomes": {}},
        {"samples": 2.0, "rows": 0, "outcomes": {}},
        {"samples": 2, "rows": 0, "outcomes": {"ok": "2"}},
        {"samples": 2, "rows": 0, "outcomes": 2},
        {"samples": 2, "rows": 0, "outcomes": {}, "notes": {"records": -2}},
        {"samples": 2, "rows": 0, "written_bytes": -5},
        {"samples": 2, "rows": 0, "lost": {"by_kind": {"timeout": -1}}},
        {"samples": 2, "rows": 0, "lost": {"by_arrived": [0, "1"]}},
        {"pages": 3},
        [],
    ],
)
def test_impossible_counts_are_refused(tmp_path: Path, totals: object) -> None:
    """They have more rows than samples, negative counts, or other types."""
    path = tmp_path / "part-00000.parquet"
    none = np.zeros(2, np.bool_)
    with LedgerWriter(path, "part-00000") as ledger:
        ledger.finish(ShardSummary(ShardCounts(2, 0, {}), none, none))
    assert read_shard_counts(path) == ShardCounts(2, 0, {})
    metadata = {**(pq.read_metadata(path).metadata or {}), b"datafetch.totals": json.dumps(totals)}
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    for read in (read_shard_counts, read_shard_summary):
        with pytest.raises(ConfigurationError, match="is not a ledger"):
            read(path)


def test_counts_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Lost documents, too; where none are counted the field is absent, since earlier versions refuse it."""
    none = np.zeros(3, np.bool_)
    for lost in (None, LostDocuments({"timeout": 2, "http_status": 1}, (1, 2, 0, 0, 0, 0, 0))):
        path, counts = tmp_path / "part-00000.parquet", ShardCounts(3, 0, {"timeout": 3}, lost=lost)
        with LedgerWriter(path, "part-00000") as ledger:
            ledger.finish(ShardSummary(counts, none, none))
        assert read_shard_counts(path) == counts
        assert (b'"lost"' in pq.read_metadata(path).metadata[b"datafetch.totals"]) == (lost is not None)


@pytest.mark.parametrize(
    "change",
    [
        {b"datafetch.retry": b"once"},
        {b"datafetch.retry": b"-1"},
        {b"datafetch.rows": b"garbage"},
        {b"datafetch.own_rows": b""},
        {b"datafetch.own_rows": pack_bools(np.zeros(9, np.bool_))},
        {b"datafetch.totals": b'{"samples": 4611686018427387904}'},
    ],
)
def test_a_summary_that_contradicts_its_counts_is_refused(tmp_path: Path, change: dict[bytes, bytes]) -> None:
    """A number may be damaged, or the bits be more or fewer than the samples. Nothing is guessed or unpacked."""
    path = tmp_path / "part-00000.parquet"
    none = np.zeros(2, np.bool_)
    with LedgerWriter(path, "part-00000") as ledger:
        ledger.finish(ShardSummary(ShardCounts(2, 0, {}), none, none, retry=3))
    assert read_shard_summary(path).retry == 3
    metadata = {**(pq.read_metadata(path).metadata or {}), **change}
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    with pytest.raises(ConfigurationError, match="is not a ledger"):
        read_shard_summary(path)


def test_failures_are_counted_by_reason_and_by_whether_a_retry_requests_them(tmp_path: Path) -> None:
    """Of documents without a row, a final failure leaves nothing to retry; what was not requested goes along."""
    documents = (  # the outcomes of their images, and whether they have a row
        (["timeout", "not_requested"], False),
        (["timeout", "http_status", "not_requested"], False),
        (["ok", "timeout", "http_status"], True),
        (["ok", "ok"], True),
        (["corrupt"], False),
    )
    lines = [
        replace(line(sample, "http://x.org/", outcome), image=image, status=404 if outcome == "http_status" else None)
        for sample, (outcomes, _) in enumerate(documents)
        for image, outcome in enumerate(outcomes)
    ]
    has_row = np.array([has for _, has in documents], np.bool_)
    path = tmp_path / "a.parquet"
    with LedgerWriter(path, "a") as ledger:
        ledger.write(lines)
        ledger.finish(ShardSummary(ShardCounts(len(documents), 2, {}, 0), has_row, has_row))
    assert count_failures(path) == FailureCounts(
        {"timeout": 3, "HTTP 404": 2, "not_requested": 2, "corrupt": 1}, {"timeout": 2, "not_requested": 1}
    )
    with LedgerWriter(path, "a") as ledger:
        ledger.write([line(0, "http://x.org/")])
        ledger.finish(ShardSummary(ShardCounts(1, 1, {}, 0), has_row[2:3], has_row[2:3]))
    assert count_failures(path) == FailureCounts()
