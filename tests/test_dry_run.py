"""``prepare --dry-run``: what a run would do, without asking anybody and without writing anything."""

import json
import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import LOOPBACK
from in_process import THREADS, run
from jobs import coyo_job
from sources import place_source

import datafetch
from datafetch import Job, shard_names
from datafetch.cli.app import main
from datafetch.datasets.recipes import STEPS
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.engine.job import hash_of, read_job
from datafetch.fetch import FetchPolicy
from datafetch.store.downloads import downloads_of
from datafetch.store.layout import OutputLayout
from datafetch.store.lock import Lock

Pictures = tuple[Path, list[str]]
OUT = Path("coyo-700m", "pkl03-split")
DEFAULTS = ["--quality 75", "--pixels recipe", "--resize exact", "--encode recipe"]
fetch_shards = partial(datafetch.fetch_shards, backends=THREADS)


@pytest.fixture
def nobody() -> Iterator[str]:
    """The URL of a server that nobody may connect to; at the end it is checked that nobody did."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.fixture
def source(tmp_path: Path, origin: Origin, pictures: Pictures) -> CoyoSource:
    """A manifest of two shards: forty wanted rows of fifty."""
    urls = [origin.url("well", pictures[1][number % 20], f"{tmp_path.name}-{number}") for number in range(40)]
    return write_coyo_source(tmp_path / "source", urls, files=2, rows=50)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The trainer's data folder."""
    return tmp_path / "学習データ"


@pytest.fixture
def job(source: CoyoSource, root: Path) -> Job:
    """A job on this manifest."""
    policy = FetchPolicy(allow_net=LOOPBACK, connections=8, per_host=8, retries=0)
    return coyo_job(source, root / OUT, fetch=policy, processes=None)


def prepare(source: CoyoSource, root: Path, *options: str) -> int:
    """Run the command on the manifest."""
    words = ["prepare", "coyo", "--source", str(source.folder), "--ids", str(source.ids), "--root", str(root)]
    return main([*words, "--no-reshard", "--dry-run", *options])


