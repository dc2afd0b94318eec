"""A complete spool becomes the trainer's files, completely or not at all."""

import asyncio
import base64
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from conftest import until
from runs import PATIENCE_S
from test_spool import make_outcome, make_result, make_sample

from datafetch.datasets import find_dataset
from datafetch.errors import ConfigurationError, ConservationError, ResourceError
from datafetch.model.kinds import Payload
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.outcome import Encoded, Failure, FailureKind, Outcome
from datafetch.model.sample import Sample
from datafetch.output import commit_process
from datafetch.output.commit import Commit, commit_shard, complete_commits
from datafetch.output.commit_process import CommitProcesses
from datafetch.output.merge import Output
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_format import SCHEMA
from datafetch.store.ledger_reader import read_keys
from datafetch.store.shard_summary import read_shard_counts
from datafetch.store.spool import Spool

KILLING = Path(__file__).with_name("killing.py")
COYO = find_dataset("coyo")
GONE = Failure(FailureKind.HTTP_STATUS, "HTTP 404", 404, 1, "http://example.org/")


def coyo_sample(position: int) -> Sample:
    """Return a sample of COYO."""
    row = {"id": 100 + position, "url": f"http://example.org/{position}", "text": "猫", "clip_sim": 0.75}
    return replace(make_sample(position), key=str(100 + position), row=row)


def spool(layout: OutputLayout, outcomes: Sequence[Outcome], shard: str = "part-00000") -> Commit:
    """Spool samples with these outcomes, the last one first, and return the commit."""

    async def write() -> None:
        spool = await Spool.open(layout.spool(shard))
        for position in reversed(range(len(outcomes))):
            sample = coyo_sample(position)
            await spool.append(make_result(sample, 0, outcomes[position]), sample)
        await spool.close()

    asyncio.run(write())
    return Commit(Output(COYO, layout), shard, len(outcomes))


@pytest.fixture
def layout(tmp_path: Path) -> OutputLayout:
    """An output that does not exist yet."""
    return OutputLayout(tmp_path / "out")


def test_a_commit_leaves_rows_and_ledger(layout: OutputLayout) -> None:
    """Rows are in manifest order, with a ledger line per image and consistent counts, and there are no other files."""
    outcomes = [make_outcome(number) for number in range(30)]
    totals = commit_shard(spool(layout, outcomes))
    assert sorted(path.name for path in layout.out.iterdir()) == ["part-00000.count", "part-00000.pkl"]
    rows = pickle.loads((layout.out / "part-00000.pkl").read_bytes())
    assert [row["id"] for row in rows] == [100 + number for number in range(30) if number % 3 != 2]
    assert (totals.samples, totals.rows, totals.outcomes) == (30, 20, {"ok": 20, "timeout": 10})
    assert totals.written_bytes == sum(path.stat().st_size for path in layout.out.iterdir())
    table = pq.read_table(layout.ledger("part-00000"))
    assert table.schema.remove_metadata() == SCHEMA
    assert table.column("sample").to_pylist() == list(range(30))
    assert set(table.column("shard").to_pylist()) == {"part-00000"}
    assert table.column("outcome").to_pylist() == ["timeout" if number % 3 == 2 else "ok" for number in range(30)]
    assert set(table.column("detail").to_pylist()) == {"", "too slow"}
    assert read_shard_counts(layout.ledger("part-00000")) == totals
    assert list(read_keys(layout.ledger("part-00000"))) == [str(100 + number) for number in range(30)]
    assert not list(layout.unpublished.iterdir())


def test_the_same_outcomes_give_the_same_bytes(layout: OutputLayout) -> None:
    """Committing again, as after a crash, changes nothing."""
    commit = spool(layout, [make_outcome(number) for number in range(30)])
    commit_shard(commit)
    files = sorted([*layout.out.iterdir(), layout.ledger("part-00000")])
    before = [path.read_bytes() for path in files]
    commit_shard(commit)
    assert [path.read_bytes() for path in files] == before


def test_a_shard_without_rows_leaves_only_its_ledger(layout: OutputLayout) -> None:
    """The trainer would count an empty pickle as a shard."""
    totals = commit_shard(spool(layout, [GONE] * 3))
    assert not layout.out.exists()
    assert (totals.samples, totals.rows, totals.failed, totals.written_bytes) == (3, 0, 3, 0)
    assert read_shard_counts(layout.ledger("part-00000")) == totals


