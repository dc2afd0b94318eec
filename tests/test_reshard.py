"""Resharding: nothing is lost, whatever happens during the work, and no other file changes."""

import json
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import SMALL_BUFFER_BYTES, reshard_for_four_ranks

from datafetch.cli.app import main
from datafetch.errors import ConfigurationError, ConservationError, ManifestError, ResourceError
from datafetch.model.statistics import ReshardProgress, ReshardStage
from datafetch.output.formats import PickleShardWriter, encode_row
from datafetch.output.reshard import copy
from datafetch.output.reshard.copy import ProgressMonitor
from datafetch.output.reshard.folder import ReshardRequest, reshard
from datafetch.output.reshard.plan import Plan, Source, permutation
from datafetch.output.reshard.ranks import Ranks, epoch
from datafetch.output.reshard.shard_writer import ReshardWriter, shard_name
from datafetch.output.reshard.swap import complete_swap
from datafetch.store.layout import OutputLayout
from datafetch.store.lock import Lock

Row = dict[str, Any]
_IMPOSSIBLE_STACK_BYTES = 1 << 62  # of a thread, which then can't be started
KILLING = Path(__file__).with_name("killing.py")


def pairs(rows: int) -> list[Row]:
    """Return rows of pairs of all lengths."""
    return [{"id": number, "text": "桜" * (number % 5), "image": "x" * (number * 37 % 101)} for number in range(rows)]


def write_shards(folder: Path, rows: Sequence[Row], sizes: Sequence[int]) -> Path:
    """Write rows as shards of these sizes."""
    folder.mkdir(parents=True)
    left = iter(rows)
    for number, size in enumerate(sizes):
        with closing(PickleShardWriter(folder, f"part-{number:05d}")) as writer:
            for _ in range(size):
                writer.copy_row((encode_row(next(left)),))
            writer.finish()
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files in a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def read_shards(folder: Path) -> list[list[Row]]:
    """Return the rows that the trainer's loader reads, shard by shard."""
    shards = []
    for path in sorted(folder.glob("*.pkl")):
        shards.append(pickle.loads(path.read_bytes()))
        assert int(path.with_suffix(".count").read_text().strip()) == len(shards[-1])
    assert len(list(folder.iterdir())) == 2 * len(shards)
    return shards


@pytest.fixture(autouse=True)
def _few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make small shards take several buffers."""
    monkeypatch.setattr(copy, "_BUFFER_BYTES", SMALL_BUFFER_BYTES)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Fifty pairs in four shards, one of them empty."""
    return write_shards(tmp_path / "source", pairs(50), [20, 0, 3, 27])


@pytest.fixture
def undisturbed(tmp_path: Path, source: Path) -> dict[str, bytes]:
    """The shards that an uninterrupted run makes."""
    reshard_for_four_ranks(source, tmp_path / "undisturbed")
    return files_of(tmp_path / "undisturbed")


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    ranks=st.builds(Ranks, st.integers(1, 6), st.integers(1, 3), st.integers(1, 4)),
    seed=st.none() | st.integers(0, 2**63 - 1),
    buffer_bytes=st.sampled_from([1, 500, 1 << 20]),
)
def test_nothing_is_lost_and_every_rank_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], ranks: Ranks, seed: int | None, buffer_bytes: int
) -> None:
    """Every row is there once, in the order of the seed, in shards that satisfy the loader."""
    folder = tmp_path_factory.mktemp("reshard")
    rows = pairs(sum(sizes))
    source = write_shards(folder / "source", rows, sizes)
    before = files_of(source)
    request = ReshardRequest(source, folder / "out", ranks.world_size, ranks.batch, ranks.group, seed)
    if not rows or len(rows) < ranks.min_rows:
        with pytest.raises((ConfigurationError, ManifestError), match=r"too few|have no rows"):
            reshard(request)
        assert sorted(path.name for path in folder.iterdir()) == ["source"]
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copy, "_BUFFER_BYTES", buffer_bytes)
        made = reshard(request)
    shards = read_shards(folder / "out")
    seen = epoch([len(shard) for shard in shards], ranks)
    assert made is not None
    assert made.epoch == seen
    assert (seen.unread, seen.is_aligned or ranks.world_size == 1) == (0, True)
    assert seen.samples - seen.used < ranks.min_rows
    placed = [rows[position] for position in np.argsort(permutation(len(rows), seed))]
    assert [row for shard in shards for row in shard] == placed
    assert files_of(source) == before
    assert [path.name for path in OutputLayout(folder / "out").state_folder.iterdir() if path.name != "lock"] == [
        "equal.json"
    ]


