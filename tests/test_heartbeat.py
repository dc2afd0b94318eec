"""The heartbeat, a small file that shows how a run is doing."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import until
from in_process import retry, run

from datafetch.demo.manifest import write_coyo_source
from datafetch.engine.job import Job
from datafetch.errors import ConfigurationError
from datafetch.fetch import FetchPolicy
from datafetch.model.statistics import Statistics
from datafetch.monitor.heartbeat import ProgressSnapshot, read_snapshot, write_heartbeats
from datafetch.store.layout import OutputLayout

STATISTICS = Statistics(
    expected_images=4000,
    ok=1100,
    failed=100,
    earlier=200,
    shards=4,
    shards_published=1,
    fetched_bytes=1 << 30,
    connections=8,
    open_requests=5,
    elapsed_s=10.0,
)


def recent_snapshot() -> ProgressSnapshot:
    """Return a heartbeat of a run in this process, written just now."""
    now_unix_s = time.time()
    return ProgressSnapshot(
        os.getpid(), socket.gethostname(), now_unix_s - 10, now_unix_s, False, "/spools", 100.0, STATISTICS
    )


async def test_a_run_writes_its_first_and_last_heartbeat(tmp_path: Path) -> None:
    """The first one is written at once and is complete; the last one says that no other follows."""
    layout = OutputLayout(tmp_path / "out", job_hash="0123456789abcdef")
    layout.state_folder.mkdir()
    writing = asyncio.create_task(write_heartbeats(lambda: STATISTICS, layout, layout.progress))
    await until(layout.progress.exists)
    first = await asyncio.to_thread(read_snapshot, layout.progress)
    assert first is not None
    assert (first.pid, first.host, first.statistics) == (os.getpid(), socket.gethostname(), STATISTICS)
    assert first.spools == str(tmp_path / "out.datafetch" / "spool" / "0123456789abcdef")
    assert first.images_per_s == 100
    assert first.started_unix_s <= first.updated_unix_s <= time.time()
    assert first.is_at_work()
    writing.cancel()
    await asyncio.wait([writing])
    last = await asyncio.to_thread(read_snapshot, layout.progress)
    assert last is not None
    assert last.is_ended
    assert not last.is_at_work()
    assert last.started_unix_s == first.started_unix_s
    assert await asyncio.to_thread(os.listdir, layout.state_folder) == ["progress.json"]


async def test_a_heartbeat_that_cannot_be_written_does_not_end_a_run(tmp_path: Path) -> None:
    """If its folder is missing, writing is repeated without success until it is cancelled."""
    calls = 0

    def take_statistics() -> Statistics:
        nonlocal calls
        calls += 1
        return STATISTICS

    layout = OutputLayout(tmp_path / "nowhere" / "out")
    writing = asyncio.create_task(write_heartbeats(take_statistics, layout, layout.progress))
    await until(lambda: calls == 1)
    writing.cancel()
    await asyncio.wait([writing])
    assert writing.cancelled()
    assert calls == 2
    assert not await asyncio.to_thread(os.listdir, tmp_path)


async def test_a_failing_heartbeat_is_logged_once_and_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the error is, once it has passed the run is seen to be at work again."""
    monkeypatch.setattr("datafetch.monitor.heartbeat.INTERVAL_S", 0.0)
    layout = OutputLayout(tmp_path / "out", job_hash="0123456789abcdef")
    layout.state_folder.mkdir()
    calls = 0

    def take_statistics() -> Statistics:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise RuntimeError("can't start new thread")
        return STATISTICS

    writing = asyncio.create_task(write_heartbeats(take_statistics, layout, layout.progress))
    await until(layout.progress.exists)
    writing.cancel()
    await asyncio.wait([writing])
    assert writing.cancelled()
    messages = [record.message for record in caplog.records]
    assert messages == ["the heartbeat failed (RuntimeError: can't start new thread); the work itself continues"]


