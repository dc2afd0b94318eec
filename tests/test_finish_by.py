"""A time by which a run finishes: what is missing then fails as ``timeout``, and a retry fetches it."""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from archive_server import ArchiveServer, Behaviour
from conftest import LOOPBACK
from http_server import HttpServer
from in_process import retry, run
from jobs import read_ledger
from PIL import Image
from test_archives import IMAGES, archive, coco, files  # noqa: F401 - archive is a fixture
from test_fetch_sample import write_documents

from datafetch.cli.app import main
from datafetch.cli.options import GivenOptions, parse_time
from datafetch.datasets.mmc4 import Mmc4CoreOptions
from datafetch.demo.manifest import write_coyo_source
from datafetch.engine.job import Job, read_job
from datafetch.errors import ConfigurationError
from datafetch.fetch import Fetcher, FetchPolicy
from datafetch.fetch.fetcher import OUT_OF_TIME
from datafetch.model.outcome import Failure, FailureKind
from datafetch.store.layout import OutputLayout

PATIENCE_S = 60.0
_LOOP_TICK_S = 0.001  # uvloop's clock counts milliseconds
POLICY = FetchPolicy(allow_net=LOOPBACK, backoff_s=0.01, retries=1)
PAST = datetime(2000, 1, 1, tzinfo=UTC)
JST = timezone(timedelta(hours=9))
NOW = datetime(2030, 6, 1, 22, 30, 15, tzinfo=JST).astimezone()


class _Pictures(HttpServer):
    """Serves a picture at every path: at once, with HTTP 500 below ``/broken``, and below ``/held`` when released."""

    def __init__(self) -> None:
        self.is_released = threading.Event()
        self.paths: list[str] = []
        picture = BytesIO()
        Image.effect_noise((64, 48), 50).save(picture, "JPEG")
        self._picture = picture.getvalue()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Send the picture."""
        self.paths.append(handler.path)
        if handler.path.startswith("/held"):
            self.is_released.wait(PATIENCE_S)
        handler.send_response(500 if handler.path.startswith("/broken") else 200)
        handler.send_header("Content-Length", str(len(self._picture)))
        handler.end_headers()
        handler.wfile.write(self._picture)


@pytest.fixture
def server() -> Iterator[_Pictures]:
    """A server of pictures."""
    with _Pictures() as running:
        yield running
        running.is_released.set()


def _coyo(folder: Path, server: _Pictures, paths: list[str]) -> Job:
    source = write_coyo_source(folder / "source", [f"{server.url}{path}" for path in paths])
    out = str(folder / "データ" / "out")
    return Job("coyo", str(source.folder), out, ids=str(source.ids), fetch=POLICY, world_size=None)


def _shards(job: Job) -> list[list[Any]]:
    return [pickle.loads(path.read_bytes()) for path in sorted(Path(job.out).glob("*.pkl"))]


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("22:31", "2030-06-01T22:31"),
        ("22:30", "2030-06-02T22:30"),
        ("7:00", "2030-06-02T07:00"),
        ("2030-06-02T07:00", "2030-06-02T07:00"),
        ("2030-06-02 07:00:30", "2030-06-02T07:00:30"),
        ("2030-06-02", "2030-06-02T00:00"),
    ],
)
def test_a_time_without_a_zone_is_a_local_one(text: str, time: str) -> None:
    """A time of day is the next one."""
    now = datetime.fromisoformat("2030-06-01T22:30:15").astimezone()
    assert parse_time("--finish-by", text, now) == datetime.fromisoformat(time).astimezone()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6h", 21_600),
        ("90m", 5400),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("90s", 90),
        ("1m30s", 90),
        ("2030-06-01T15:00:15+00:00", 5400),
    ],
)
def test_a_time_may_be_relative_or_have_a_zone(text: str, seconds: int) -> None:
    """Whatever the zone of this machine."""
    assert parse_time("--finish-by", text, NOW) == NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    ["", "soon", "25:00", "7", "6 hours", "h", "s", "30s1m", "1.5s", "2030-13-01T00:00", "9999-12-31T23:59-23:00"],
)
def test_other_times_are_refused(text: str) -> None:
    """With the three forms that there are."""
    with pytest.raises(ConfigurationError, match=r"^--finish-by takes a time of day \(07:00\), a date and a time \("):
        parse_time("--finish-by", text, NOW)


def test_a_time_that_has_passed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise every image would fail because of a slip of the pen."""
    command = ["prepare", "coyo", "--source", str(tmp_path), "--root", str(tmp_path), "--finish-by", "2020-01-01T07:00"]
    assert main(command) == 2
    assert capsys.readouterr().err == "datafetch: --finish-by 2020-01-01T07:00 has passed; give a later time\n"
    for text in ("0m", "0d0h", "0s", "0m0s"):
        assert main([*command[:-1], text]) == 2
        assert capsys.readouterr().err == f"datafetch: --finish-by {text} leaves no time; give a later time\n"