def test_the_order_of_a_seed_never_changes() -> None:
    """The permutation of a seed is the same as when this test was written."""
    assert permutation(8, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert permutation(5, None).tolist() == [0, 1, 2, 3, 4]
    assert sorted(permutation(1000, 1)) == list(range(1000))
    assert permutation(1000, 1).tolist() != permutation(1000, 2).tolist()


@pytest.mark.rotating
def test_shards_of_more_than_a_thousand_rows_are_as_a_sink_writes_them(tmp_path: Path) -> None:
    """A shard that is written in any order has the same bytes as one written row by row."""
    rows = pairs(5003)
    source = write_shards(tmp_path / "source", rows, [2500, 2503])
    reshard(ReshardRequest(source, tmp_path / "out", world_size=2, batch=1, group=1, shuffle=3))
    shards = read_shards(tmp_path / "out")
    assert [len(shard) for shard in shards] == [2502, 2501]
    again = write_shards(tmp_path / "again", [row for shard in shards for row in shard], [2502, 2501])
    assert files_of(again) == files_of(tmp_path / "out")


@pytest.mark.parametrize(("shards", "last"), [(1, "part-00000"), (100_000, "part-99999"), (100_001, "part-100000")])
def test_names_sort_as_numbers_do(shards: int, last: str) -> None:
    """For any number of shards, the order of their names is the order of the shards."""
    names = [shard_name(number, shards) for number in range(shards)]
    assert names == sorted(names)
    assert names[-1] == last


@pytest.mark.rotating
def test_a_killed_run_resumes_with_the_same_bytes(tmp_path: Path, source: Path, undisturbed: dict[str, bytes]) -> None:
    """A run that is killed before any file operation, and run again, makes what an uninterrupted run makes."""
    before = files_of(source)
    folder = tmp_path / "killed"
    task = ["reshard", str(source), str(folder), "7"]
    subprocess.run([sys.executable, str(KILLING), *task], check=True, timeout=100)
    runs = sorted(folder.iterdir(), key=lambda run: int(run.name))
    assert len(runs) > 12
    assert files_of(runs.pop() / "out") == undisturbed
    seen_done = set()
    for run in runs:
        out = run / "out"
        assert not out.exists() or files_of(out) == undisturbed
        journal = OutputLayout(out).resharding / "journal.json"
        seen_done.add(json.loads(journal.read_bytes())["done"] if journal.exists() else None)
        reshard_for_four_ranks(source, out, ProgressMonitor())
        assert files_of(out) == undisturbed
        assert {path.name for path in OutputLayout(out).state_folder.iterdir()} == {"lock", "equal.json"}
    assert seen_done >= {None, 0, 3, 4}
    assert files_of(source) == before


def test_rows_in_the_journal_are_not_copied_again(tmp_path: Path, source: Path, undisturbed: dict[str, bytes]) -> None:
    """A stopped run keeps what it has, and the next one copies only the rest."""
    out, stop = tmp_path / "out", threading.Event()

    def stop_in_the_last_shard(progress: ReshardProgress) -> None:
        if progress.stage is ReshardStage.COPY and progress.rows > 23:
            stop.set()

    request = ReshardRequest(source, out, world_size=4, batch=1, group=2)
    assert reshard(request, ProgressMonitor(stop_in_the_last_shard, stop, journal_interval_s=0)) is None
    assert not out.exists()
    reports: list[ReshardProgress] = []
    assert reshard(request, ProgressMonitor(reports.append)) is not None
    assert files_of(out) == undisturbed
    copying = [progress for progress in reports if progress.stage is ReshardStage.COPY]
    assert copying[0].rows > 23
    assert copying[-1].rows == 50
    assert copying[-1].copied_bytes < (source / "part-00003.pkl").stat().st_size


@pytest.mark.parametrize("stage", [ReshardStage.MEASURE, ReshardStage.CHECK])
def test_resharding_can_be_stopped_at_any_stage(
    tmp_path: Path, source: Path, undisturbed: dict[str, bytes], stage: ReshardStage
) -> None:
    """Work that is stopped in one of its stages is resumed by the next call."""
    stop = threading.Event()

    def stop_there(progress: ReshardProgress) -> None:
        if progress.stage is stage:
            stop.set()

    request = ReshardRequest(source, tmp_path / "out", world_size=4, batch=1, group=2)
    assert reshard(request, ProgressMonitor(stop_there, stop)) is None
    assert not (tmp_path / "out").exists()
    reshard(request)
    assert files_of(tmp_path / "out") == undisturbed


def test_an_observer_that_fails_is_not_called_again(caplog: pytest.LogCaptureFixture) -> None:
    """The work continues, and the failure is logged once."""
    seen = []

    def observe(progress: ReshardProgress) -> None:
        seen.append(progress)
        raise OSError("the terminal is gone")

    monitor = ProgressMonitor(observe)
    for rows in range(3):
        monitor.report(ReshardProgress(ReshardStage.COPY, rows, 3))
    assert len(seen) == len(caplog.records) == 1


def test_unfinished_shards_of_another_request_are_discarded(tmp_path: Path, source: Path) -> None:
    """Unfinished work with other parameters, or on other rows, is discarded."""
    out, stop = tmp_path / "out", threading.Event()
    monitor = ProgressMonitor(lambda progress: stop.set() if progress.stage is ReshardStage.CHECK else None, stop)
    assert reshard(ReshardRequest(source, out, world_size=6, batch=1, group=1), monitor) is None
    shutil.rmtree(source)
    write_shards(source, pairs(40), [40])
    reshard(ReshardRequest(source, out, world_size=2, batch=1, group=1, shuffle=None))
    assert read_shards(out) == [pairs(40)[:20], pairs(40)[20:]]


def test_damaged_unfinished_shards_are_detected(tmp_path: Path, source: Path, undisturbed: dict[str, bytes]) -> None:
    """If the disk lost what was written, an error says so; nothing is published, and all is written again."""
    out, stop = tmp_path / "out", threading.Event()
    request = ReshardRequest(source, out, world_size=4, batch=1, group=2)
    monitor = ProgressMonitor(lambda now: stop.set() if now.stage is ReshardStage.CHECK else None, stop)
    assert reshard(request, monitor) is None
    shard = OutputLayout(out).resharding / "shards" / "part-00001.pkl"
    content = shard.read_bytes()
    shard.write_bytes(content[:4] + bytes(9) + content[13:])
    with pytest.raises(ResourceError, match="does not hold what was written to it"):
        reshard(request)
    assert not out.exists()
    reshard(request)
    assert files_of(out) == undisturbed


def _folder(out: Path) -> None:
    write_shards(out, pairs(5), [2, 3])


def _link(out: Path) -> None:
    _folder(out.with_name("elsewhere"))
    out.symlink_to("elsewhere")


def _nothing(_: Path) -> None:
    pass


@pytest.mark.rotating
@pytest.mark.parametrize(
    ("make_old", "task"),
    [(_folder, "swap"), (_folder, "swap-apart"), (_link, "swap"), (_nothing, "swap")],
)
def test_a_swap_can_be_killed_anywhere(
    tmp_path: Path, source: Path, make_old: Callable[[Path], None], task: str
) -> None:
    """A swap that is killed before each of its steps is completed by the next one; the output never holds a mixture.

    Where two folders can change places, there is an output at every moment.
    """
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    old, new = _prepare_swap(prepared, source, make_old)
    folder = tmp_path / "killed"
    subprocess.run([sys.executable, str(KILLING), task, str(prepared), str(folder), "1"], check=True, timeout=100)
    runs = sorted(folder.iterdir(), key=lambda run: int(run.name))
    assert len(runs) > 5
    for run in runs:
        layout = OutputLayout(run / "out")
        there = files_of(layout.out) if layout.out.exists() else {}
        assert there.items() <= old.items() or there.items() <= new.items()
        assert there in (old, new) or (make_old, task) != (_folder, "swap")
        assert {name for name in there if name.endswith(".count")} <= {
            name.replace(".pkl", ".count") for name in there if name.endswith(".pkl")
        }
        assert there == new or (layout.resharded / "equal.json").exists()
        for _ in range(2):
            complete_swap(layout)
            assert files_of(layout.out) == new
            assert [path.name for path in layout.state_folder.iterdir()] == ["equal.json"]
            assert json.loads(layout.reshard_record.read_bytes())["rows"] == 50
        assert layout.out.is_symlink() == (make_old is _link)


def _prepare_swap(
    folder: Path, source: Path, make_old: Callable[[Path], None]
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Prepare complete new shards, an old output, and rows that were added to it."""
    layout = OutputLayout(folder / "out")
    reshard_for_four_ranks(source, folder / "made")
    layout.resharded.mkdir(parents=True)
    (folder / "made").rename(layout.resharded / "shards")
    facts = json.loads(OutputLayout(folder / "made").reshard_record.read_bytes())
    facts["replaces"] = ["part-00000", "part-00001"]  # what the old output has
    (layout.resharded / "equal.json").write_text(json.dumps(facts))
    shutil.rmtree(OutputLayout(folder / "made").state_folder)
    layout.reshard_record.write_text('{"rows": 5}')
    write_shards(layout.added, pairs(3), [3])
    make_old(layout.out)
    return files_of(layout.out) if layout.out.exists() else {}, files_of(layout.resharded / "shards")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own, of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    command = [mount or "", "-t", "tmpfs", "-o", "size=256k", "datafetch-test", str(folder)]
    if not mount or not umount or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only who may mount filesystems can fill one up")
    yield folder
    subprocess.run([umount, "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_it_until_there_is_space(
    tmp_path: Path, source: Path, undisturbed: dict[str, bytes], small_disk: Path
) -> None:
    """A disk that fills up in the middle of a row stops the run with one line; with more space, it is resumed."""
    out, filler = small_disk / "out", small_disk / "filler"

    def fill(progress: ReshardProgress) -> None:
        if progress.stage is ReshardStage.COPY and not filler.exists():
            with filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)) == 4096:
                    pass

    write_shards(tmp_path / "large", [{**row, "image": "y" * 3000} for row in pairs(50)], [20, 30])
    with pytest.raises(ResourceError, match="No space left"):
        reshard_for_four_ranks(tmp_path / "large", out, ProgressMonitor(fill))
    assert not out.exists()
    with pytest.raises(ResourceError, match=r"resharding needs .* more bytes in"):
        reshard_for_four_ranks(tmp_path / "large", out)
    filler.unlink()
    reshard_for_four_ranks(tmp_path / "large", out)
    reshard_for_four_ranks(tmp_path / "large", tmp_path / "expected")
    assert files_of(out) == files_of(tmp_path / "expected")
    reshard_for_four_ranks(source, small_disk / "other")
    assert files_of(small_disk / "other") == undisturbed


def test_too_little_space_is_reported_before_anything_is_written(
    tmp_path: Path, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The message has both numbers, the exit code is 4, and nothing is written."""
    source = write_shards(tmp_path / "source", [{**row, "image": "y" * 9000} for row in pairs(50)], [50])
    assert main(["reshard", str(source), str(small_disk / "out"), "--world-size", "2"]) == 4
    printed = capfd.readouterr()
    assert "resharding needs 4" in printed.err
    assert "are free; free some space" in printed.err
    assert printed.err.count("\n") == 1
    layout = OutputLayout(small_disk / "out")
    assert not layout.out.exists()
    assert not (layout.resharding / "shards").exists()


def test_a_machine_without_threads_stops_it_until_there_are_some(
    tmp_path: Path, source: Path, undisturbed: dict[str, bytes]
) -> None:
    """A caller of the library gets the error of a machine that has run out of something, as the command does."""
    size_before = threading.stack_size(_IMPOSSIBLE_STACK_BYTES)
    try:
        with pytest.raises(ResourceError, match="out of system resources"):
            reshard_for_four_ranks(source, tmp_path / "out")
    finally:
        threading.stack_size(size_before)
    reshard_for_four_ranks(source, tmp_path / "out")
    assert files_of(tmp_path / "out") == undisturbed


def test_an_output_on_another_filesystem_gets_its_files_one_by_one(
    tmp_path: Path, source: Path, undisturbed: dict[str, bytes], small_disk: Path
) -> None:
    """A folder that is a mount point, or behind a link to another filesystem, gets the same files."""
    reshard_for_four_ranks(source, small_disk)
    assert files_of(small_disk) == undisturbed
    for path in small_disk.iterdir():
        path.unlink()
    (tmp_path / "link").symlink_to(small_disk)
    reshard_for_four_ranks(source, tmp_path / "link")
    assert files_of(small_disk) == undisturbed


def test_a_state_folder_on_another_filesystem_is_no_hindrance(
    tmp_path: Path, source: Path, undisturbed: dict[str, bytes], small_disk: Path
) -> None:
    """If folders can't be renamed, files are moved, and the old ones are deleted."""
    layout = OutputLayout(tmp_path / "out")
    layout.state_folder.symlink_to(small_disk)
    reshard_for_four_ranks(source, layout.out)
    assert files_of(layout.out) == undisturbed
    assert {path.name for path in layout.state_folder.iterdir()} == {"lock", "equal.json"}


def test_third_party_files_at_the_outputs_path_are_kept(tmp_path: Path, source: Path) -> None:
    """Third-party files that appear at the output's path stay, and so do all shards, until they are moved away."""
    _, new = _prepare_swap(tmp_path, source, _folder)
    layout = OutputLayout(tmp_path / "out")
    layout.out.rename(layout.replaced)
    layout.out.mkdir()
    (layout.out / "mine").touch()
    with pytest.raises(ConfigurationError, match="holds something else; move that away"):
        complete_swap(layout)
    assert files_of(layout.out) == {"mine": b""}
    assert files_of(layout.resharded / "shards") == new
    (layout.out / "mine").unlink()
    complete_swap(layout)
    assert files_of(layout.out) == new


def test_folders_that_were_copied_during_the_swap_are_not_mixed_up(tmp_path: Path, source: Path) -> None:
    """If it is unclear which of two folders is the new one, nothing is done, and the message says what to do."""
    old, new = _prepare_swap(tmp_path, source, _folder)
    layout = OutputLayout(tmp_path / "out")
    marker = layout.resharded / "exchanging"
    marker.write_text("0")
    with pytest.raises(ConfigurationError, match=f"if {layout.out} does, delete"):
        complete_swap(layout)
    assert files_of(layout.out) == old
    assert files_of(layout.resharded / "shards") == new
    marker.unlink()
    complete_swap(layout)
    assert files_of(layout.out) == new


def test_the_outputs_own_shards_can_be_its_source(tmp_path: Path) -> None:
    """The output's shards are replaced by new ones of the same rows, in one step."""
    rows = pairs(50)
    layout = OutputLayout(tmp_path / "out")
    write_shards(layout.out, rows, [41, 9])
    layout.state_folder.mkdir()
    positions = permutation(50, 7)
    sources = [
        Source(layout.out / "part-00000.pkl", 41, positions[:41]),
        Source(layout.out / "part-00001.pkl", 9, positions[41:]),
    ]
    assert copy.reshard_rows(layout, sources, plan=Plan(Ranks(5, 1, 1), 7), samples={"a": "00"})
    assert [row for shard in read_shards(layout.out) for row in shard] == [rows[at] for at in np.argsort(positions)]
    record = json.loads(layout.reshard_record.read_bytes())
    assert {name: record[name] for name in ("samples", "world_size", "batch", "group", "shuffle", "rows")} == {
        "samples": {"a": "00"},
        "world_size": 5,
        "batch": 1,
        "group": 1,
        "shuffle": 7,
        "rows": 50,
    }
    assert record["files"] == {
        path.stem: [10, path.stat().st_size] for path in sorted(layout.out.iterdir()) if path.suffix == ".pkl"
    }


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_third_party_shards_are_accepted(tmp_path: Path, protocol: int) -> None:
    """Shards of any pickle protocol are copied completely, also if their rows share values."""
    same = "the same text, object for object"
    rows = [{"text": same, "image": f"{number}", "clip_sim": np.float32(0.5)} for number in range(20)]
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.pkl").write_bytes(pickle.dumps(rows, protocol))
    (source / "a.count").write_text("20\n")
    reshard(ReshardRequest(source, tmp_path / "out", world_size=2, batch=1, group=1, shuffle=None))
    assert read_shards(tmp_path / "out") == [rows[:10], rows[10:]]


def _hostile_whole(folder: Path, attack: bytes) -> None:
    (folder / "part-00000.pkl").write_bytes(b"\x80\x04](" + attack + b"e.")


def _hostile_frame(folder: Path, attack: bytes) -> None:
    frame = b"\x95" + len(attack).to_bytes(8, "little") + attack
    shard = folder / "part-00000.pkl"
    content = shard.read_bytes()
    shard.write_bytes(content[:4] + content[4:-2] + frame + content[-2:])
    (folder / "part-00000.count").write_text("21")


@pytest.mark.parametrize("poison", [_hostile_whole, _hostile_frame])
def test_a_hostile_shard_is_refused(tmp_path: Path, source: Path, poison: Callable[[Path, bytes], None]) -> None:
    """A pickle that would call something is neither executed nor copied, even if it is hidden among rows."""
    trap = tmp_path / "sprung"
    poison(source, b"cposix\nmkdir\n" + pickle.dumps((str(trap),), 2)[2:-1] + b"R")
    with pytest.raises(ManifestError, match=r"part-00000\.pkl.*posix\.mkdir"):
        reshard_for_four_ranks(source, tmp_path / "out")
    assert not trap.exists()
    assert not (tmp_path / "out").exists()


def _too_high(folder: Path) -> None:
    (folder / "part-00000.count").write_text("21")


def _absurd(folder: Path) -> None:
    (folder / "part-00000.count").write_text("9" * 18)


def _negative(folder: Path) -> None:
    (folder / "part-00000.count").write_text("-1")


def _no_number(folder: Path) -> None:
    (folder / "part-00000.count").write_text("many")


def _no_count(folder: Path) -> None:
    (folder / "part-00000.count").unlink()


def _no_rows(folder: Path) -> None:
    (folder / "part-00000.pkl").unlink()


def _something_else(folder: Path) -> None:
    (folder / "_SUCCESS").touch()


def _a_folder(folder: Path) -> None:
    (folder / "more.pkl").mkdir()
    (folder / "more.count").touch()


def _emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _cut(folder: Path) -> None:
    path = folder / "part-00003.pkl"
    path.write_bytes(path.read_bytes()[:-3])


def _no_pairs(folder: Path) -> None:
    with closing(PickleShardWriter(folder, "part-00000")) as writer:
        writer.copy_row((encode_row({"url": "x"}),))
        writer.finish()


def _cycle(folder: Path) -> None:
    rows: list[object] = [{"image": "x"}]
    rows.append({"image": rows})
    (folder / "part-00000.pkl").write_bytes(pickle.dumps(rows, 2))
    (folder / "part-00000.count").write_text("2")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_too_high, "holds 20 rows, its .count says 21"),
        (_absurd, "can't hold"),
        (_negative, "can't hold"),
        (_no_number, "is not a number"),
        (_no_count, "part-00000.count is missing"),
        (_no_rows, "part-00000.pkl is missing"),
        (_something_else, "_SUCCESS is not part of a shard"),
        (_a_folder, "more.pkl is missing or not a file"),
        (_emptied, "is empty"),
        (shutil.rmtree, "cannot read the folder"),
        (_cut, "damaged or cut short"),
        (_no_pairs, "neither pairs"),
        (_cycle, "part-00000.pkl: "),
    ],
)
def test_a_wrong_source_is_one_line_and_exit_2(
    tmp_path: Path, source: Path, damage: Callable[[Path], None], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The line names the file, and no shard is made."""
    damage(source)
    assert main(["reshard", str(source), str(tmp_path / "out"), "--world-size", "2"]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("datafetch: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--world-size", "64"], "50 rows are too few for --world-size 64"),
        (["--world-size", "0"], "--world-size must be from 1"),
        (["--group", "0"], "--group must be from 1"),
        (["--shuffle", "yes"], "--shuffle takes a whole number or 'none', not 'yes'"),
        (["--shuffle", "-1"], "--shuffle must be from 0 to 9,223,372,036,854,775,807, not -1"),
        (["--shuffle", "9" * 30], "--shuffle must be from 0"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_written(
    tmp_path: Path, source: Path, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The error is one line with exit code 2, and not even a state folder is created."""
    before = sorted(tmp_path.rglob("*"))
    assert main(["reshard", str(source), str(tmp_path / "out"), "--world-size", "2", *arguments]) == 2
    printed = capfd.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["source", "source/inner", ".", "source/../source", "link", "taken", "file", "gone"])
