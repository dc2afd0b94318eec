"""The progress of what a command does besides fetching images: downloads, scans, and the asking of sources."""

import asyncio
import io
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
from archive_server import ArchiveServer
from conftest import LOOPBACK
from in_process import run
from rich.cells import cell_len
from rich.console import Console
from sources import DATA
from zips import write_zip

from datafetch import Job
from datafetch.cli.app import main
from datafetch.cli.progress_line import ProgressLine, activity_line, run_line, with_activity
from datafetch.cli.report_targets import Target, Terminal
from datafetch.cli.reporter import Reporter, Reporting, open_reporter, receiving
from datafetch.demo.manifest import write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.engine.published import download_file
from datafetch.fetch import FetchPolicy
from datafetch.model import activities
from datafetch.model.activities import Activity, ActivityProgress, ActivityUnit
from datafetch.model.statistics import Statistics
from datafetch.monitor.throughput import Pace

LIST = DATA / "llava-instruct-ja/source/llava_instruct_ja_156k.json"
DOWNLOAD = ActivityProgress(
    "downloading 北海道.json", 5_000_000, 20_000_000, ActivityUnit.BYTE, 2_500_000.0, is_at_work=True
)
SCAN = ActivityProgress("reading ids", 32, 128, ActivityUnit.FILE, 2.0, is_at_work=True)


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report every state of an activity, although none of them takes a second here."""
    monkeypatch.setattr(activities, "_FIRST_AFTER_S", 0.0)
    monkeypatch.setattr(activities, "_INTERVAL_S", 0.0)
    monkeypatch.setattr(Target, "interval_s", 0.0)


def progress_in(log: Path) -> list[str]:
    """Return the lines of progress in a file of ``--log``."""
    return re.findall(r"^\S+ progress: (.*)$", log.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_line_of_an_activity() -> None:
    """What is done, how much of it, the pace and the time left; it fits a narrow terminal, too."""
    line = activity_line(DOWNLOAD)
    assert line.whole() == "downloading 北海道.json  25.0% 5.0 MB/20.0 MB  2.5 MB/s  ETA 0:06"
    assert line.fitted(50) == "downloading 北海道.json  25.0%  2.5 MB/s  ETA 0:06"
    assert cell_len(line.fitted(40)) <= 40
    assert activity_line(SCAN).whole() == "reading ids  25.0% 32/128 files  ETA 0:48"
    done = replace(SCAN, done=128, is_at_work=False)
    assert activity_line(done).whole() == "reading ids  100.0% 128/128 files"
    evil = replace(DOWNLOAD, what="downloading \x1b[2J\r")
    assert activity_line(evil).whole().isprintable()


def test_an_activity_during_a_run_is_a_field_of_its_line() -> None:
    """It has a place at 80 columns while nothing else is known."""
    nothing = Statistics(None, 0, 0, 0, 128, 0, 0, 64, 0, 1.0)
    line = with_activity(run_line(nothing, Pace()), SCAN)
    assert line.whole() == "0 images  0 ok  0/128 shards  reading ids 25.0% 32/128 files ETA 0:48"
    assert line.fitted(80) == "0 images  0 ok  0/128 shards  reading ids 25.0% 32/128 files ETA 0:48"
    assert line.fitted(40) == "0 images  0 ok  reading ids 32/128"


def test_activities_that_are_over_soon_are_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Neither is anything, unless somebody asks for it."""
    caplog.set_level(logging.DEBUG)
    with Activity("copying", 10, ActivityUnit.FILE) as activity:
        activity.advance(10)
    assert not caplog.records


@pytest.mark.usefixtures("_at_once")
def test_the_pace_of_an_activity_is_that_of_its_own_work(caplog: pytest.LogCaptureFixture) -> None:
    """What was done before, and what is skipped, does not count; before the first part is done, nothing is known."""
    caplog.set_level(logging.DEBUG)
    activity = Activity("reading", 10, ActivityUnit.FILE, done=2)
    with activity:
        activity.skip(3)
    with activity:
        activity.advance(5)
    seen = [record.__dict__["activity"] for record in caplog.records]
    assert all(isinstance(one, ActivityProgress) for one in seen)
    assert [(one.done, one.is_at_work) for one in seen] == [(2, True), (5, False), (5, True), (10, True), (10, False)]
    assert [one.per_s > 0 for one in seen] == [False, False, False, True, True]
    assert seen[-1].left_s is None


@pytest.mark.usefixtures("_at_once")
def test_an_activity_has_a_live_line_on_a_terminal() -> None:
    """Its last state stays, and the next thing has a line of its own."""
    screen = io.StringIO()
    reporter = Reporter(Terminal(Console(file=screen, force_terminal=True, width=80)))
    with receiving(reporter):
        with Activity("asking sources", 2, ActivityUnit.SOURCE) as activity:
            activity.advance(1)
            activity.advance(1)
        with reporter.progress():
            reporter.show(
                ProgressLine(run_line(Statistics(5, 5, 0, 0, 1, 1, 0, 1, 0, 1.0), Pace()).fields), is_end=True
            )
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n")
    assert list(dict.fromkeys(line for line in shown.splitlines() if line))[-2:] == [  # live lines are drawn repeatedly
        "asking sources  100.0% 2/2 sources",
        "100.0% 5/5  5 ok  1/1 shards",
    ]


@pytest.mark.usefixtures("_at_once")
def test_the_progress_of_a_download_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the name of the file and its size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    log = tmp_path / "log"
    with ArchiveServer(LIST) as server, open_reporter(Reporting(log=str(log), quiet=True)):
        job = Job("llava-instruct-ja", server.url, str(tmp_path / "out"), fetch=FetchPolicy(allow_net=LOOPBACK))
        asyncio.run(download_file(server.url, job))
    name = re.escape(Path(server.url).name)
    assert re.fullmatch(
        rf"downloading (リスト\.json|{name})  100\.0% (.+ k?B|.+ bytes)/\2(  .+/s)?", progress_in(log)[-1]
    )


@pytest.mark.usefixtures("_at_once")
def test_the_progress_of_scans_is_shown(tmp_path: Path, origin: Origin, small_pictures: tuple[Path, list[str]]) -> None:
    """By the number of files whose ids were read, in the line of the run."""
    log = tmp_path / "log"
    urls = [origin.url("well", name, tmp_path.name) for name in small_pictures[1][:3]]
    source = write_coyo_source(tmp_path / "source", urls, files=3)
    policy = FetchPolicy(allow_net=LOOPBACK)
    job = Job("coyo", str(source.folder), str(tmp_path / "out"), ids=str(source.ids), fetch=policy, world_size=None)
    with open_reporter(Reporting(log=str(log), quiet=True)):
        run(job)
    assert [line for line in progress_in(log) if "reading ids" in line][-1].endswith("100.0% 3/3 files")


@pytest.mark.usefixtures("_at_once")
def test_the_progress_of_asking_sources_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By the number of datasets whose sources have answered."""
    archive, log = tmp_path / "images.zip", tmp_path / "log"
    write_zip(archive, {"images/1.jpg": b"-" * 1000})
    with ArchiveServer(archive) as server:
        words = ["prepare", "gqa", "textvqa", "--source", f"gqa={server.url}", "--source", f"textvqa={server.url}"]
        options = ["--check-sources", "--root", str(tmp_path / "data"), "--allow-net", "127.0.0.0/8", "--log", str(log)]
        assert main([*words, *options, "--quiet"]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert "gqa" in printed.out
    assert progress_in(log)[-1] == "asking sources  100.0% 2/2 sources"
