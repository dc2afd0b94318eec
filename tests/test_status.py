"""The status of a run, whenever and however it is requested."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from outputs import line, publish, spool, write_heartbeat, write_job
from rich.cells import cell_len

from datafetch.cli.app import main
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.errors import ConfigurationError, ResourceError
from datafetch.model.statistics import Waiting, WorkerState
from datafetch.monitor import host_failures
from datafetch.monitor.status import RunState, Status, read_status
from datafetch.store.last_stop import record_stop
from datafetch.store.layout import OutputLayout
from datafetch.store.lock import Lock
from datafetch.store.lock_holder import LockHolder

Pictures = tuple[Path, list[str]]
IMAGES = 90
PATIENCE_S = 120


@pytest.fixture
def source(tmp_path: Path, own_origin: Origin, small_pictures: Pictures) -> CoyoSource:
    """A manifest of two shards whose images take a second each, except for some that are missing."""
    names = small_pictures[1]
    urls = [
        own_origin.url("slow" if number % 10 else "missing", names[number % len(names)], f"{tmp_path.name}-{number}")
        for number in range(IMAGES)
    ]
    return write_coyo_source(tmp_path / "source", urls, files=2)


@pytest.fixture
def run_at_work(tmp_path: Path, source: CoyoSource) -> Iterator[subprocess.Popen[str]]:
    """The running command that fetches this manifest, with a scratch folder."""
    command = [
        *(sys.executable, "-m", "datafetch", "prepare", "coyo", "--scratch", str(tmp_path / "scratch")),
        *("--source", str(source.folder), "--ids", str(source.ids), "--root", str(tmp_path / "root")),
        *("--allow-net", "127.0.0.0/8", "--connections", "30", "--per-host", "30", "--processes", "1"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def data_folder(tmp_path: Path) -> Path:
    """Return the folder that the command writes to."""
    return tmp_path / "root" / "coyo-700m" / "pkl03-split"


def polled(process: subprocess.Popen[str], out: Path) -> Iterator[Status]:
    """Yield the status repeatedly, from the time when the job file exists until the run is complete."""
    while not OutputLayout(out).job.exists():
        assert process.poll() is None, process.communicate()
    for _ in iter(process.poll, 1):
        status = read_status(out)
        yield status
        if status.state is RunState.COMPLETE:
            return


def check_consistency(status: Status) -> None:
    """Check what holds for every status."""
    assert status.ended == status.ok + status.failed
    assert status.failed == sum(status.by_kind.values()) == sum(host.failed for host in status.hosts)
    assert status.rows + status.dropped <= status.samples <= status.ended
    assert status.shards_published + status.shards_open <= status.shards
    assert status.expected_images is None or status.expected_images == status.ended + (status.open_images or 0)
    assert bool(status.at_work) is (status.state is RunState.RUNNING)


@pytest.mark.rotating
def test_the_status_of_a_run_is_consistent_to_its_end(tmp_path: Path, run_at_work: subprocess.Popen[str]) -> None:
    """It never fails, contradicts itself or goes back, and at the end it agrees with the report."""
    out = data_folder(tmp_path)
    seen = list(polled(run_at_work, out))
    for status in seen:
        check_consistency(status)
    for before, after in pairwise(seen):
        assert before.shards_published <= after.shards_published
        assert before.samples <= after.samples
        assert before.fetched_bytes <= after.fetched_bytes
        assert not Counter(before.outcomes) - Counter(after.outcomes)
    states = [status.state for status in seen]
    running = [status for status in seen if status.state is RunState.RUNNING]
    assert states[states.index(RunState.RUNNING) :] == [RunState.RUNNING] * len(running) + [RunState.COMPLETE]
    assert len({status.ended for status in running}) > 5
    assert any(one.pid == run_at_work.pid for status in running for one in status.at_work)
    assert all(status.shards_open for status in running if status.ended not in (0, IMAGES))
    assert any(status.spooled_bytes for status in running)
    run_at_work.communicate(timeout=PATIENCE_S)  # the report comes after the last shard
    last = read_status(out)
    report = orjson.loads(OutputLayout(out).report.read_bytes())
    summary: dict[str, Any] = last.summary()
    assert (last.ok, last.failed) == (IMAGES * 9 // 10, IMAGES // 10)
    assert summary["images"]["by_kind"] == report["images"]["by_kind"]
    assert summary["images"]["expected"] == report["images"]["total"]
    assert summary["samples"] == {"rows": 81, "dropped": 9, "ended": 90}
    assert summary["shards"] == {"total": 2, "published": 2, "open": 0}
    assert summary["bytes"] == {
        "published": report["bytes"]["written"],
        "spooled": 0,
        "fetched": report["bytes"]["fetched"],
    }
    assert (summary["images_per_s"], summary["elapsed_s"]) == (report["images_per_s"], report["elapsed_s"])
    assert [(host.host, host.by_kind) for host in last.hosts] == [("127.0.0.1", {"http_status": 9})]


@pytest.mark.rotating
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_is_interrupted(
    tmp_path: Path, run_at_work: subprocess.Popen[str], signal_number: signal.Signals
) -> None:
    """This holds as soon as its process is gone. Images in its spools count, wherever these are."""
    out = data_folder(tmp_path)
    for status in polled(run_at_work, out):
        if status.ok > 10:
            break
    run_at_work.send_signal(signal_number)
    run_at_work.communicate(timeout=PATIENCE_S)
    stopped = read_status(out)
    check_consistency(stopped)
    assert stopped.state is RunState.INTERRUPTED
    assert stopped.ended >= status.ended > 10
    assert stopped.samples == stopped.ended
    assert stopped.shards_open >= 1
    assert stopped.expected_images in (IMAGES + 5, IMAGES)  # the ids that are listed; exact once all are looked for
    assert stopped.spooled_bytes > 0
    assert stopped.elapsed_s is not None
    assert read_status(out) == stopped


@pytest.fixture
def layout(tmp_path: Path) -> OutputLayout:
    """An output with a published shard, one in progress, and one that has not been started."""
    made = OutputLayout(tmp_path / "out")
    write_job(made, "a", "b", "c")
    lines = [line(0, "http://x.org/"), line(1, "http://y.org/", "timeout"), line(2, "http://Y.org:81/", "tls")]
    publish(made, "a", lines)
    spool(made, "b", [line(0, "http://y.org/", "timeout"), line(1, "http://z.org/")])
    return made


def test_json_prints_the_contracts_object(layout: OutputLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed to standard error, and nothing is written."""
    before = {path: path.stat().st_mtime_ns for path in layout.out.parent.rglob("*")}
    assert main(["status", str(layout.out), "--json"]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert json.loads(printed.out) == {
        "dataset": "coyo",
        "out": str(layout.out),
        "state": "interrupted",
        "shards": {"total": 3, "published": 1, "open": 1},
        "samples": {"rows": 1, "dropped": 2, "ended": 5},
        "images": {
            "expected": None,
            "done": 5,
            "ok": 2,
            "failed": 3,
            "open": None,
            "by_kind": {"timeout": 2, "tls": 1},
        },
        "hosts": [{"host": "y.org", "failed": 3, "by_kind": {"timeout": 2, "tls": 1}}],
        "bytes": {
            "published": 100,
            "spooled": next(layout.all_spools.glob("*/b.spool")).stat().st_size,
            "fetched": 5000,
        },
        "images_per_s": None,
        "elapsed_s": None,
        "left_s": None,
        "waiting": None,
    }
    assert {path: path.stat().st_mtime_ns for path in layout.out.parent.rglob("*")} == before


def test_the_output_may_be_named_in_several_ways(layout: OutputLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path may end with a slash, be that of the state folder, or be given from inside."""
    expected = read_status(layout.out)
    assert read_status(Path(f"{layout.out}/")) == expected
    assert read_status(layout.state_folder) == expected
    monkeypatch.chdir(layout.out)
    assert read_status(Path()) == expected
    assert read_status(Path("../out")).ended == expected.ended


def test_a_spool_does_not_count_if_its_shard_has_a_ledger(layout: OutputLayout) -> None:
    """A spool may remain for a moment, or after a crash."""
    before = read_status(layout.out)
    spool(layout, "a", [line(0, "http://x.org/")])
    assert read_status(layout.out) == before


def test_a_shard_without_its_files_is_not_published(layout: OutputLayout) -> None:
    """A run would make it again. This does not apply to resharded output, which has other files."""
    (layout.out / "a.pkl").unlink()
    assert read_status(layout.out).shards_published == 0
    layout.reshard_record.touch()
    assert read_status(layout.out).shards_published == 1


def test_a_run_is_complete_when_nothing_is_left_to_do(tmp_path: Path, layout: OutputLayout) -> None:
    """All shards, or as many samples as the limit allows, are published, and no later step is pending."""
    publish(layout, "b", [])
    assert read_status(layout.out).state is RunState.INTERRUPTED
    publish(layout, "c", [])
    assert read_status(layout.out).state is RunState.INTERRUPTED
    layout.report.write_text("{}")
    complete = read_status(layout.out)
    assert (complete.state, complete.expected_images, complete.open_images) == (RunState.COMPLETE, 3, 0)
    limited = OutputLayout(tmp_path / "limited")
    write_job(limited, "a", "b", limit=2)
    publish(limited, "a", [line(0, "http://x.org/"), line(1, "http://x.org/")])
    limited.report.write_text("{}")
    assert read_status(limited.out).state is RunState.COMPLETE
    limited.retry.write_text("{}")
    assert read_status(limited.out).state is RunState.INTERRUPTED


def test_a_running_process_provides_the_expected_images(layout: OutputLayout) -> None:
    """It also provides the rate and the time. The number of open images is never negative."""
    write_heartbeat(layout, expected_images=1000)
    status = read_status(layout.out)
    assert (status.state, status.expected_images, status.open_images) == (RunState.RUNNING, 1000, 995)
    assert (status.images_per_s, status.elapsed_s) == (123.45, 83.0)
    write_heartbeat(layout, expected_images=3)
    assert read_status(layout.out).open_images == 0


@pytest.mark.parametrize("report", [b"garbage", b"[]", b'{"images_per_s": "fast", "elapsed_s": 3}'])
def test_garbage_in_the_state_folder_is_ignored(layout: OutputLayout, report: bytes) -> None:
    """Foreign files, damaged spools, invalid reports and heartbeats, and files that vanish do not count."""
    before = read_status(layout.out)
    layout.report.write_bytes(report)
    layout.progress.write_bytes(report)
    folder = next(layout.all_spools.iterdir())
    (folder / "c.spool").write_bytes(b"garbage")
    (folder / "stranger.spool").write_bytes((folder / "b.spool").read_bytes())
    (folder / "a.spool").mkdir()
    (layout.all_spools / "file").touch()
    (layout.ledgers / "stranger.parquet").write_bytes(b"garbage")
    (layout.ledgers / "c.parquet").symlink_to("/nowhere")  # is listed, but can't be read
    with (folder / "b.spool").open("ab") as file:
        file.write(b"half a record")
    after = read_status(layout.out)
    assert replace(after, spooled_bytes=before.spooled_bytes) == before


@pytest.mark.rotating
def test_records_before_the_damage_of_a_spool_count(layout: OutputLayout) -> None:
    """Wherever a byte is flipped (here every fifth one), the status neither fails nor invents images."""
    path = next(layout.all_spools.glob("*/b.spool"))
    whole = path.read_bytes()
    for offset in range(0, len(whole), 5):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x55]) + whole[offset + 1 :])
        assert 3 <= read_status(layout.out).ended <= 5


def _no_job(layout: OutputLayout) -> None:
    layout.job.unlink()


def _broken_job(layout: OutputLayout) -> None:
    layout.job.write_bytes(b"garbage")


def _other_job(layout: OutputLayout) -> None:
    layout.job.write_bytes(b'{"format": 1, "dataset": 7, "shards": {}, "limit": null}')


def _job_that_leaves_the_folder(layout: OutputLayout) -> None:
    layout.job.write_bytes(b'{"format": 1, "dataset": "coyo", "shards": {"../a": []}, "limit": null}')


def _broken_ledger(layout: OutputLayout) -> None:
    layout.ledger("a").write_bytes(b"garbage")


def _ledger_without_counts(layout: OutputLayout) -> None:
    pq.write_table(pa.table({"url": ["x"]}), layout.ledger("a"))


def _ledger_with_other_counts(layout: OutputLayout) -> None:
    metadata = {b"datafetch.totals": b'{"samples": "x"}'}
    pq.write_table(pa.table({"url": ["x"]}).replace_schema_metadata(metadata), layout.ledger("a"))


def _ledger_with_other_columns(layout: OutputLayout) -> None:
    metadata = {b"datafetch.totals": b'{"written_bytes": 100}'}
    pq.write_table(pa.table({"url": [7]}).replace_schema_metadata(metadata), layout.ledger("a"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_job, "there is no run in"),
        (_broken_job, "job.json is not a job"),
        (_other_job, "job.json is not a job"),
        (_job_that_leaves_the_folder, "job.json is not a job"),
    ],
)
def test_an_invalid_state_is_one_line_and_exit_2(
    layout: OutputLayout, damage: Any, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The error names the file and what is wrong with it."""
    damage(layout)
    assert main(["status", str(layout.out)]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("datafetch: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


@pytest.mark.parametrize(
    "damage", [_broken_ledger, _ledger_without_counts, _ledger_with_other_counts, _ledger_with_other_columns]
)
def test_a_damaged_ledger_is_named_and_its_shard_left_out(
    layout: OutputLayout, damage: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """What all other shards came to is shown."""
    before = read_status(layout.out)
    damage(layout)
    assert main(["status", str(layout.out)]) == 2
    printed = capfd.readouterr()
    assert printed.err == (
        f"datafetch: {layout.ledger('a')} is not a ledger of datafetch, so shard a is left out; put back a copy\n"
    )
    assert "without 1 shard with a damaged ledger, a" in " ".join(printed.out.split())
    after = read_status(layout.out)
    assert after.damaged_ledgers == ("a",)
    assert (after.shards_published, after.shards_open) == (before.shards_published - 1, before.shards_open)
    assert main(["status", str(layout.out), "--json"]) == 2
    assert json.loads(capfd.readouterr().out)["damaged_ledgers"] == ["a"]


@pytest.mark.parametrize("out", ["/", "/nowhere", "/dev/null", "/dev/null/out", ".datafetch"])
def test_a_path_without_a_run_is_refused(out: str) -> None:
    """There is one error for every kind of path."""
    with pytest.raises(ConfigurationError, match="there is no run in"):
        read_status(Path(out))


@pytest.mark.parametrize(("options", "hosts_shown"), [([], 5), (["--hosts"], 20)])
@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(
    layout: OutputLayout,
    width: int,
    options: list[str],
    hosts_shown: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It shows everything, and names from the web cannot control the terminal."""
    monkeypatch.setenv("COLUMNS", str(width))
    write_heartbeat(layout, expected_images=6_000_000)
    hosts = [f"http://{'very-' * 12}long-name-{number}\x1b[31m[red].example.org/" for number in range(30)]
    kinds = ["timeout", "disconnected", "http_status", "dns_not_found", "too_many_redirects"]
    publish(layout, "c", [line(number, url, kind) for number, url in enumerate(hosts) for kind in kinds])
    assert main(["status", str(layout.out), *options]) == 0
    printed = capfd.readouterr().out
    assert "\x1b" not in printed
    assert max(cell_len(text) for text in printed.splitlines()) <= width
    words = " ".join(printed.split())
    assert f"state running (process {os.getpid()} on {socket.gethostname()})" in words
    assert "155 of about 6,000,000: 2 ok, 153 failed, 5,999,845 open" in words
    assert "shards 2 of 3 published, 1 in progress" in words
    assert "123.5 images/s, 1 min 23 s so far, ETA 13:30:01, 500 requests open" in words
    assert "timeout 32 20.6%" in words
    assert printed.count("\nvery-very") == hosts_shown
    assert ("the next 15 of them: --hosts" in printed) is (hosts_shown == 5)


def test_workers_are_shown(layout: OutputLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """How evenly they work, which were killed, and that the codec is what the network waits for."""
    workers = tuple(WorkerState(number, 100 + number, 50 * number, 1, 0, number - 1) for number in (1, 2))
    write_heartbeat(layout, workers=workers, open_requests=0, transcoding=12, expected_images=1000)
    assert main(["status", str(layout.out)]) == 0
    words = " ".join(capfd.readouterr().out.split())
    assert "workers 2, with 50 to 100 images each; 1 was killed and replaced" in words
    assert "no request open, 12 images being transcoded" in words
    assert main(["status", str(layout.out), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["workers"] == [
        {
            "number": one.number,
            "pid": one.pid,
            "images": one.images,
            "failed": 1,
            "open_requests": 0,
            "kills": one.kills,
        }
        for one in workers
    ]


def test_what_several_processes_wait_for_is_put_together(
    layout: OutputLayout, capfd: pytest.CaptureFixture[str]
) -> None:
    """The host that most images wait for in all of them; as long as one process sends requests, there is an ETA."""
    layout.shard_progress_folder.mkdir()
    waiting = [
        Waiting(images=70, host="y.org", host_images=40, reason="HTTP 429", next_attempt_s=100.0),
        Waiting(images=50, host="\x1b[2Jz.org", host_images=50, reason="HTTP 503", next_attempt_s=100.0),
        Waiting(images=40, host="y.org", host_images=40, reason="HTTP 429", next_attempt_s=100.0),
    ]
    for number, one in enumerate(waiting):
        write_heartbeat(layout, waiting=one, open_requests=0, expected_images=1000, shards=1)
        layout.progress.rename(layout.shard_progress(f"{number}"))
    status = read_status(layout.out)
    assert status.waiting is not None
    assert (status.waiting.images, status.waiting.host, status.waiting.host_images) == (160, "y.org", 80)
    assert status.left_s is None
    assert main(["status", str(layout.out)]) == 0
    words = " ".join(capfd.readouterr().out.split())
    assert re.search(
        r"160 images waiting, 80 of them for y\.org \(HTTP 429\); next attempt in (?:1 min 40 s|9\d s)", words
    )
    write_heartbeat(layout, waiting=waiting[1], open_requests=500, expected_images=1000, shards=1)
    layout.progress.rename(layout.shard_progress("0"))
    status = read_status(layout.out)
    assert status.waiting is not None
    assert status.waiting.host_images == 100
    assert status.left_s is not None
    assert main(["status", str(layout.out)]) == 0
    assert "\x1b" not in capfd.readouterr().out


def test_failures_for_http_statuses_are_told_apart(layout: OutputLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """Those of published shards and of open ones, the most frequent first."""
    refused = [replace(line(number, "http://x.org/", "http_status"), status=404) for number in range(3)]
    publish(layout, "c", [*refused, replace(refused[0], sample=3, status=503), line(4, "http://x.org/")])
    spool(layout, "b", [replace(refused[0], status=503), replace(refused[1], status=403), refused[2]])
    assert main(["status", str(layout.out)]) == 0
    words = " ".join(capfd.readouterr().out.split())
    assert "http_status 7 63.6% 404 4 · 503 2 · 403 1" in words
    assert main(["status", str(layout.out), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["images"]["by_status"] == {"404": 4, "503": 2, "403": 1}
    many = [replace(line(number, "http://x.org/", "http_status"), status=400 + number) for number in range(11)]
    publish(layout, "c", many)
    assert main(["status", str(layout.out)]) == 0
    assert "407 1 · 4 others" in " ".join(capfd.readouterr().out.split())


def test_that_counts_of_hosts_are_lower_bounds_is_explained(
    layout: OutputLayout, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """There may be more hosts than are counted; the JSON says so as well."""
    monkeypatch.setattr(host_failures, "_MAX_PAIRS", 4)
    monkeypatch.setattr(host_failures, "_KEPT_PAIRS", 2)
    publish(layout, "c", [line(number, f"http://{number}.org/", "timeout") for number in range(9)])
    assert main(["status", str(layout.out)]) == 0
    words = " ".join(capfd.readouterr().out.split())
    assert "where most failed at least why" in words
    assert "at least, as hosts with few failures are no longer counted when there are very many" in words
    assert main(["status", str(layout.out), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["hosts_are_lower_bounds"] is True


def _reshard(layout: OutputLayout) -> None:
    """Make the output a complete one for two ranks."""
    for shard in ("b", "c"):
        publish(layout, shard, [])
    layout.report.write_text("{}")
    for path in layout.out.iterdir():
        path.unlink()
    files = {}
    for number in range(2):
        (layout.out / f"part-0000{number}.pkl").write_bytes(b"x" * 50)
        (layout.out / f"part-0000{number}.count").write_text("8")
        files[f"part-0000{number}"] = [8, 50]
    record = {"world_size": 2, "batch": 1, "group": 4, "shuffle": 0, "files": files}
    layout.reshard_record.write_bytes(orjson.dumps(record))


@pytest.mark.parametrize("name", ["part-00001.pkl", "part-00000.count"])
def test_an_output_that_lacks_a_resharded_shard_is_not_complete(
    layout: OutputLayout, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The shard is named, whether it is missing or has changed. For whom it was resharded is said in any case."""
    _reshard(layout)
    assert read_status(layout.out).state is RunState.COMPLETE
    (layout.out / name).write_text("7")
    status = read_status(layout.out)
    assert (status.state, status.missing_shards) == (RunState.INTERRUPTED, (name.partition(".")[0],))
    (layout.out / name).unlink()
    assert main(["status", str(layout.out)]) == 0
    words = " ".join(capfd.readouterr().out.split())
    assert f"state damaged; 1 shard of the output is missing or changed, {name.partition('.')[0]}; " in words
    assert "the command that made the output makes it again; to see that command: datafetch status " in words
    assert "ranks 2, of 8 samples each; an epoch uses 16" in words
    assert main(["status", str(layout.out), "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["missing_shards"] == [name.partition(".")[0]]
    assert printed["equal"] == {"world_size": 2, "samples_per_rank": 8, "used": 16}


def test_an_output_with_a_damaged_record_is_not_complete(
    layout: OutputLayout, capfd: pytest.CaptureFixture[str]
) -> None:
    """The status says so, and does not fail."""
    _reshard(layout)
    layout.reshard_record.write_text("garbage")
    assert main(["status", str(layout.out)]) == 0
    assert "state interrupted; equal.json is damaged" in " ".join(capfd.readouterr().out.split())


def test_why_the_last_run_stopped_is_shown_until_the_next_one(
    layout: OutputLayout, capfd: pytest.CaptureFixture[str]
) -> None:
    """A bug has a traceback instead; what was told to start over would do so again by the same command."""
    record_stop(layout, ZeroDivisionError("a bug"), was_fresh=False)
    assert read_status(layout.out).last_stop is None
    record_stop(layout, OSError(errno.EMFILE, "too many"), was_fresh=False)
    stop = read_status(layout.out).last_stop
    assert stop is not None
    assert stop.message.startswith("out of system resources: Too many open files; free some, raise a limit")
    disk_full = ResourceError(f"{'x' * 3000}\x1b[2J\ndisk full; run the same command again to resume")
    record_stop(layout, disk_full, was_fresh=True)
    assert main(["status", str(layout.out)]) == 0
    words = " ".join(capfd.readouterr().out.split())
    assert re.search("state interrupted; stopped [0-9.]+ s ago: xxx", words)
    assert "disk full; run the same command without --fresh to resume" in words
    write_heartbeat(layout)
    assert read_status(layout.out).last_stop is None
    layout.progress.unlink()
    layout.last_stop.write_text('{"unix_s": 1, "message": 3}')
    assert read_status(layout.out).last_stop is None


def test_a_run_that_holds_the_lock_is_shown_without_a_heartbeat(
    layout: OutputLayout, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before the first one it starts, and when the last one is old it has stalled; a lock that was released is none."""
    lock = Lock(layout.lock, layout.out)
    lock.acquire()
    assert main(["status", str(layout.out)]) == 0
    holder = f"process {os.getpid()} on {socket.gethostname()} has had the lock for "
    words = " ".join(capfd.readouterr().out.split())
    assert re.search(rf"state starting; {re.escape(holder)}[0-9.]+ s, and has written no heartbeat yet", words)
    write_heartbeat(layout)
    assert read_status(layout.out).state is RunState.RUNNING
    old = orjson.loads(layout.progress.read_bytes()) | {"updated_unix_s": time.time() - 60}
    layout.progress.write_bytes(orjson.dumps(old))
    assert main(["status", str(layout.out)]) == 0
    words = " ".join(capfd.readouterr().out.split())
    assert re.search(rf"state unresponsive; {re.escape(holder)}[0-9.]+ s, but writes no heartbeat any more", words)
    assert main(["status", str(layout.out), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["lock"]["pid"] == os.getpid()
    layout.progress.write_bytes(orjson.dumps(old | {"is_ended": True, "updated_unix_s": time.time()}))
    assert read_status(layout.out).state is RunState.INTERRUPTED
    lock.release()
    layout.progress.unlink()
    released = read_status(layout.out)
    assert (released.state, released.holder) == (RunState.INTERRUPTED, None)


def test_a_lock_of_another_machine_may_be_left_over(layout: OutputLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """Whether its process still exists is unknown here, so the run counts as interrupted, with a remark."""
    holder = replace(LockHolder.this_process(is_shared=False), host="別の機械", since_unix_s=time.time() - 3600)
    layout.lock.write_bytes(orjson.dumps(holder))
    assert main(["status", str(layout.out)]) == 0
    words = " ".join(capfd.readouterr().out.split())
    assert f"state interrupted; process {os.getpid()} on 別の機械 has had the lock for 1 h," in words
    assert "unless it was killed, which can't be told from here" in words
    layout.lock.write_bytes(b'{"pid": "garbage"}')
    assert read_status(layout.out).holder is None
