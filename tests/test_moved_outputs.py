"""An output can be moved with its state folder: all commands go on there, and ``verify --quick`` says what was lost."""

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest
from conftest import LOOPBACK
from in_process import run, threads_with
from jobs import files_of
from test_image_files import publish

from datafetch import Check, Job, read_status, run_check
from datafetch.cli.app import main
from datafetch.demo.manifest import write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.errors import ResourceError
from datafetch.fetch import FetchPolicy
from datafetch.model.ledger_line import ShardCounts
from datafetch.output.commit import Commit
from datafetch.store.layout import OutputLayout
from datafetch.store.shard_summary import read_shard_counts

Pictures = tuple[Path, list[str]]
POLICY = FetchPolicy(allow_net=LOOPBACK, backoff_s=0.01, connections=16, per_host=16, retries=0)
IMAGES = 36


@pytest.fixture
def cut(tmp_path: Path, origin: Origin, small_pictures: Pictures) -> Job:
    """A job in three shards, as the manifest cuts them, one of whose images fails at first; not run yet."""
    names = [name for name in small_pictures[1] if name.endswith(".jpg")]
    urls = [
        origin.url("flaky" if number == 5 else "well", names[number % len(names)], f"moved-{tmp_path.name}-{number}")
        for number in range(IMAGES)
    ]
    source = write_coyo_source(tmp_path / "source", urls, files=3)
    out = tmp_path / "昨日" / "coyo-700m" / "pkl03-split"
    return Job("coyo", str(source.folder), str(out), str(source.ids), fetch=POLICY, processes=1, world_size=None)


def moved(job: Job) -> Job:
    """Move the output and its state folder, and return the job for the new place."""
    before = Path(job.out)
    after = before.parents[2] / "今日" / before.parent.name / before.name
    after.parent.mkdir(parents=True)
    for old, new in ((before, after), (OutputLayout(before).state_folder, OutputLayout(after).state_folder)):
        if old.exists():
            old.rename(new)
    return replace(job, out=str(after))


def quick(capfd: pytest.CaptureFixture[str], out: Path | str, code: int) -> list[str]:
    """Compare the files of an output, and return the lines that are printed."""
    assert main(["verify", str(out), "--quick"]) == code
    printed = capfd.readouterr()
    assert printed.err == ""
    return printed.out.splitlines()