def test_a_shard_without_rows_deletes_old_files(layout: OutputLayout) -> None:
    """A shard that is committed again, now without a row, leaves none of its earlier files."""
    commit_shard(spool(layout, [make_outcome(0)]))
    layout.spool("part-00000").unlink()
    commit_shard(spool(layout, [GONE]))
    assert list(layout.out.iterdir()) == []


def test_with_bytes_instead_of_base64_a_shard_is_a_quarter_smaller(layout: OutputLayout) -> None:
    """The rows and their order are the same; the image has the loader's other name for it."""
    jpegs = [bytes([number]) * 30_000 for number in range(20)]
    commit = spool(layout, [Encoded(jpeg, 4, 3, "PNG") for jpeg in jpegs])
    as_text = commit_shard(commit)
    rows = pickle.loads((layout.out / "part-00000.pkl").read_bytes())
    as_bytes = commit_shard(replace(commit, output=replace(commit.output, payload=Payload.BYTES)))
    smaller_rows = pickle.loads((layout.out / "part-00000.pkl").read_bytes())
    assert as_bytes.written_bytes == pytest.approx(0.75 * as_text.written_bytes, rel=0.01)
    assert [row.pop("rawbytes") for row in smaller_rows] == jpegs
    assert [base64.b64decode(row.pop("image")) for row in rows] == jpegs
    assert smaller_rows == rows


@pytest.mark.parametrize("samples", [2, 4])
def test_inconsistent_counts_publish_nothing(layout: OutputLayout, samples: int) -> None:
    """A missing or an extra sample stops the commit before anything is published."""
    commit = replace(spool(layout, [GONE, make_outcome(0), make_outcome(1)]), samples=samples)
    with pytest.raises(ConservationError, match="part-00000"):
        commit_shard(commit)
    assert not layout.out.exists()
    assert not layout.ledgers.exists()


def test_an_output_that_cannot_be_written_stops_the_run(layout: OutputLayout) -> None:
    """The error says what to do, and the spool is kept."""
    commit = spool(layout, [make_outcome(0)])
    layout.out.write_text("in the way")
    with pytest.raises(ResourceError, match="run the same command again"):
        commit_shard(commit)
    assert layout.spool("part-00000").exists()


def test_publishing_can_be_killed_anywhere(tmp_path: Path) -> None:
    """Killed before any file operation, it is completed by the next process; until then no count is that of other rows.

    The ledger, after which the spool may be deleted, is published when all other files are.
    """
    layout = OutputLayout(tmp_path / "prepared" / "out")
    commit = spool(layout, [make_outcome(0), GONE])
    commit_shard(commit)
    shard = commit.shard
    names = {f"{shard}.pkl", f"{shard}.count"}
    new = {path.name: path.read_bytes() for path in layout.out.iterdir()}
    assert new.keys() == names
    ready = layout.ready / shard
    ready.mkdir(parents=True)
    for path in (*layout.out.iterdir(), layout.kept_for_retry(shard), layout.ledger(shard)):
        path.rename(ready / path.name)
    old = dict.fromkeys(names, b"before")
    for name, content in old.items():
        (layout.out / name).write_bytes(content)
    folder = tmp_path / "killed"
    task = [sys.executable, str(KILLING), "publish", str(tmp_path / "prepared"), str(folder), "1"]
    subprocess.run(task, check=True, timeout=100)
    killed = sorted(folder.iterdir(), key=lambda run: int(run.name))
    assert len(killed) > 10
    for run in killed:
        layout = OutputLayout(run / "out")
        there = {path.name: path.read_bytes() for path in layout.out.iterdir()}
        assert there in (old, new) or (
            there.keys() == {f"{shard}.pkl"} and there.items() <= {*old.items(), *new.items()}
        )
        assert not layout.ledger(shard).exists() or (there == new and layout.kept_for_retry(shard).exists())
        complete_commits(layout)
        assert {path.name: path.read_bytes() for path in layout.out.iterdir()} == new
        assert layout.ledger(shard).exists()
        assert layout.kept_for_retry(shard).exists()
        assert not [*layout.ready.iterdir()]