@pytest.mark.parametrize(
    ("change", "is_at_work"),
    [
        ({}, True),
        ({"is_ended": True}, False),
        ({"updated_unix_s": time.time() - 3600}, False),
        ({"updated_unix_s": time.time() + 3600}, False),
        ({"host": "elsewhere.example", "pid": 2**31 - 1}, True),
        ({"pid": 2**31 - 1}, False),
        ({"pid": 1}, True),
    ],
)
def test_a_run_is_at_work_if_its_heartbeat_is_recent(change: dict[str, Any], is_at_work: bool) -> None:
    """The process of the run must exist, or be on another machine."""
    assert replace(recent_snapshot(), **change).is_at_work() is is_at_work


def test_a_process_that_was_killed_is_not_at_work() -> None:
    """This is detected however recent its heartbeat is."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mine = replace(recent_snapshot(), pid=process.pid)
    assert mine.is_at_work()
    process.kill()
    process.communicate()
    assert not mine.is_at_work()


@pytest.mark.parametrize("work", [run, lambda job: retry(job.out, change=lambda _: job)])
def test_no_lock_respects_a_recent_heartbeat(tmp_path: Path, work: Callable[[Job], object]) -> None:
    """With ``--no-lock`` a run reads the heartbeat, as ``status`` does, before it changes anything."""
    source = write_coyo_source(tmp_path / "source", ["http://127.0.0.1:1/a.jpg"], files=1)
    job = Job("coyo", str(source.folder), str(tmp_path / "out"), no_lock=True)
    run(replace(job, fetch=FetchPolicy(allow_net=("127.0.0.0/8",), retries=0)))
    layout = OutputLayout(tmp_path / "out")
    layout.progress.write_bytes(orjson.dumps(recent_snapshot()))
    before = layout.job.read_bytes()
    with pytest.raises(ConfigurationError, match=r"a run is working on .*out \(process"):
        work(replace(job, fresh=True))
    assert layout.job.read_bytes() == before


def test_a_heartbeat_is_read_as_it_was_written(tmp_path: Path) -> None:
    """This includes one whose expected number of images is unknown."""
    for written in (
        recent_snapshot(),
        replace(recent_snapshot(), statistics=replace(STATISTICS, expected_images=None)),
    ):
        (tmp_path / "progress.json").write_bytes(orjson.dumps(written))
        assert read_snapshot(tmp_path / "progress.json") == written


@pytest.mark.parametrize("content", [b"", b"garbage", b"[]", b"{}", b"null", b"[" * 100_000, b'{"pid": 1}', b"\xff"])
def test_an_invalid_heartbeat_counts_as_missing(tmp_path: Path, content: bytes) -> None:
    """The file may contain anything."""
    (tmp_path / "progress.json").write_bytes(content)
    assert read_snapshot(tmp_path / "progress.json") is None
    assert read_snapshot(tmp_path / "missing") is None
    assert read_snapshot(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pid", 0),
        ("pid", -1),
        ("pid", 2**31),
        ("pid", True),
        ("pid", "1"),
        ("host", 7),
        ("spools", "spools\0"),
        ("updated_unix_s", None),
        ("updated_unix_s", -1),
        ("images_per_s", 1e300),
        ("images_per_s", True),
        ("statistics", []),
        ("statistics.ok", -1),
        ("statistics.ok", 1.5),
        ("statistics.expected_images", "4000"),
        ("statistics.elapsed_s", "10"),
    ],
)
def test_a_heartbeat_with_an_invalid_value_counts_as_missing(tmp_path: Path, name: str, value: object) -> None:
    """No field is passed on if one of them has an impossible type or value."""
    written = orjson.loads(orjson.dumps(recent_snapshot()))
    folder, _, field = name.rpartition(".")
    (written[folder] if folder else written)[field] = value
    (tmp_path / "progress.json").write_bytes(orjson.dumps(written))
    assert read_snapshot(tmp_path / "progress.json") is None