def test_nothing_is_overwritten(tmp_path: Path, source: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """An output in, above or at the source, or one that exists, is refused, and everything stays unchanged."""
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(["reshard", str(source), str(tmp_path / name), "--world-size", "2"]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_same_command_finds_its_shards(tmp_path: Path, source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same command finds its work done; a different one, or one after a shard was lost, is refused."""
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["reshard", str(source), str(out), "--world-size", "2", "--batch", "1"]
    assert main(arguments) == 0
    assert "50 rows in 2 shards" in capfd.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert main(arguments) == 0
    assert "which existed already" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert main([*arguments, "--shuffle", "1"]) == 2
    assert "exists already" in capfd.readouterr().err
    (out / "part-00001.pkl").unlink()
    assert main(arguments) == 2


def test_json_reports_what_the_ranks_read(tmp_path: Path, source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """``--json`` prints one object with the plan and what an epoch reads."""
    arguments = ["reshard", str(source), str(tmp_path / "out"), "--world-size", "3", "--batch", "2", "--json"]
    assert main(arguments) == 0
    total_bytes = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.pkl"))
    assert json.loads(capfd.readouterr().out) == {
        "out": str(tmp_path / "out"),
        "rows": 50,
        "shards": 3,
        "world_size": 3,
        "batch": 2,
        "group": 4,
        "shuffle": 0,
        "samples_per_rank": 16,
        "used": 48,
        "lost_share": pytest.approx(0.04),
        "bytes": total_bytes,
    }


def test_documents_keep_their_order(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Documents are detected by the first row, and not grouped or shuffled unless an option says so."""
    rows: list[Row] = [{"image_info": [], "text_list": [str(number)]} for number in range(10)]
    source = write_shards(tmp_path / "source", rows, [10])
    arguments = ["reshard", str(source), str(tmp_path / "out"), "--world-size", "2", "--batch", "1", "--json"]
    assert main(arguments) == 0
    summary = json.loads(capfd.readouterr().out)
    assert (summary["group"], summary["shuffle"]) == (1, None)
    assert read_shards(tmp_path / "out") == [rows[:5], rows[5:]]


def test_two_at_once_are_refused(tmp_path: Path, source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """While one process works on an output, another is refused."""
    layout = OutputLayout(tmp_path / "out")
    layout.state_folder.mkdir()
    lock = Lock(layout.lock, layout.out)
    lock.acquire()
    try:
        assert main(["reshard", str(source), str(layout.out), "--world-size", "2"]) == 2
        assert "another run is working on" in capfd.readouterr().err
    finally:
        lock.release()
    assert main(["reshard", str(source), str(layout.out), "--world-size", "2"]) == 0


def test_ctrl_c_says_how_to_resume(
    tmp_path: Path, source: Path, undisturbed: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    """Interrupted while copying, it exits with 130, and the same command makes the same shards."""
    arguments = ["reshard", str(source), str(tmp_path / "out"), "--world-size", "4", "--batch", "1", "--group", "2"]

    def interrupt(_: object, *__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReshardWriter, "write", interrupt)
        assert main(arguments) == 130
    assert "run the same command again" in capfd.readouterr().err
    assert main(arguments) == 0
    assert files_of(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("text", ["longer than it was", ""], ids=["other lengths", "the same lengths"])
def test_a_source_that_changes_is_refused(tmp_path: Path, source: Path, text: str) -> None:
    """Rows that changed after they were measured are detected, even if they are as long."""

    def rewrite(progress: ReshardProgress) -> None:
        if progress.stage is ReshardStage.COPY and progress.rows < 24:
            shutil.rmtree(source)
            write_shards(
                source, [{**row, "text": text or "梅" * len(row["text"])} for row in pairs(50)], [20, 0, 3, 27]
            )

    with pytest.raises(ManifestError, match="changed while it was read"):
        reshard(ReshardRequest(source, tmp_path / "out", world_size=2, batch=1), ProgressMonitor(rewrite))
    assert not (tmp_path / "out").exists()


def test_two_rows_at_one_position_are_a_bug(tmp_path: Path, source: Path) -> None:
    """Positions that would overwrite a row, and leave a gap elsewhere, are refused before anything is written."""
    positions = np.arange(20, dtype=np.int64)
    positions[7] = 6
    layout = OutputLayout(tmp_path / "out")
    layout.state_folder.mkdir()
    plan = Plan(Ranks(2, 1, 1), None)
    with pytest.raises(ConservationError, match="the same position"):
        copy.reshard_rows(layout, [Source(source / "part-00000.pkl", 20, positions)], plan=plan)
    assert not layout.out.exists()