@pytest.mark.rotating
async def test_in_a_process_of_its_own(layout: OutputLayout) -> None:
    """The process returns the counts, or the error that occurred."""
    commit = await asyncio.to_thread(lambda: asyncio.run(asyncio.to_thread(spool, layout, [make_outcome(0), GONE])))
    async with CommitProcesses() as commit_in_process:
        totals = await commit_in_process(commit)
        assert (totals.samples, totals.rows, totals.failed) == (2, 1, 1)
        with pytest.raises(ConservationError, match="part-00000"):
            await commit_in_process(replace(commit, samples=3))
        with pytest.raises(ResourceError, match="run the same command again"):
            await commit_in_process(replace(commit, shard="part-00009"))


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_a_process_stays_for_the_next_shard(layout: OutputLayout) -> None:
    """Starting one takes as long as writing hundreds of rows. Of several at once, one stays; in the end none does."""
    commits = [await asyncio.to_thread(spool, layout, [make_outcome(n)], f"part-{n:05d}") for n in range(4)]
    async with CommitProcesses() as commit_in_process:
        await commit_in_process(commits[0])
        (first,) = _commit_processes()
        await commit_in_process(commits[1])
        assert _commit_processes() == [first]
        await asyncio.gather(commit_in_process(commits[2]), commit_in_process(commits[3]))
        assert len(_commit_processes()) == 1
    assert not _commit_processes()
    assert len(list(layout.ledgers.iterdir())) == len(commits)


@pytest.mark.rotating
async def test_a_shard_waits_for_a_process_at_work_before_another_is_started(
    layout: OutputLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starting one takes longer than writing a small shard, and as much of the CPU."""
    commits = [await asyncio.to_thread(spool, layout, [make_outcome(n)], f"part-{n:05d}") for n in range(4)]
    monkeypatch.setattr(commit_process, "_WAIT_S", PATIENCE_S)
    async with CommitProcesses() as commit_in_process:
        await commit_in_process(commits[0])
        before = _commit_processes()
        await asyncio.gather(*map(commit_in_process, commits[1:]))
        assert _commit_processes() == before
    assert len(list(layout.ledgers.iterdir())) == len(commits)


@pytest.mark.rotating
@pytest.mark.both_loops
@pytest.mark.parametrize("is_noticed", [False, True])
async def test_a_process_that_was_killed_while_idle_is_replaced(layout: OutputLayout, is_noticed: bool) -> None:
    """It has lost nothing, so no run needs to stop, whether the event loop has found its pipes closed or not."""
    commit = await asyncio.to_thread(lambda: spool(layout, [make_outcome(0)]))
    async with CommitProcesses() as commit_in_process:
        await commit_in_process(commit)
        (idle,) = _commit_processes()
        idle.kill()
        if is_noticed:
            await until(lambda: not psutil.pid_exists(idle.pid))  # the loop has reaped it, and closed its pipes
        assert (await commit_in_process(commit)).rows == 1
        assert idle not in _commit_processes()


def _commit_processes() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "datafetch.output.commit_process" in " ".join(one.cmdline())]


def test_a_file_that_is_not_a_ledger_is_refused(tmp_path: Path) -> None:
    """The error names the file and says what to do."""
    path = tmp_path / "part-00000.parquet"
    path.write_bytes(b"something else")
    with pytest.raises(ConfigurationError, match="--fresh"):
        read_shard_counts(path)


async def _commit_in_process(commit: Commit) -> ShardCounts:
    async with CommitProcesses() as commit_in_process:
        return await commit_in_process(commit)


@pytest.mark.rotating
def test_a_process_returns_the_counts_of_the_commit(layout: OutputLayout, tmp_path: Path) -> None:
    """The counts of a commit process are complete, including those of the manifest's scan."""
    commit = replace(spool(layout, [make_outcome(number) for number in range(5)]), notes={"bad_lines": 3})
    returned = asyncio.run(_commit_in_process(commit))
    other = OutputLayout(tmp_path / "other" / "out")
    same = replace(spool(other, [make_outcome(number) for number in range(5)]), notes={"bad_lines": 3})
    assert returned == commit_shard(same)
    assert returned.notes == {"bad_lines": 3}
