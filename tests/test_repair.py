"""A lost shard of a resharded output is made again, and only what is missing is asked for."""

import logging
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from in_process import THREADS, commit_in_thread, retry, run, threads_with
from jobs import POLICY, coyo_job, files_of, path_of, read_ledger, read_rows, requests_since
from preloaded import PreloadedCommand
from runs import OPTIONS, Run, dying_at_a_step
from test_conservation import document, write_lines

from datafetch import Check, FailureKind, Job, RetryFilter, fetch_shards, finish, run_check
from datafetch.cli.app import main
from datafetch.datasets.mmc4 import Mmc4CoreOptions
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.engine.repair import _read_token
from datafetch.engine.session import Backends
from datafetch.errors import ConfigurationError, ResourceError
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.regular_file import NotRegularFileError
from datafetch.output.commit import Commit
from datafetch.store.layout import OutputLayout

Pictures = tuple[Path, list[str]]
IMAGES = 60
BLOCKED = replace(POLICY, allow_net=())


class Urls:
    """Makes URLs of pictures that no other test has."""

    def __init__(self, origin: Origin, pictures: Pictures, mark: str) -> None:
        self._names = [name for name in pictures[1] if name.endswith(".jpg")]
        self._origin, self._mark = origin, mark

    def url(self, position: int, behaviour: str = "well") -> str:
        """Return the URL of a picture."""
        name = self._names[position % len(self._names)]
        return self._origin.url(behaviour, name, f"{self._mark}-{position}")


@pytest.fixture
def urls(tmp_path: Path, own_origin: Origin, small_pictures: Pictures) -> Urls:
    """URLs of this test."""
    return Urls(own_origin, small_pictures, f"repair-{tmp_path.name}")


@pytest.fixture
def source(tmp_path: Path, urls: Urls) -> CoyoSource:
    """A manifest of three files; the first time, two images fail, one of them for good."""
    faults = {7: "missing", 23: "flaky"}
    return write_coyo_source(
        tmp_path / "source", [urls.url(number, faults.get(number, "well")) for number in range(IMAGES)], files=3
    )


@pytest.fixture
def job(tmp_path: Path, source: CoyoSource) -> Job:
    """A job that reshards for two ranks, which is done."""
    done = coyo_job(source, tmp_path / "データ" / "out", world_size=2)
    run(done)
    return done