def tree(folder: Path) -> dict[Path, int]:
    """All files and folders below a folder, and when they were changed."""
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_a_dry_run_says_what_a_run_would_do(
    tmp_path: Path,
    source: CoyoSource,
    root: Path,
    nobody: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rows, images, hosts, disk, and which settings decide the rows; every line whole in a file; nothing is written."""
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    options = ["--mirror", nobody, "--limit", "30", "--allow-net", "127.0.0.0/8", "--user-agent", "me at x"]
    assert prepare(source, Path(root.name), *options) == 0
    assert tree(tmp_path) == before
    out, err = capsys.readouterr()
    assert err == ""
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[:4] == [
        f"coyo: {root.name}/{OUT}",
        "output new",
        "rows at most 30",
        "images 30",
    ]
    assert lines[4] == "hosts 127.0.0.1 100.0%"
    assert lines[5].startswith("disk needs about 2.2 MB while it works, 1.1 MB when done; ")
    assert lines[6:] == [
        f"rows from --ids {source.ids} --limit 30",
        " ".join(["by default --payload base64 --short-side 336", *DEFAULTS]),
        f"also set --mirror {nobody} --no-reshard --allow-net 127.0.0.0/8 --user-agent 'me at x'",
    ]


def test_what_is_asked_first_is_named_and_not_asked(
    tmp_path: Path, nobody: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of the recipe, without its folder: nobody is asked, nothing is written, and the numbers are the recipe's."""
    words = ["prepare", *STEPS, "--root", str(tmp_path / "data"), "--mirror", nobody, "--dry-run", "--json"]
    assert main(words) == 2  # since two datasets need a source
    out, err = capsys.readouterr()
    assert "14 of 16 datasets will take about" in err
    found = {one["dataset"]: one for one in json.loads(out)["datasets"]}
    assert list(tmp_path.iterdir()) == []
    assert {name for name, one in found.items() if one["state"] == "refused"} == {"mmc4-core", "ocr-vqa"}
    assert all(one["asked_first"] for one in found.values() if one["state"] != "refused")
    assert found["coyo"]["samples"] == {"total": 6_000_000, "is_exact": False}
    assert found["coyo"]["asked_first"][0] == "hf://datasets/kakaobrain/coyo-700m"
    assert found["gqa"]["samples"]["total"] == 46_000  # only those that its list names
    assert "hf://datasets/llm-jp/llava-instruct-v1_5-en-subset-358k@407d05d" in found["gqa"]["asked_first"]
    assert found["gqa"]["disk"]["needed_bytes"] > found["gqa"]["disk"]["result_bytes"] > 1e9
    assert found["llava-instruct-ja"]["disk"] is None  # a list


def test_without_the_recipes_ids_the_number_of_rows_is_not_known(
    tmp_path: Path, nobody: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """COYO's own place, and VILA's choice of its rows."""
    assert main(["prepare", "coyo", "--root", str(tmp_path), "--mirror", nobody, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "rows         not known before it is asked\n" in out
    assert "chosen       coyo is read from where it is published: hf://datasets/kakaobrain/coyo-700m\n" in out


@pytest.mark.usefixtures("_commands_in_threads")
def test_a_copy_of_an_earlier_download_is_read(
    tmp_path: Path,
    source: CoyoSource,
    nobody: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An id list at a URL, with a copy in the cache: its server is not asked again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"{nobody}/lists/ids.txt"
    words = ["prepare", "coyo", "--source", str(source.folder), "--ids", url, "--root", str(tmp_path), "--dry-run"]
    assert main(words) == 0
    assert f"asked first  {url}\n" in capsys.readouterr().out
    copy = downloads_of(url) / "ids.txt"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(source.ids.read_bytes())
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "asked first" not in out
    assert "rows        at most 40\n" in out
    assert f"rows from   --ids {url}\n" in out


def test_the_output_is_new_then_resumed_then_complete(
    source: CoyoSource, root: Path, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the next run would find it; to start over deletes nothing yet, and other settings are refused with exit 2."""

    def look(*options: str) -> tuple[int, str, dict[str, object]]:
        before = tree(root)
        code = prepare(source, root, "--json", *options)
        found = json.loads(capsys.readouterr().out)
        assert tree(root) == before
        return code, found["state"], found["shards"]

    assert look() == (0, "new", {"total": 2, "published": 0})
    fetch_shards(job, shard_names(job)[:1])
    assert look() == (0, "resumed", {"total": 2, "published": 1})
    prepare(source, root)
    assert "the run would be resumed, with 1 of 2 shards published\n" in capsys.readouterr().out
    run(job)
    assert look() == (0, "complete", {"total": 2, "published": 2})
    assert look("--fresh") == (0, "started over", {"total": 2, "published": 0})
    assert look("--quality", "80") == (2, "refused", {"total": 2, "published": 0})
    prepare(source, root, "--quality", "80")
    out = capsys.readouterr().out
    assert "the run would be refused" in out
    assert "--quality: 75, now 80" in out
    (root / OUT / "stranger.txt").touch()
    assert look()[:2] == (2, "refused")
    assert look("--fresh")[:2] == (2, "refused")


@pytest.mark.usefixtures("_commands_in_threads")
def test_settings_are_compared_before_the_source_is_asked(
    tmp_path: Path, root: Path, job: Job, nobody: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What follows from options alone is refused, also if the rest lies on a server."""
    run(job)
    words = ["prepare", "coyo", "--ids", f"{nobody}/ids.txt", "--root", str(root), "--no-reshard", "--dry-run"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "complete"
    assert main([*words, "--short-side", "none"]) == 2
    assert "--short-side: 336, now not set" in capsys.readouterr().out
    assert main([*words, "--root", str(tmp_path / "elsewhere"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "new"


@pytest.mark.usefixtures("_commands_in_threads")
def test_what_is_there_is_judged_before_the_source_is_asked(
    tmp_path: Path, root: Path, job: Job, nobody: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Spools in another folder, files of others that would be deleted, and what belongs to ``datafetch reshard``."""
    fetch_shards(job, shard_names(job)[:1])
    layout = OutputLayout(root / OUT, job_hash=hash_of(read_job(OutputLayout(root / OUT))[1]))
    spool = layout.spool(shard_names(job)[1])
    spool.parent.mkdir(parents=True, exist_ok=True)
    spool.touch()
    words = ["prepare", "coyo", "--ids", f"{nobody}/ids.txt", "--root", str(root), "--no-reshard", "--dry-run"]
    assert main(words) == 0
    assert "the run would be resumed, with 1 of 2 shards published\n" in capsys.readouterr().out
    assert main([*words, "--scratch", str(tmp_path / "別")]) == 2
    assert "leave out --scratch, or start over with --fresh" in capsys.readouterr().out
    assert main([*words, "--fresh"]) == 0
    assert "the run would start over, and delete what is there\n" in capsys.readouterr().out
    stranger = root / OUT / "stranger.txt"
    stranger.touch()
    assert main([*words, "--fresh"]) == 2
    assert str(stranger) in capsys.readouterr().out
    layout.job.unlink()
    layout.reshard_record.touch()
    assert main(words) == 2
    assert "belongs to shards made by 'datafetch reshard'" in capsys.readouterr().out


def test_a_run_at_work_is_named(source: CoyoSource, root: Path, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """Its process and its machine, as its heartbeat says."""
    fetch_shards(job, shard_names(job)[:1])
    progress = OutputLayout(root / OUT).shard_progress(shard_names(job)[0])
    text = progress.read_text()
    progress.write_text(text.replace('"is_ended":true', '"is_ended":false'))
    assert prepare(source, root) == 2
    assert f"(process {os.getpid()} on {socket.gethostname()})" in capsys.readouterr().out


def test_a_run_that_has_the_lock_and_no_heartbeat_yet_is_named(
    source: CoyoSource, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the run itself would be refused by the lock; once it is released, the output is new again."""
    layout = OutputLayout(root / OUT)
    layout.state_folder.mkdir(parents=True)
    lock = Lock(layout.lock, layout.out)
    lock.acquire()
    try:
        assert prepare(source, root) == 2
        me = f"(process {os.getpid()} on {socket.gethostname()}); wait for it, or stop it first"
        assert f"the run would be refused: a run is working on {layout.out} {me}" in capsys.readouterr().out
        assert prepare(source, root, "--no-lock") == 2
        assert "and --no-lock is for outputs that no other run uses" in capsys.readouterr().out
    finally:
        lock.release()
    assert prepare(source, root) == 0
    assert "output      new\n" in capsys.readouterr().out


@pytest.mark.usefixtures("_commands_in_threads")
def test_documents_are_counted_with_their_images(
    tmp_path: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Their number without an id list is that of the lines, and each may have several images; at 80 columns."""
    folder = place_source("mmc4-core", tmp_path, "写真.example").folder
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    words = ["prepare", "mmc4-core", "--source", str(folder), "--root", str(root), "--dry-run"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[1:])) <= 80
    text = " ".join(out.split())
    assert f"hosts {'写真'.encode('idna').decode()}.example 100.0%" in text
    assert "chosen no --ids: all documents of the source are taken, about " in text
    assert "--keep-at-least (all)" in text


@pytest.mark.parametrize("options", [["--source", "nowhere"], ["--ids", "nowhere"]])
def test_what_stops_a_run_is_a_line_and_exit_2(
    source: CoyoSource, root: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A source or list that is missing."""
    assert prepare(source, root, *options) == 2
    assert "output      the run would be refused: " in capsys.readouterr().out


@pytest.mark.usefixtures("_commands_in_threads")
def test_a_run_says_what_nobody_has_chosen(source: CoyoSource, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """VILA's choice of rows, and the defaults that rows follow from, once each."""
    words = ["prepare", "coyo", "--source", str(source.folder), "--root", str(root), "--processes", "1"]
    assert main([*words, "--limit", "1", "--no-reshard", "--retries", "0", "--short-side", "64"]) == 0
    lines = capsys.readouterr().err.splitlines()
    choice = (
        "no --ids: VILA's choice takes at most 10 of 50 rows, of each file the fifth with the highest CLIP similarity"
    )
    defaults = ", ".join(["--payload base64", *DEFAULTS])
    assert lines[1:3] == [
        f"datafetch: {choice}, if above 0.6",
        f"datafetch: defaults that decide the rows: {defaults}",
    ]