def test_the_option_reaches_the_job_of_a_run_and_of_a_retry() -> None:
    """A job without it takes as long as it takes."""
    before = datetime.now(UTC)
    finish_by = GivenOptions({"finish_by": "6h"}).change(Job("coyo", "in", "out")).finish_by
    assert finish_by is not None
    assert finish_by - before >= timedelta(hours=6)
    assert GivenOptions({}).change(Job("coyo", "in", "out")).finish_by is None


async def test_a_call_ends_in_time_with_the_attempts_that_were_made(server: _Pictures) -> None:
    """A request that hangs, and one that pauses between attempts, count as attempts; one that waits does not."""
    policy = replace(POLICY, backoff_s=10_000.0, per_host=1)
    loop, fetched = asyncio.get_running_loop(), None
    for name in ("held", "broken"):
        for limit_s in (0.2, 1.0, 5.0, 25.0):  # more where the machine is too busy to send a request in that time
            async with Fetcher(policy) as fetch:
                until_s = loop.time() + limit_s
                fetched = await fetch(f"{server.url}/{name}", until_s=until_s)
                assert loop.time() >= until_s - _LOOP_TICK_S
                assert isinstance(fetched, Failure)
                assert (fetched.kind, fetched.detail) == (OUT_OF_TIME.kind, OUT_OF_TIME.detail)
                assert fetch.statistics().attempts == fetched.attempts
                assert fetch.statistics().held_bytes == 0
                assert fetch.statistics().open_requests == 0
            if fetched.attempts:
                break
        assert fetched is not None
        assert fetched.attempts == 1
    async with Fetcher(policy) as fetch:
        first = asyncio.create_task(fetch(f"{server.url}/held/first", until_s=loop.time() + 0.5))
        await asyncio.sleep(0)
        second = await fetch(f"{server.url}/held/second", until_s=loop.time() + 0.2)
        assert second == OUT_OF_TIME  # it has waited for its host
        await first
    assert "/held/second" not in server.paths


@pytest.mark.rotating
def test_what_is_missing_at_that_time_fails_and_a_retry_fetches_it(tmp_path: Path, server: _Pictures) -> None:
    """The output is complete at once, and after the retry it is that of a run without a limit, to the byte."""
    paths = [f"/{kind}/{number}" for number in range(6) for kind in ("well", "held")]
    job = _coyo(tmp_path, server, paths)
    report = run(replace(job, finish_by=datetime.now(UTC) + timedelta(seconds=1)))
    assert report.totals.ok + report.totals.failed == 12
    assert report.totals.outcomes["timeout"] >= 6
    lines = read_ledger(job)
    assert {line["detail"] for line in lines if line["outcome"] == "timeout"} == {OUT_OF_TIME.detail}
    assert {line["outcome"] for line in lines if "/held/" in line["url"]} == {"timeout"}
    server.is_released.set()
    retried = retry(job.out)
    assert retried.totals.outcomes == {"ok": 12}
    undisturbed = replace(job, out=f"{job.out}-undisturbed")
    run(undisturbed)
    assert _shards(job) == _shards(undisturbed)