@pytest.mark.rotating
@pytest.mark.parametrize("world_size", [None, 2])
@pytest.mark.usefixtures("_commands_in_threads")
def test_all_commands_work_where_an_output_was_moved(
    cut: Job, world_size: int | None, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Comparing, status, another run, a retry, verify and reshard."""
    run(replace(cut, world_size=world_size))
    job = moved(replace(cut, world_size=world_size))
    lines = quick(capfd, job.out, 0)
    shards = world_size or 3
    first = f"{job.out} for loader coyo: {shards} shards, {IMAGES - 1} samples, as recorded, nothing decoded"
    assert (lines[0], lines[-1]) == (first, "sizes and checksums are as recorded")
    assert read_status(job.out).state == "complete"
    assert run(job).requests == 0
    assert main(["retry", job.out]) == 0
    assert f"coyo: {IMAGES} of {IMAGES} samples" in capfd.readouterr().out
    assert quick(capfd, job.out, 0)[-1] == "sizes and checksums are as recorded"
    assert main(["verify", job.out, "--processes", "1"]) == 0
    assert main(["reshard", job.out, str(tmp_path / "four"), "--world-size", "4"]) == 0
    capfd.readouterr()
    assert quick(capfd, tmp_path / "four", 0)[0].startswith(f"{tmp_path / 'four'} for loader coyo: 4 shards")


@pytest.mark.rotating
def test_an_interrupted_run_goes_on_where_it_was_moved(cut: Job, origin: Origin) -> None:
    """What lies in spools is found, and not asked for again."""

    async def fail(_: Commit) -> ShardCounts:
        raise ResourceError("full")

    with pytest.raises(ResourceError):
        run(cut, backends=threads_with(fail))
    job = moved(cut)
    spooled = read_status(job.out).outcomes
    assert spooled["ok"] > 0
    before = sum(origin.requests().values())
    assert run(job).totals.images == IMAGES
    assert sum(origin.requests().values()) - before == IMAGES - sum(spooled.values())


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _link(path: Path) -> None:
    path.rename(path.parents[1] / "elsewhere")
    path.symlink_to(path.parents[1] / "elsewhere")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _add(path: Path) -> None:
    path.with_name("notes.txt").write_text("mine")


HARM: list[tuple[Callable[[Path], object], str]] = [
    (Path.unlink, "part-00001.pkl: is missing"),
    (_cut, "part-00001.pkl: has "),
    (_flip, "part-00001.pkl: has other bytes than it was written with"),
    (_link, "part-00001.pkl: is a link that leads out of its folder and is not followed"),
    (_pipe, "part-00001.pkl: is not a regular file"),
    (_add, "notes.txt: does not belong to a shard, but what reads the folder counts every file"),
]


@pytest.mark.parametrize("world_size", [None, 2])
def test_what_the_state_folder_has_lost_is_named(
    cut: Job, world_size: int | None, capfd: pytest.CaptureFixture[str]
) -> None:
    """A ledger that is missing or damaged, and what a retry needs of a shard in which an image failed."""
    job = replace(cut, world_size=world_size)
    run(job)
    layout = OutputLayout(Path(job.out))
    failed = [shard for shard in ("part-00000", "part-00001", "part-00002") if failed_images(layout, shard)]
    assert failed
    for path, is_damaged in ((layout.ledger(failed[0]), False), (layout.ledger(failed[0]), True)):
        content = path.read_bytes()
        path.write_bytes(b"garbage") if is_damaged else path.unlink()
        lines = quick(capfd, job.out, 1)
        assert any(f"{path.name}" in line and ("is missing" in line) != is_damaged for line in lines[1:]), lines
        path.write_bytes(content)
    kept = layout.kept_for_retry(failed[0])
    kept.unlink()
    lines = quick(capfd, job.out, 1)
    assert [lines[1], lines[-1]] == [
        f"{layout.state_folder.name}/failed/{kept.name}: is missing; put it back, since 'datafetch retry' needs it",
        "1 problem found",
    ]


def failed_images(layout: OutputLayout, shard: str) -> int:
    """Return the number of images of a shard that failed."""
    return read_shard_counts(layout.ledger(shard)).failed


@pytest.mark.rotating
@pytest.mark.parametrize("world_size", [None, 2])
@pytest.mark.usefixtures("_commands_in_threads")
def test_what_a_move_has_lost_is_named(cut: Job, world_size: int | None, capfd: pytest.CaptureFixture[str]) -> None:
    """Missing, short, changed, foreign files and links are problems, a line each, and nothing is decoded."""
    job = replace(cut, world_size=world_size)
    run(job)
    path = Path(job.out, "part-00001.pkl")
    content = path.read_bytes()
    for harm, problem in HARM:
        harm(path)
        lines = quick(capfd, job.out, 1)
        assert lines[-1] == "1 problem found"
        assert lines[1].startswith(problem)
        path.unlink(missing_ok=True)
        path.with_name("notes.txt").unlink(missing_ok=True)
        path.write_bytes(content)
    path.with_suffix(".count").write_text("9")
    assert quick(capfd, job.out, 1)[1].startswith("part-00001.count: has ")
    path.unlink()
    path.with_suffix(".count").unlink()
    assert main(["verify", job.out, "--processes", "1"]) == 1
    assert (
        "part-00001.pkl: is missing, and its .count; the command that made the output makes it again; "
        f"to see that command: datafetch status {shlex.quote(job.out)} --command" in capfd.readouterr().out.splitlines()
    )
    assert main(["verify", job.out, "--quick", "--json"]) == 1
    summary = json.loads(capfd.readouterr().out)
    assert (summary["quick"], summary["problem_count"]) == (True, 2)
    run(job)
    assert quick(capfd, job.out, 0)


def test_outputs_of_earlier_versions_are_compared_by_size(cut: Job, capfd: pytest.CaptureFixture[str]) -> None:
    """Where no checksum was recorded, that is said; absence and another size are still found."""
    run(cut)
    layout = OutputLayout(Path(cut.out))
    for path in layout.ledgers.iterdir():
        table, metadata = pq.read_table(path), pq.read_metadata(path).metadata
        with pq.ParquetWriter(path, table.schema) as ledger:
            ledger.write_table(table)
            names = {name for name in metadata if name.startswith(b"datafetch.") and name != b"datafetch.files"}
            ledger.add_key_value_metadata({name: metadata[name] for name in names})
    remark = "6 files have no recorded checksum; only presence, and the size where that was recorded, were compared"
    assert remark in quick(capfd, cut.out, 0)
    _cut(Path(cut.out, "part-00001.pkl"))
    assert quick(capfd, cut.out, 1)[1].startswith("part-00001.pkl: has ")
    before = files_of(run_again(cut))
    record = orjson.loads(layout.reshard_record.read_bytes())
    del record["crc32"]
    layout.reshard_record.write_bytes(orjson.dumps(record))
    assert any(line.startswith("2 files have no recorded checksum") for line in quick(capfd, cut.out, 0))
    assert files_of(cut) == before


def test_a_damaged_ledger_is_a_problem(cut: Job, capfd: pytest.CaptureFixture[str]) -> None:
    """It is named, and the files of its shard are known to nobody; those of others are compared."""
    run(cut)
    path = OutputLayout(Path(cut.out)).ledger("part-00001")
    path.write_bytes(b"PAR1 damaged")
    lines = quick(capfd, cut.out, 1)
    problems = [line for line in lines if line.startswith("part-0000")]
    assert problems[0].startswith(f"part-00001: {path} is not a ledger of datafetch")
    assert [line.partition(":")[0] for line in problems[1:]] == ["part-00001.count", "part-00001.pkl"]


def run_again(job: Job) -> Job:
    """Run a job again, and reshard its output for two ranks."""
    again = replace(job, world_size=2)
    run(again)
    return again


def test_images_as_files_and_their_list_are_compared(
    tmp_path: Path, origin: Origin, pictures: Pictures, capfd: pytest.CaptureFixture[str]
) -> None:
    """An image that has changed is named by its path, and so is the trainer's list, whichever of the two is given."""
    pairs = publish(tmp_path, origin, pictures, {})
    run(pairs.job())
    pairs.root.rename(tmp_path / "今日")
    out, trainers = (tmp_path / "今日" / path.relative_to(pairs.root) for path in (pairs.out, pairs.trainers))
    for given in (out, trainers):
        lines = quick(capfd, given, 0)
        assert lines[0] == f"{given} for loader torch: 12 samples, as recorded, nothing decoded"
    _flip(out / "a" / "000000003.jpg")
    (out / "000000004.jpg").unlink()
    trainers.write_text("[]")
    assert quick(capfd, trainers, 1)[1:] == [
        "000000004.jpg: is missing",
        "a/000000003.jpg: has other bytes than it was written with",
        f"{trainers.name}: is not the list that was written",
        (
            "the command that made the output makes again what is missing; delete what has other bytes first; "
            f"to see that command: datafetch status {shlex.quote(str(out))} --command"
        ),
        "3 problems found",
    ]


@pytest.mark.usefixtures("_commands_in_threads")
def test_an_output_without_a_record_cannot_be_compared(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without its state folder nothing says how its files were, and the line says what to do."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-00000.pkl").write_bytes(b"")
    assert main(["verify", str(tmp_path / "out"), "--quick"]) == 2
    assert "leave out --quick, or move that folder along with the output" in capfd.readouterr().err


@pytest.mark.rotating
def test_a_hostile_record_is_one_line(cut: Job, capfd: pytest.CaptureFixture[str]) -> None:
    """Values of other types, and names that lead elsewhere, are refused."""
    run(replace(cut, world_size=2))
    layout = OutputLayout(Path(cut.out))
    record = orjson.loads(layout.reshard_record.read_bytes())
    for crc32 in ({"part-00000": "x"}, {"../part-00000": 1}, {"part-00000": -1}, [1]):
        layout.reshard_record.write_bytes(orjson.dumps({**record, "crc32": crc32}))
        assert main(["verify", cut.out, "--quick"]) == 2
        assert "equal.json is damaged" in capfd.readouterr().err
    assert run_check(Check(cut.out, processes=1, world_size=2)).is_sound
