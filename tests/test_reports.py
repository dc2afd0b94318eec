"""A report is that of the last run that did something, and earlier ones are kept."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import LOOPBACK
from in_process import retry, run
from jobs import coyo_job, faulty_urls

from datafetch import Job, read_status
from datafetch.cli.render import show_report
from datafetch.demo.manifest import write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.fetch import FetchPolicy
from datafetch.store.layout import OutputLayout
from datafetch.store.reports import set_report_aside

Pictures = tuple[Path, list[str]]
FAULTS = {1: "flaky", 3: "missing"}


@pytest.fixture
def job(tmp_path: Path, origin: Origin, small_pictures: Pictures) -> Job:
    """A job of two shards, one of whose images arrives in a retry."""
    urls = faulty_urls(origin, small_pictures[1], FAULTS, 8, str(tmp_path))
    source = write_coyo_source(tmp_path / "元", urls, files=2)
    policy = FetchPolicy(allow_net=LOOPBACK, backoff_s=0.01, retries=0)
    return coyo_job(source, tmp_path / "データ" / "out", fetch=policy)


@pytest.fixture
def layout(job: Job) -> OutputLayout:
    """The paths of its output."""
    return OutputLayout(Path(job.out))


def history(layout: OutputLayout) -> list[bytes]:
    """Return the reports in the history, the oldest first."""
    return [path.read_bytes() for path in sorted(layout.reports.glob("*"))]


def be_killed(layout: OutputLayout) -> None:
    """Leave what a run leaves that is killed right after it began."""
    set_report_aside(layout)
    assert read_status(layout.out).state == "interrupted"


@pytest.mark.parametrize("before", [lambda _: None, be_killed])
def test_a_run_that_has_nothing_to_do_overwrites_no_report(
    job: Job, layout: OutputLayout, before: Callable[[OutputLayout], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """It says what it did, which is nothing, and leaves the report of the run that did something."""
    run(job)
    report, written_ns = layout.report.read_bytes(), layout.report.stat().st_mtime_ns
    assert json.loads(report)["requests"] == 8
    before(layout)
    again = run(job)
    show_report(again, as_json=False)
    assert "this run: no image arrived" in capfd.readouterr().out
    assert again.requests == 0
    assert (layout.report.read_bytes(), layout.report.stat().st_mtime_ns) == (report, written_ns)
    assert history(layout) == []
    assert read_status(job.out).state == "complete"


def lose_a_shard(job: Job, layout: OutputLayout) -> None:
    """Delete a shard, and run again, which fetches it again."""
    (layout.out / "part-00001.pkl").unlink()
    run(job)


def test_reports_keep_a_history(job: Job, layout: OutputLayout) -> None:
    """Each run or retry that did something adds one, and none is changed after it was written."""
    reports: list[bytes] = []
    works: list[Callable[[], Any]] = [
        lambda: run(job),
        lambda: retry(job.out),
        lambda: retry(job.out),
        lambda: run(job),
        lambda: lose_a_shard(job, layout),
    ]
    for work, does_something in zip(works, (True, True, False, False, True), strict=True):
        work()
        if does_something:
            reports.append(layout.report.read_bytes())
        assert [*history(layout), layout.report.read_bytes()] == reports
    assert [json.loads(one)["images"]["ok"] for one in reports] == [6, 7, 7]
    assert [json.loads(one).get("retried") for one in reports] == [None, 1, None]


def test_a_report_that_does_not_describe_the_output_is_replaced(job: Job, layout: OutputLayout) -> None:
    """It may be damaged, or tell of an output before something was changed by hand."""
    run(job)
    report = layout.report.read_bytes()
    for other in (b"{}", b"\0", report.replace(b'"rows": 6', b'"rows": 5')):
        layout.report.write_bytes(other)
        run(job)
        assert json.loads(layout.report.read_bytes())["samples"]["rows"] == 6
        assert history(layout)[-1] == other


def test_the_history_is_bounded(layout: OutputLayout) -> None:
    """The oldest of more than a hundred reports are deleted; what is no report stays."""
    layout.state_folder.mkdir(parents=True)
    for number in range(130):
        layout.report.write_text(str(number))
        os.utime(layout.report, ns=(0, number % 65))  # two of each time
        set_report_aside(layout)
    (layout.reports / "notes.txt").touch()
    set_report_aside(layout)
    assert len(list(layout.reports.glob("*.json"))) == 100
    assert (layout.reports / "notes.txt").exists()