@pytest.mark.rotating
def test_after_that_time_nothing_is_requested(
    tmp_path: Path, server: _Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    """Each image still gets its line. The time is neither part of the job nor kept for a retry."""
    job = _coyo(tmp_path, server, [f"/well/{number}" for number in range(500)])
    with caplog.at_level(logging.INFO):
        report = run(replace(job, finish_by=PAST))
    assert (report.totals.outcomes, report.requests, server.paths) == ({"timeout": 500}, 0, [])
    assert {(line["outcome"], line["attempts"], line["detail"]) for line in read_ledger(job)} == {
        ("timeout", 0, OUT_OF_TIME.detail)
    }
    assert [record.message for record in caplog.records if "--finish-by" in record.message] == [
        "it is time to finish (--finish-by): all images that are missing fail as timeout; 'retry' fetches them later"
    ]
    assert read_job(OutputLayout(Path(job.out)))[0].finish_by is None
    assert run(job).totals.outcomes == {"timeout": 500}  # the same job, which is complete
    assert retry(job.out, change=lambda stored: replace(stored, finish_by=PAST)).retried == 500
    assert server.paths == []
    assert retry(job.out).totals.outcomes == {"ok": 500}


@pytest.mark.rotating
@pytest.mark.parametrize("keep_at_least", [None, 1])
def test_documents_are_retried_as_a_whole(tmp_path: Path, server: _Pictures, keep_at_least: int | None) -> None:
    """With some of their images, or with none; after the retry they are those of a run without a limit."""
    urls = [[f"{server.url}/{kind}/{number}-{kind}" for kind in ("well", "held")] for number in range(4)]
    write_documents(tmp_path / "source" / "docs_shard_0_v3.jsonl", urls)
    options = Mmc4CoreOptions(keep_at_least=keep_at_least)
    job = Job(
        "mmc4-core", str(tmp_path / "source"), str(tmp_path / "out"), fetch=POLICY, world_size=None, options=options
    )
    for finish_by in (PAST, datetime.now(UTC) + timedelta(seconds=1)):
        ended = replace(job, out=f"{job.out}-{finish_by.year}", finish_by=finish_by)
        server.is_released.clear()
        report = run(ended)
        assert report.totals.ok + report.totals.failed == 8
        assert {line["outcome"] for line in read_ledger(ended)} <= {"ok", "timeout"}
        server.is_released.set()
        assert retry(ended.out).totals.outcomes == {"ok": 8}
        undisturbed = replace(job, out=f"{ended.out}-undisturbed")
        run(undisturbed)
        assert _shards(ended) == _shards(undisturbed)


@pytest.mark.rotating
def test_members_of_an_archive_are_not_waited_for(tmp_path: Path, archive: Path) -> None:  # noqa: F811
    """Neither those that were not asked for, nor those on their way."""
    with ArchiveServer(archive) as server:
        job = coco(tmp_path, server.url)
        assert run(replace(job, finish_by=PAST)).totals.outcomes == {"timeout": 60}
        server.behaviour = Behaviour(bytes_per_s=1)
        finish_by = datetime.now(UTC) + timedelta(seconds=1)
        totals = retry(job.out, change=lambda stored: replace(stored, finish_by=finish_by)).totals
        assert set(totals.outcomes) <= {"ok", "timeout"}
        assert totals.failed > 0
        lines = pq.read_table(OutputLayout(Path(job.out)).ledgers).to_pylist()
        assert {(line["detail"], line["source"]) for line in lines if line["outcome"] == "timeout"} == {
            (OUT_OF_TIME.detail, "archive")
        }
        server.behaviour = Behaviour()
        assert retry(job.out).totals.outcomes == {"ok": 60}
    assert files(job) == IMAGES


@pytest.mark.rotating
@pytest.mark.usefixtures("_commands_in_threads")
def test_the_command_says_that_it_is_time_and_a_retry_completes(
    tmp_path: Path, server: _Pictures, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0: the output is complete, with what there was in time."""
    job = _coyo(tmp_path, server, [f"/held/{number}" for number in range(5)])
    root = tmp_path / "データ"
    options = ["--allow-net", "127.0.0.0/8", "--processes", "1", "--no-reshard"]
    command = ["prepare", "coyo", "--source", job.source, "--ids", str(job.ids), "--root", str(root), *options]
    in_a_moment = datetime.now(UTC) + timedelta(seconds=3)
    assert main([*command, "--finish-by", in_a_moment.isoformat()]) == 0
    output = capfd.readouterr()
    assert "it is time to finish (--finish-by)" in output.err
    assert "5 failed" in output.out
    assert FailureKind.TIMEOUT in output.out
    server.is_released.set()
    assert main(["retry", str(root / "coyo-700m" / "pkl03-split")]) == 0
    assert "5 ok" in capfd.readouterr().out
