"""Equal shards are a function of the rows that there are, however many retries brought them."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datafetch.errors import ConfigurationError
from datafetch.model.ledger_line import Totals
from datafetch.output.formats import PickleSink, decode_row, encode_row, read_frames
from datafetch.output.reshard.after_run import make_equal
from datafetch.output.reshard.copy import Plan, Watch
from datafetch.output.reshard.ranks import Ranks, epoch
from datafetch.output.reshard.record import read_arrangement
from datafetch.store.layout import State
from datafetch.store.ledger import Books, LedgerWriter

PLAN = Plan(Ranks(2, 2, 1), 7)
Versions = Sequence[int]
"""For each sample of a shard the version of its row; 0 is none."""


def publish(state: State, folder: Path, shard: str, rows: Versions, own: Sequence[bool] | None = None) -> None:
    """Leave a shard as a commit leaves it, those rows in its file that are its own."""
    has_row = [version > 0 for version in rows]
    own = has_row if own is None else own
    folder.mkdir(parents=True, exist_ok=True)
    state.ledgers.mkdir(parents=True, exist_ok=True)
    if any(own):
        with closing(PickleSink(folder, shard)) as sink:
            for position, version in enumerate(rows):
                if own[position]:
                    sink.write_frame((encode_row({"key": f"{shard}/{position}", "version": version}),))
            sink.finish()
    with LedgerWriter(state.ledger(shard), shard) as ledger:
        ledger.finish(Books(Totals(len(rows), sum(has_row)), np.array(has_row, np.bool_), np.array(own, np.bool_)))


def contents(state: State) -> dict[str, bytes]:
    """What the trainer sees."""
    return {path.name: path.read_bytes() for path in sorted(state.out.iterdir())}


def rows_of(state: State) -> list[tuple[str, int]]:
    """All rows in the order of the shards."""
    found = (decode_row(frame) for path in sorted(state.out.glob("*.pkl")) for frame in read_frames(path))
    return [(row["key"], row["version"]) for row in found]


SHARDS = st.lists(st.lists(st.integers(0, 1), max_size=12), min_size=1, max_size=4).filter(
    lambda shards: sum(map(sum, shards)) >= PLAN.ranks.least_rows
)


@settings(deadline=None, max_examples=30)
@given(first=SHARDS, data=st.data(), shuffle=st.sampled_from([None, 0, 7]))
def test_after_retries_as_if_there_had_been_none(
    tmp_path_factory: pytest.TempPathFactory, first: list[list[int]], data: st.DataObject, shuffle: int | None
) -> None:
    """Rows that come later, or anew, lie where they would have lain had they been there at once, byte for byte."""
    folder = tmp_path_factory.mktemp("equal")
    state, plan = State(folder / "out"), replace(PLAN, shuffle=shuffle)
    shards = {f"part-{number:05d}": rows for number, rows in enumerate(first)}
    for shard, rows in shards.items():
        publish(state, state.out, shard, rows)
    assert make_equal(state, list(shards), plan, Watch())
    for _ in range(data.draw(st.integers(0, 3))):
        for shard, rows in shards.items():
            changed = data.draw(st.sets(st.integers(0, len(rows) - 1))) if rows else set()
            if changed:
                own = [position in changed for position in range(len(rows))]
                shards[shard] = [version + 1 if mine else version for version, mine in zip(rows, own, strict=True)]
                publish(state, state.added, shard, shards[shard], own)
        assert make_equal(state, list(shards), plan, Watch())
        assert not state.added.exists()
    at_once = State(folder / "at-once")
    for shard, rows in shards.items():
        publish(at_once, at_once.out, shard, rows)
    assert make_equal(at_once, list(shards), plan, Watch())
    assert contents(state) == contents(at_once)
    expected = [
        (f"{shard}/{position}", version) for shard, rows in shards.items() for position, version in enumerate(rows)
    ]
    found = rows_of(state)
    assert sorted(found) == sorted((key, version) for key, version in expected if version)
    if shuffle is None:
        assert found == [(key, version) for key, version in expected if version]
    arrangement = read_arrangement(state)
    assert arrangement is not None
    assert epoch([file.rows for file in arrangement.files.values()], plan.ranks).is_aligned


def test_for_other_ranks_they_are_made_again(tmp_path: Path) -> None:
    """The same rows for another world size; for the same one nothing is done."""
    state = State(tmp_path / "out")
    publish(state, state.out, "part-00000", [1] * 40)
    make_equal(state, ["part-00000"], PLAN, Watch())
    before = {path: path.stat().st_ino for path in state.out.iterdir()}
    make_equal(state, ["part-00000"], PLAN, Watch())
    assert {path: path.stat().st_ino for path in state.out.iterdir()} == before
    make_equal(state, ["part-00000"], Plan(Ranks(5, 2, 1), None), Watch())
    assert len(list(state.out.glob("*.pkl"))) == 5
    assert rows_of(state) == [(f"part-00000/{position}", 1) for position in range(40)]


def test_too_few_rows_stay_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A handful of rows for 64 ranks is no error of the run, but it is said."""
    state = State(tmp_path / "out")
    publish(state, state.out, "part-00000", [1, 0, 1])
    before = contents(state)
    assert make_equal(state, ["part-00000"], Plan(Ranks(), 0), Watch())
    assert contents(state) == before
    assert not state.equal.exists()
    assert "2 rows are too few for 64 ranks, which take at least 512" in caplog.text


def test_a_stopped_one_goes_on(tmp_path: Path) -> None:
    """Asked to stop, it leaves the output as it was; asked again, it ends as if it had not been stopped."""
    state, watch = State(tmp_path / "out"), Watch()
    publish(state, state.out, "part-00000", [1] * 40)
    before = contents(state)
    watch.stop.set()
    assert not make_equal(state, ["part-00000"], PLAN, watch)
    assert contents(state) == before
    assert make_equal(state, ["part-00000"], PLAN, Watch())
    assert len(rows_of(state)) == 40


def test_shards_that_are_missing_are_not_gone_on_with(tmp_path: Path) -> None:
    """Which samples a lost shard had can't be told from its name, so nothing is done without it."""
    state = State(tmp_path / "out")
    publish(state, state.out, "part-00000", [1] * 40)
    make_equal(state, ["part-00000"], PLAN, Watch())
    arrangement = read_arrangement(state)
    assert arrangement is not None
    arrangement.refuse_missing(state)
    (state.out / "part-00001.pkl").write_bytes(b"short")
    with pytest.raises(ConfigurationError, match=r"part-00001\.pkl or its \.count is missing"):
        arrangement.refuse_missing(state)
    state.equal.write_bytes(b'{"world_size": 2}')
    with pytest.raises(ConfigurationError, match="is damaged"):
        read_arrangement(state)
