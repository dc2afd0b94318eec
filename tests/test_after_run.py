"""Resharded output is a function of the rows, however many retries added them."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datafetch.errors import ConfigurationError
from datafetch.model.ledger_line import ShardCounts
from datafetch.output.formats import PickleShardWriter, decode_row, encode_row, read_frames
from datafetch.output.reshard.after_run import reshard_output
from datafetch.output.reshard.copy import ProgressMonitor
from datafetch.output.reshard.numbering import NumberedSamples, find_row
from datafetch.output.reshard.plan import Plan
from datafetch.output.reshard.ranks import Ranks, epoch
from datafetch.output.reshard.record import read_reshard_record
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_writer import LedgerWriter
from datafetch.store.shard_summary import ShardSummary

PLAN = Plan(Ranks(2, 2, 1), 7)
Versions = Sequence[int]
"""For each sample of a shard, the version of its row; 0 for no row."""


def publish(layout: OutputLayout, folder: Path, shard: str, rows: Versions, own: Sequence[bool] | None = None) -> None:
    """Write the files of a committed shard; its own file holds the rows of ``own``."""
    has_row = [version > 0 for version in rows]
    own = has_row if own is None else own
    folder.mkdir(parents=True, exist_ok=True)
    layout.ledgers.mkdir(parents=True, exist_ok=True)
    if any(own):
        with closing(PickleShardWriter(folder, shard)) as writer:
            for position, version in enumerate(rows):
                if own[position]:
                    writer.copy_row((encode_row({"key": f"{shard}/{position}", "version": version}),))
            writer.finish()
    with LedgerWriter(layout.ledger(shard), shard) as ledger:
        ledger.finish(
            ShardSummary(ShardCounts(len(rows), sum(has_row)), np.array(has_row, np.bool_), np.array(own, np.bool_))
        )


def contents(layout: OutputLayout) -> dict[str, bytes]:
    """Return the files of the output, by name."""
    return {path.name: path.read_bytes() for path in sorted(layout.out.iterdir())}


def rows_of(layout: OutputLayout) -> list[tuple[str, int]]:
    """Return all rows in the order of the shards."""
    found = (decode_row(frame) for path in sorted(layout.out.glob("*.pkl")) for frame in read_frames(path))
    return [(row["key"], row["version"]) for row in found]


SHARDS = st.lists(st.lists(st.integers(0, 1), max_size=12), min_size=1, max_size=4).filter(
    lambda shards: sum(map(sum, shards)) >= PLAN.ranks.min_rows
)


@pytest.mark.rotating
@settings(max_examples=30)
@given(first=SHARDS, data=st.data(), shuffle=st.sampled_from([None, 0, 7]))
def test_retries_make_no_difference_to_resharded_output(
    tmp_path_factory: pytest.TempPathFactory, first: list[list[int]], data: st.DataObject, shuffle: int | None
) -> None:
    """Rows that are added or replaced later give the same bytes as if all had been there from the start."""
    folder = tmp_path_factory.mktemp("equal")
    layout, plan = OutputLayout(folder / "out"), replace(PLAN, shuffle=shuffle)
    shards = {f"part-{number:05d}": rows for number, rows in enumerate(first)}
    for shard, rows in shards.items():
        publish(layout, layout.out, shard, rows)
    assert reshard_output(layout, list(shards), plan, ProgressMonitor())
    for _ in range(data.draw(st.integers(0, 3))):
        for shard, rows in shards.items():
            changed = data.draw(st.sets(st.integers(0, len(rows) - 1))) if rows else set()
            if changed:
                own = [position in changed for position in range(len(rows))]
                shards[shard] = [version + 1 if mine else version for version, mine in zip(rows, own, strict=True)]
                publish(layout, layout.added, shard, shards[shard], own)
        assert reshard_output(layout, list(shards), plan, ProgressMonitor())
        assert not layout.added.exists()
    at_once = OutputLayout(folder / "at-once")
    for shard, rows in shards.items():
        publish(at_once, at_once.out, shard, rows)
    assert reshard_output(at_once, list(shards), plan, ProgressMonitor())
    assert contents(layout) == contents(at_once)
    expected = [
        (f"{shard}/{position}", version) for shard, rows in shards.items() for position, version in enumerate(rows)
    ]
    found = rows_of(layout)
    assert sorted(found) == sorted((key, version) for key, version in expected if version)
    if shuffle is None:
        assert found == [(key, version) for key, version in expected if version]
    record = read_reshard_record(layout)
    assert record is not None
    assert epoch([file.rows for file in record.files.values()], plan.ranks).is_aligned


def test_other_ranks_get_new_shards(tmp_path: Path) -> None:
    """With another world size the same rows are divided again; with the same one, nothing is done."""
    layout = OutputLayout(tmp_path / "out")
    publish(layout, layout.out, "part-00000", [1] * 40)
    reshard_output(layout, ["part-00000"], PLAN, ProgressMonitor())
    before = {path: path.stat().st_ino for path in layout.out.iterdir()}
    reshard_output(layout, ["part-00000"], PLAN, ProgressMonitor())
    assert {path: path.stat().st_ino for path in layout.out.iterdir()} == before
    reshard_output(layout, ["part-00000"], Plan(Ranks(5, 2, 1), None), ProgressMonitor())
    assert len(list(layout.out.glob("*.pkl"))) == 5
    assert rows_of(layout) == [(f"part-00000/{position}", 1) for position in range(40)]


@pytest.mark.parametrize("shuffle", [None, 7])
def test_each_sample_is_explained_by_the_file_and_number_of_its_row(tmp_path: Path, shuffle: int | None) -> None:
    """In resharded files, whatever their order; a sample without a row has no place."""
    layout, shards = OutputLayout(tmp_path / "out"), ["a", "b"]
    for shard in shards:
        publish(layout, layout.out, shard, [1, 0, 1, 1] * 10)
    reshard_output(layout, shards, replace(PLAN, shuffle=shuffle), ProgressMonitor())
    record = read_reshard_record(layout)
    assert record is not None
    samples = NumberedSamples.read(layout, shards)
    for shard in shards:
        for position in range(40):
            place = find_row(samples, record, shard, position)
            assert (place is None) is (position % 4 == 1)
            if place is not None:
                frame = list(read_frames(layout.out / place.file))[place.number]
                assert decode_row(frame)["key"] == f"{shard}/{position}"


def test_too_few_rows_are_not_resharded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Too few rows for the ranks are not an error; a warning is logged."""
    layout = OutputLayout(tmp_path / "out")
    publish(layout, layout.out, "part-00000", [1, 0, 1])
    before = contents(layout)
    assert reshard_output(layout, ["part-00000"], Plan(Ranks(), 0), ProgressMonitor())
    assert contents(layout) == before
    assert not layout.reshard_record.exists()
    assert "2 rows are too few for 64 ranks, which take at least 512" in caplog.text