def rows_in(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a shard."""
    rows: list[dict[str, Any]] = pickle.loads(path.read_bytes())
    return rows


def _remove_both(path: Path) -> None:
    path.unlink()
    path.with_suffix(".count").unlink()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.rotating
@pytest.mark.parametrize("harm", [Path.unlink, _remove_both, _truncate])
def test_a_lost_shard_is_made_again_of_what_is_missing(
    job: Job, own_origin: Origin, harm: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    """The same job asks for the images of its rows and for nothing else, and the files are those from before."""
    caplog.set_level(logging.INFO)
    before, outcomes = files_of(job), [line["outcome"] for line in read_ledger(job)]
    lost = Path(job.out, "part-00001.pkl")
    urls = {path_of(str(row["url"])) for row in rows_in(lost)}
    requests = own_origin.requests()
    harm(lost)
    report = run(job)
    assert requests_since(own_origin, requests) == dict.fromkeys(urls, 1)
    assert files_of(job) == before
    assert [line["outcome"] for line in read_ledger(job)] == outcomes
    assert (report.totals.ok, report.reused, report.requests) == (IMAGES - 2, IMAGES - 2 - len(urls), len(urls))
    assert f"the images of {len(urls)} lost rows are fetched again" in caplog.text
    state = OutputLayout(Path(job.out))
    assert not state.added.exists()
    assert not state.all_spools.exists()
    requests = own_origin.requests()
    run(job)
    assert own_origin.requests() == requests
    assert retry(job.out).retried == 1


def test_a_lost_count_costs_no_request(job: Job, own_origin: Origin) -> None:
    """It is written again, from the record."""
    before, requests = files_of(job), own_origin.requests()
    count = Path(job.out, "part-00000.count")
    for harm in (Path.unlink, lambda path: path.write_text("9999")):
        harm(count)
        run(job)
        assert files_of(job) == before
    assert own_origin.requests() == requests


@pytest.mark.rotating
def test_a_damaged_shard_is_kept(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """Rows of it may be readable; a repair moves it into the state folder, and --fresh deletes it."""
    lost, kept = Path(job.out, "part-00001.pkl"), OutputLayout(Path(job.out)).damaged / "part-00001.pkl"
    for cut in (-1, -1000):
        damaged = lost.read_bytes()[:cut]
        lost.write_bytes(damaged)
        run(replace(job, fetch=BLOCKED) if cut == -1000 else job)
        assert kept.read_bytes() == damaged
        assert f"{lost} was damaged, and is kept as {kept}" in caplog.text
    target = lost.rename(lost.parent.parent / "elsewhere")
    lost.symlink_to(target)
    _truncate(target)
    run(job)
    assert kept.read_bytes() == target.read_bytes()
    assert not kept.is_symlink()
    run(replace(job, fresh=True))
    assert not kept.parent.exists()


@pytest.mark.rotating
def test_bytes_at_the_end_of_a_shard_cost_no_request(job: Job, own_origin: Origin) -> None:
    """All rows are as they were written, by their checksum; if they are not, they are fetched again."""
    before, requests, path = files_of(job), own_origin.requests(), Path(job.out, "part-00001.pkl")
    whole = path.read_bytes()
    path.write_bytes(whole + b"\n")
    run(job)
    assert files_of(job) == before
    assert own_origin.requests() == requests
    path.write_bytes(whole.replace(b"/9j/", b"/9k/", 1) + b"\n")
    run(job)
    assert files_of(job) == before
    assert own_origin.requests() != requests


@pytest.mark.parametrize("is_mount_point", [False, True])
def test_a_folder_that_is_gone_as_a_whole_is_not_fetched_again(
    job: Job, own_origin: Origin, tmp_path: Path, is_mount_point: bool
) -> None:
    """It was moved, or its disk is not mounted, so the run asks for nothing and says what to do."""
    before, requests, out = files_of(job), own_origin.requests(), Path(job.out)
    out.rename(tmp_path / "moved")
    if is_mount_point:  # whose disk is not mounted
        out.mkdir()
    with pytest.raises(ConfigurationError, match=r"has none of its 2 shards: .* put them back .* --fresh fetches all"):
        run(job)
    assert own_origin.requests() == requests
    if is_mount_point:
        out.rmdir()
    (tmp_path / "moved").rename(out)
    run(job)
    assert files_of(job) == before
    assert own_origin.requests() == requests


@pytest.mark.rotating
def test_what_cannot_be_fetched_any_more_is_a_failure(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """The rows and counts follow, the shards are cut again for the ranks, and a later retry brings all of it back."""
    before, lost = files_of(job), Path(job.out, "part-00001.pkl")
    rows = len(rows_in(lost))
    _truncate(lost)
    report = run(replace(job, fetch=BLOCKED))
    assert report.totals.outcomes["blocked_address"] == rows
    assert "in a network that you trust: give it to 'datafetch retry' afterwards" in caplog.text
    assert (report.totals.rows, report.totals.samples) == (IMAGES - 2 - rows, IMAGES)
    assert len(read_rows(job)) == IMAGES - 2 - rows
    assert run_check(Check(job.out, processes=1)).problems == ()
    kinds = RetryFilter(frozenset({FailureKind.BLOCKED_ADDRESS}))
    again = retry(job.out, kinds, change=lambda now: replace(now, fetch=POLICY))
    assert (again.retried, again.retried_arrived) == (rows, rows)
    assert files_of(job) == before


@pytest.mark.rotating
def test_images_kept_for_a_retry_are_not_fetched_again(tmp_path: Path, urls: Urls, own_origin: Origin) -> None:
    """A document of which another image failed has its images in the state folder; the others are asked for."""
    documents = [
        document(number, [urls.url(2 * number), urls.url(2 * number + 1, "well" if number % 3 else "missing")])
        for number in range(48)
    ]
    write_lines(tmp_path / "documents", [f"docs_shard_{number}_v3.jsonl" for number in range(4)], documents)
    options = Mmc4CoreOptions(keep_at_least=1)
    job = Job(
        "mmc4-core", str(tmp_path / "documents"), str(tmp_path / "out"), options=options, fetch=POLICY, world_size=2
    )
    assert run(job).totals.rows == 48
    before, requests = files_of(job), own_origin.requests()
    lost = Path(job.out, "part-00000.pkl")
    images = [image["raw_url"] for row in rows_in(lost) for image in row["image_info"] if len(row["image_info"]) == 2]
    _remove_both(lost)
    run(job)
    assert requests_since(own_origin, requests) == {path_of(url): 1 for url in images}
    assert files_of(job) == before


def _stopping_at_the_last(shards: int) -> Backends:
    commits = iter(range(1, shards))

    async def commit(commit: Commit) -> ShardCounts:
        if next(commits, None) is None:
            raise ResourceError("full")
        return await commit_in_thread(commit)

    return threads_with(commit)


def _ledgers_of(job: Job) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in OutputLayout(Path(job.out)).ledgers.iterdir()}


def _move_away(job: Job, names: Iterable[str], folder: Path) -> None:
    folder.mkdir()
    for path in (Path(job.out, f"{name}{suffix}") for name in names for suffix in (".pkl", ".count")):
        path.rename(folder / path.name)


def _put_back(job: Job, folder: Path) -> None:
    for path in folder.iterdir():
        path.rename(Path(job.out, path.name))


@pytest.mark.rotating
def test_a_copy_can_be_put_back_after_a_repair_has_begun(job: Job, own_origin: Origin, tmp_path: Path) -> None:
    """Rows that an interrupted repair could not make again are there again, and so is what a retry needs."""
    before, ledgers, layout = files_of(job), _ledgers_of(job), OutputLayout(Path(job.out))
    kept = {path.name: path.read_bytes() for path in layout.kept_for_retry("").parent.iterdir()}
    for again in (job, replace(job, fetch=BLOCKED)):
        _move_away(job, ["part-00001"], tmp_path / "copy")
        with pytest.raises(ResourceError):
            run(again, backends=_stopping_at_the_last(3))
        assert _ledgers_of(job) != ledgers
        _put_back(job, tmp_path / "copy")
        (tmp_path / "copy").rmdir()
        requests = own_origin.requests()
        report = run(job)
        assert own_origin.requests() == requests
        assert (files_of(job), _ledgers_of(job)) == (before, ledgers)
        assert (report.totals.ok, report.totals.rows) == (IMAGES - 2, IMAGES - 2)
        assert {path.name: path.read_bytes() for path in layout.kept_for_retry("").parent.iterdir()} == kept
        assert not layout.added.exists() or not list(layout.added.iterdir())
        assert not layout.before_repair.exists()
    assert retry(job.out).retried == 1


@pytest.mark.rotating
def test_a_part_of_a_copy_can_be_put_back(job: Job, tmp_path: Path) -> None:
    """Of two lost shards one comes back after their rows have become failures; its rows are there again."""
    job = replace(job, out=str(tmp_path / "three"), world_size=3)
    total = run(job).totals.rows
    rows = {name: len(rows_in(Path(job.out, f"{name}.pkl"))) for name in ("part-00000", "part-00001")}
    for name in rows:
        _move_away(job, [name], tmp_path / name)
    with pytest.raises(ResourceError):
        run(replace(job, fetch=BLOCKED), backends=_stopping_at_the_last(3))
    _put_back(job, tmp_path / "part-00000")
    report = run(replace(job, fetch=BLOCKED))
    assert report.totals.rows == len(read_rows(job)) == total - rows["part-00001"]
    assert run_check(Check(job.out, processes=1)).problems == ()
    assert not OutputLayout(Path(job.out)).before_repair.exists()


@pytest.mark.rotating
def test_a_repair_that_leaves_too_few_rows_is_undone(job: Job) -> None:
    """Nothing has changed then, so the images can be fetched when their servers are back."""
    before, ledgers = files_of(job), _ledgers_of(job)
    for path in Path(job.out).glob("*.pkl"):
        path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"0 rows are too few .* nothing was changed: put back a copy"):
            run(replace(job, fetch=BLOCKED))
        assert _ledgers_of(job) == ledgers
    run(job)
    assert files_of(job) == before


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(("name", "harm"), [("part-00001.pkl", _loop), ("part-00000.count", _make_folder)])
def test_a_file_that_cannot_be_read_is_not_lost(
    job: Job, own_origin: Origin, name: str, harm: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its disk may be at fault, so the run stops, and asks for nothing; status says so."""
    ledgers, requests = _ledgers_of(job), own_origin.requests()
    harm(Path(job.out, name))
    calls: list[Callable[[], object]] = [lambda: run(job), lambda: retry(job.out)]
    for call in calls:
        with pytest.raises(ResourceError, match=rf"cannot read the shards of .*{name}.*run the same command again"):
            call()
    assert (_ledgers_of(job), own_origin.requests()) == (ledgers, requests)
    assert main(["status", job.out]) == 0
    assert "its shards can't be read" in capsys.readouterr().out


def test_only_a_whole_run_makes_a_lost_shard_again(job: Job, own_origin: Origin) -> None:
    """A retry, and processes that share the shards, say so and ask for nothing."""
    Path(job.out, "part-00001.pkl").unlink()
    requests = own_origin.requests()
    for call in (lambda: retry(job.out), lambda: fetch_shards(job, backends=THREADS), lambda: finish(job)):
        with pytest.raises(ConfigurationError, match=r"part-00001\.pkl or its \.count is missing.* run the command"):
            call()
    assert own_origin.requests() == requests


@pytest.mark.rotating
def test_rows_of_an_interrupted_retry_are_kept(job: Job, tmp_path: Path) -> None:
    """What the retry has added to a shard whose other rows are lost is still there afterwards."""

    async def commit_and_fail(commit: Commit) -> ShardCounts:
        await commit_in_thread(commit)
        raise ResourceError("full")

    with pytest.raises(ResourceError):
        retry(job.out, backends=threads_with(commit_and_fail))
    layout = OutputLayout(Path(job.out))
    assert list(layout.added.glob("*.pkl"))
    for path in Path(job.out).glob("*.pkl"):
        path.write_bytes(b"")
    assert run(job).totals.rows == IMAGES - 1
    assert retry(job.out).totals.rows == IMAGES - 1
    healed = replace(job, out=str(tmp_path / "healed"))
    run(healed)
    assert files_of(job) == files_of(healed)


def test_a_shard_without_rows_takes_no_resharded_file_along(tmp_path: Path, urls: Urls) -> None:
    """A shard of the manifest whose images all fail again has no file, and a resharded one of its name stays."""
    faults = dict.fromkeys(range(8, 16), "missing")
    made = write_coyo_source(
        tmp_path / "source", [urls.url(number, faults.get(number, "well")) for number in range(32)], files=4
    )
    job = Job("coyo", str(made.folder), str(tmp_path / "out"), str(made.ids), fetch=POLICY, world_size=2)
    assert run(job).totals.rows == 24
    assert {line["shard"] for line in read_ledger(job) if line["outcome"] != "ok"} == {"part-00001"}
    before = files_of(job)
    assert retry(job.out, RetryFilter.all()).retried == 8
    assert files_of(job) == before


@pytest.mark.rotating
def test_the_command_says_what_it_makes_again(
    job: Job, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line says which file is missing, another one how many rows are fetched, and verify passes afterwards."""
    root = Path(job.out).parent
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ["prepare", "coyo", "--source", job.source, "--ids", str(job.ids), "--root", str(root)]
    options = ["--allow-net", "127.0.0.0/8", "--processes", "1", "--world-size", "2"]
    assert main([*arguments, *options]) == 0
    capfd.readouterr()
    out = root / "coyo-700m" / "pkl03-split"
    rows = len(rows_in(out / "part-00000.pkl"))
    (out / "part-00000.pkl").unlink()
    assert main(["verify", str(out), "--processes", "1"]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[-3].startswith(
        "1 shard is fewer than 2 ranks, so the loader crashes; there were enough when they were made"
    )
    assert lines[-2] == "part-00000.count: has no counterpart part-00000.pkl"
    assert main(["retry", str(out)]) == 2
    assert "run the command that started the output again" in capfd.readouterr().err
    assert main([*arguments, *options, "--dry-run"]) == 0
    assert "shards are missing or have changed; the images of their rows" in capfd.readouterr().out
    assert main([*arguments, *options]) == 0
    printed = capfd.readouterr()
    assert f"part-00000 of the 2 shards of {out}, missing or changed since, will be made again" in printed.err
    assert f"the images of {rows} lost rows are fetched again" in printed.err
    assert f"this run: {rows} images arrived" in printed.out
    assert main(["verify", str(out), "--processes", "1"]) == 0
    assert main([*arguments, *options[:-1], "1", "--dry-run"]) == 0
    assert "complete; it would be resharded for other ranks" in capfd.readouterr().out
    for mode in ([], ["--dry-run"]):  # without --world-size, which is then 64
        assert main([*arguments, *options[:-2], *mode]) == 2
        printed = capfd.readouterr()
        assert "is resharded for 2 ranks, and has too few rows for 64 (" in printed.err + " ".join(printed.out.split())
    out.rename(tmp_path / "moved")
    assert main([*arguments, *options]) == 2
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"datafetch: {out} has none of its 2 shards: if they were moved, or their disk is not mounted, put them back "
        "and run the same command again; if they are lost, --fresh fetches all images again"
    )


@pytest.mark.rotating
@pytest.mark.slow
def test_a_repair_can_be_killed_at_any_moment(
    tmp_path: Path, source: CoyoSource, own_origin: Origin, preloaded: PreloadedCommand
) -> None:
    """Killed again and again, each time some file operations later, it ends with the files from before."""
    root = tmp_path / "data"
    options = [option for option in OPTIONS if option != "--no-reshard"]
    command = [
        *(sys.executable, "-m", "datafetch", "prepare", "coyo", "--source", str(source.folder)),
        *("--ids", str(source.ids), "--root", str(root), *options, "--world-size", "2"),
    ]
    with Run(command) as first:
        assert first.end() == 0, first.messages()
    out = root / "coyo-700m" / "pkl03-split"
    before = {path.name: path.read_bytes() for path in sorted(out.iterdir())}
    urls = {path_of(str(row["url"])) for row in rows_in(out / "part-00001.pkl")}
    for victim in ("-m datafetch prepare", "datafetch.output.commit_process"):
        requests = own_origin.requests()
        _remove_both(out / "part-00001.pkl")
        kills = 0
        for step in range(3, 1000, 23):
            with Run(command, dying_at_a_step(victim, step, root), preloaded) as killed:
                code = killed.end()
            if code == 0:
                break
            kills += 1
            names = {path.name for path in out.iterdir()} if out.exists() else set()
            assert names <= before.keys()
        assert kills > 1
        assert {path.name: path.read_bytes() for path in sorted(out.iterdir())} == before
        made = requests_since(own_origin, requests)
        assert made.keys() == urls
        assert sum(made.values()) <= len(urls) + 8 * kills  # of what was in flight when it was killed


@pytest.mark.rotating
@pytest.mark.slow
def test_the_undoing_of_a_repair_can_be_killed_at_any_moment(
    tmp_path: Path, source: CoyoSource, preloaded: PreloadedCommand
) -> None:
    """Killed at one file operation or another, even if the copy is gone again after that, it costs no row."""
    root = tmp_path / "data"
    options = [option for option in OPTIONS if option != "--no-reshard"]
    command = [
        *(sys.executable, "-m", "datafetch", "prepare", "coyo", "--source", str(source.folder)),
        *("--ids", str(source.ids), "--root", str(root), *options, "--world-size", "2"),
    ]
    out = root / "coyo-700m" / "pkl03-split"
    job = coyo_job(source, out, world_size=2)
    run(job)
    before, ledgers, copy = files_of(job), _ledgers_of(job), tmp_path / "copy"
    _move_away(job, ["part-00001"], copy)
    with pytest.raises(ResourceError):
        run(replace(job, fetch=BLOCKED), backends=_stopping_at_the_last(3))
    shutil.copytree(root, tmp_path / "interrupted")
    kills = 0
    for step in range(5, 1000, 11):
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "interrupted", root)
        shutil.copytree(copy, out, dirs_exist_ok=True)
        with Run(command, dying_at_a_step("-m datafetch prepare", step, root), preloaded) as killed:
            code = killed.end()
        assert _ledgers_of(job).keys() == ledgers.keys()
        if step % 2:  # it is away again: what had failed stays failed, and a retry finds all that it needs
            for path in copy.iterdir():
                (out / path.name).unlink()
        run(job)
        if step % 2:
            retry(job.out, RetryFilter(frozenset({FailureKind.BLOCKED_ADDRESS})), change=lambda _: job)
        else:
            assert _ledgers_of(job) == ledgers
        assert files_of(job) == before
        if code == 0:
            break
        kills += 1
    assert kills > 1


@pytest.mark.rotating
def test_a_fifo_in_place_of_the_token_is_not_waited_for(tmp_path: Path) -> None:
    """The token of an interrupted repair is read as every file of the state folder is."""
    layout = replace(OutputLayout(tmp_path / "out"), job_hash="0").for_repair()
    layout.repair_token.parent.mkdir(parents=True)
    os.mkfifo(layout.repair_token)
    with pytest.raises(NotRegularFileError):
        _read_token(layout)