def test_stopped_work_is_resumed(tmp_path: Path) -> None:
    """When it is stopped, the output is unchanged; the next call completes the work."""
    layout, monitor = OutputLayout(tmp_path / "out"), ProgressMonitor()
    publish(layout, layout.out, "part-00000", [1] * 40)
    before = contents(layout)
    monitor.stop.set()
    assert not reshard_output(layout, ["part-00000"], PLAN, monitor)
    assert contents(layout) == before
    assert reshard_output(layout, ["part-00000"], PLAN, ProgressMonitor())
    assert len(rows_of(layout)) == 40


def test_missing_shards_are_refused(tmp_path: Path) -> None:
    """The samples of a lost shard are unknown, so the run is refused."""
    layout = OutputLayout(tmp_path / "out")
    publish(layout, layout.out, "part-00000", [1] * 40)
    reshard_output(layout, ["part-00000"], PLAN, ProgressMonitor())
    record = read_reshard_record(layout)
    assert record is not None
    record.refuse_missing(layout)
    (layout.out / "part-00001.pkl").write_bytes(b"short")
    with pytest.raises(ConfigurationError, match=r"part-00001\.pkl or its \.count is missing"):
        record.refuse_missing(layout)
    layout.reshard_record.write_bytes(b'{"world_size": 2}')
    with pytest.raises(ConfigurationError, match="is damaged"):
        read_reshard_record(layout)
