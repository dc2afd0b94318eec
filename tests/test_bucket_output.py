"""Outputs in a bucket: the same bytes as on a disk, whatever fails in between, and whoever goes on with them."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from in_process import commit_in_thread, retry, run, threads_with
from jobs import coyo_job, faulty_urls, files_of, path_of, read_ledger, requests_since
from object_store import BUCKET, Fault, FaultyProxy, ObjectStore, login, use

from datafetch import Check, Job, read_status, run_check
from datafetch.cli.app import main
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.engine.runner import fetch_shards, finish
from datafetch.errors import ConfigurationError, ResourceError
from datafetch.model.ledger_line import ShardCounts
from datafetch.output.commit import Commit
from datafetch.store.buckets import bucket as bucket_module
from datafetch.store.buckets import local_files, view, working_copy
from datafetch.store.buckets.bucket import Bucket
from datafetch.store.buckets.commit_log import CommitLog
from datafetch.store.buckets.place import Place
from datafetch.store.buckets.view import observed_place

Pictures = tuple[Path, list[str]]
IMAGES, SHARDS = 60, 3
FAULTS = {2: "flaky", 7: "missing", 11: "flaky", 19: "missing", 39: "flaky"}
FLAKY = [position for position, fault in FAULTS.items() if fault == "flaky"]
_numbers = count()
_PATIENCE_S = 150
_KILLED = -9
_UNSTABLE = {"fetch_ms", "detail"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """A server for this module."""
    with ObjectStore() as served:
        yield served


@pytest.fixture
def proxy(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultyProxy]:
    """A proxy in front of it, which this process uses, with a cache folder of its own."""
    monkeypatch.setattr(bucket_module, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with FaultyProxy(store.port) as disturbing:
        use(monkeypatch, login(disturbing.url))
        yield disturbing


@pytest.fixture
def location() -> str:
    """A place for an output that no other test uses."""
    return f"s3://{BUCKET}/{os.getpid()}-{next(_numbers)}/coyo-700m/pkl03-split"


@pytest.fixture
def source(tmp_path: Path, own_origin: Origin, small_pictures: Pictures) -> CoyoSource:
    """A manifest of three shards, some of whose images fail."""
    urls = faulty_urls(own_origin, small_pictures[1], FAULTS, IMAGES, f"{tmp_path.name}-{next(_numbers)}")
    return write_coyo_source(tmp_path / "source", urls, files=SHARDS)


@pytest.fixture(params=[None, 2], ids=["as cut", "resharded"])
def job(source: CoyoSource, location: str, request: pytest.FixtureRequest) -> Job:
    """A job on this manifest whose output is in the bucket."""
    return replace(coyo_job(source, Path("unused"), world_size=request.param), out=location)


def objects_of(location: str) -> dict[str, bytes]:
    """Return the trainer's files in the bucket."""
    place, bucket = Place.of(location), Bucket(BUCKET)
    try:
        found = {one.key.removeprefix(place.out_prefix): bucket.get(one.key) for one in bucket.list(place.out_prefix)}
    finally:
        bucket.close()
    return {name: one.body for name, one in found.items() if one is not None}


def state_keys(location: str) -> list[str]:
    """Return the keys of the state folder in the bucket, relative to it."""
    place, bucket = Place.of(location), Bucket(BUCKET)
    try:
        return [one.key.removeprefix(place.state_prefix) for one in bucket.list(place.state_prefix)]
    finally:
        bucket.close()


def recorded_names(location: str) -> set[str]:
    """Return the names of all files that the commit log has."""
    place, bucket = Place.of(location), Bucket(BUCKET)
    try:
        return set(CommitLog(bucket, place.log_prefix, location).read().files)
    finally:
        bucket.close()


def lines_of(location: str) -> list[dict[str, Any]]:
    """Return all ledger lines in the bucket, without what differs from run to run."""
    with observed_place(location) as place:
        paths = sorted((place.out.with_name(place.out.name + ".datafetch") / "ledger").glob("*.parquet"))
        lines = [line for path in paths for line in pq.read_table(path).to_pylist()]
    return stable(lines)


def stable(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return ledger lines without what differs from run to run."""
    return [{name: value for name, value in line.items() if name not in _UNSTABLE} for line in lines]


def local_twin(job: Job, tmp_path: Path) -> Job:
    """Return the same job, with a local output."""
    return replace(job, out=str(tmp_path / f"twin-{next(_numbers)}" / "pkl03-split"), scratch=None)


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Go on as another machine would, without any local file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{next(_numbers)}"))


@pytest.mark.usefixtures("proxy")
def test_a_run_leaves_the_same_bytes_as_on_a_disk(job: Job, tmp_path: Path, own_origin: Origin) -> None:
    """Files and ledger lines; then nothing is left to do, also elsewhere, and nothing but them is in the bucket."""
    report = run(job)
    assert report.out == job.out
    assert report.totals.outcomes["ok"] == IMAGES - len(FAULTS)
    before = own_origin.requests()
    again = run(job)
    assert (again.requests, requests_since(own_origin, before)) == (0, {})
    twin = local_twin(job, tmp_path)
    run(twin)
    retry(job.out)  # the flaky ones have failed once here, and arrived there
    assert objects_of(job.out) == files_of(twin)
    outcomes = {(line["url"], line["outcome"], line["sha256"]) for line in lines_of(job.out)}
    assert outcomes == {(line["url"], line["outcome"], line["sha256"]) for line in read_ledger(twin)}
    keys = state_keys(job.out)
    assert [key for key in keys if key.startswith(("shards/", "spool/"))] == []
    assert sum(key.startswith("ledger/") for key in keys) == SHARDS


@pytest.mark.usefixtures("proxy")
def test_what_is_looked_at_elsewhere_is_what_is_there(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Status, failures, a sample, the command, and whether the trainer can read it."""
    run(job)
    elsewhere(monkeypatch, tmp_path)
    monkeypatch.setattr(view, "_SMALL_BYTES", 0)
    status = read_status(job.out)
    assert (status.out, status.state, status.ok, status.failed) == (job.out, "complete", IMAGES - 5, 5)
    assert (status.shards, status.shards_published) == (SHARDS, SHARDS)
    assert status.published_bytes == sum(map(len, objects_of(job.out).values()))
    for quick in (False, True):
        verdict = run_check(Check(job.out, world_size=2, batch=1, processes=1, quick=quick))
        assert verdict.is_sound, verdict
        assert (verdict.out, verdict.samples) == (job.out, IMAGES - 5)
    assert _size_on_disk(tmp_path) == 0  # rows were downloaded while they were read, and are not kept
    assert main(["failures", job.out, "--jsonl"]) == 0
    failed = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert len(failed) == len(FAULTS)
    assert main(["explain", job.out, failed[0]["url"]]) == 0
    assert failed[0]["key"] in capfd.readouterr().out
    assert main(["status", job.out]) == 0
    assert job.out in capfd.readouterr().out
    assert main(["status", job.out, "--command"]) == 0
    words = capfd.readouterr().out
    assert f"--root {job.out.removesuffix('/coyo-700m/pkl03-split')} " in words


def _size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.glob("cache-*/**/*.pkl"))


@pytest.mark.usefixtures("proxy")
def test_a_retry_elsewhere_adds_what_arrives(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs neither the manifest nor any local file, and leaves what a single run would have left."""
    run(job)
    before = lines_of(job.out)
    elsewhere(monkeypatch, tmp_path)
    report = retry(job.out)
    assert (report.retried, report.retried_arrived, report.out) == (len(FLAKY), len(FLAKY), job.out)
    twin = local_twin(job, tmp_path)
    run(twin)
    assert objects_of(job.out) == files_of(twin)
    assert len(lines_of(job.out)) == len(before)
    assert run(job).requests == 0
    assert retry(job.out).requests == 0
    assert read_status(job.out).state == "complete"
    assert [key for key in state_keys(job.out) if key.startswith(("shards/", "added/"))] == []


def _has_ledger(location: str) -> bool:
    return any(name.startswith("state/ledger/") for name in recorded_names(location))


def _rows_in(location: str) -> set[str]:
    return {name for name in objects_of(location) if name.endswith(".pkl")}


@pytest.mark.usefixtures("proxy")
def test_a_run_of_which_only_the_bucket_is_left_goes_on_elsewhere(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_origin: Origin
) -> None:
    """Recorded shards are not fetched again, and of an open one what was uploaded of its spool is not either."""

    async def commit_one(commit: Commit) -> ShardCounts:
        if commit.shard == "part-00001":
            while not await asyncio.to_thread(_has_ledger, job.out):  # noqa: ASYNC110 - the other shard's task
                await asyncio.sleep(0.01)
            raise ResourceError("the disk is full")
        return await commit_in_thread(commit)

    one_by_one = replace(job, fetch=replace(job.fetch, connections=1, per_host=1))
    with pytest.raises(ResourceError, match="the disk is full"):
        run(one_by_one, backends=threads_with(commit_one))
    interrupted = read_status(job.out)
    assert interrupted.state == "interrupted"
    assert 1 <= interrupted.shards_published < SHARDS
    assert interrupted.last_stop is not None
    assert "the disk is full" in interrupted.last_stop.message
    if job.world_size is not None:
        assert _rows_in(job.out) == set()
    ended = {line["url"] for line in lines_of(job.out)}
    before = own_origin.requests()
    elsewhere(monkeypatch, tmp_path)
    run(job)
    asked = requests_since(own_origin, before)
    assert not asked.keys() & set(map(path_of, ended))
    assert len(asked) <= IMAGES - 2 * IMAGES // SHARDS  # the second shard was complete, but for its commit
    retry(job.out)
    twin = local_twin(job, tmp_path)
    run(twin)
    assert objects_of(job.out) == files_of(twin)


@pytest.mark.usefixtures("proxy")
def test_starting_over_deletes_what_was_recorded_and_nothing_else(job: Job) -> None:
    """Other objects of the bucket stay, also next to the output; one among the trainer's files is refused."""
    run(job)
    bucket, place = Bucket(BUCKET), Place.of(job.out)
    neighbours = [f"{place.path}-other/part-00000.pkl", f"{place.state_prefix}notes.txt"]
    for key in neighbours:
        bucket.put(key, b"mine")
    fresh = replace(job, fresh=True, limit=25)
    report = run(fresh)
    assert report.totals.samples == 25
    assert len(objects_of(job.out)) == 2 * (2 if job.world_size is None else len(_rows_in(job.out)))
    assert run_check(Check(job.out, world_size=2, batch=1, processes=1)).is_sound
    bucket.put(f"{place.out_prefix}part-99999.pkl", b"mine")
    for again in (fresh, job):
        with pytest.raises(ConfigurationError, match=r"part-99999.pkl was not written by this job"):
            run(again)
    verdict = run_check(Check(job.out, world_size=2, batch=1, processes=1, quick=True))
    (problem,) = verdict.problems
    assert problem.startswith("part-99999.pkl")
    for key in (*neighbours, f"{place.out_prefix}part-99999.pkl"):
        found = bucket.get(key)
        assert found is not None
        assert found.body == b"mine"
    bucket.close()


@pytest.mark.usefixtures("proxy")
def test_a_missing_or_changed_object_is_reported(job: Job) -> None:
    """By ``verify``, as it would be of a local output."""
    run(job)
    bucket, place = Bucket(BUCKET), Place.of(job.out)
    names = sorted(_rows_in(job.out))
    bucket.put(f"{place.out_prefix}{names[0]}", b"broken")
    bucket.delete([f"{place.out_prefix}{names[1]}"])
    bucket.close()
    for quick in (False, True):
        verdict = run_check(Check(job.out, world_size=2, batch=1, processes=1, quick=quick))
        for name in names[:2]:
            assert any(problem.startswith(name.removesuffix(".pkl")) for problem in verdict.problems), verdict


@pytest.mark.usefixtures("proxy")
def test_objects_of_others_become_no_files_elsewhere(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever can write to the bucket can't make files outside of the view, fill the disk with them, or stop it."""
    monkeypatch.setattr(view, "_MAX_OTHERS", 3)
    run(job)
    place = Place.of(job.out)
    before = set(tmp_path.rglob("*"))
    names = [
        f"/{tmp_path}/absolute",
        "/relative",
        "../outside",
        "./here",
        "a" * 241,
        "part-00000.pkl/below",
        *("stray", "stray/below", *(f"stray-{number}" for number in range(5))),
    ]
    with Bucket(BUCKET) as bucket:
        for name in names:
            bucket._client.put_object(Bucket=BUCKET, Key=place.out_prefix + name, Body=b"")
        listed = {one.key.removeprefix(place.out_prefix) for one in bucket.list(place.out_prefix)}
    assert listed > set(names)
    assert read_status(job.out).state == "complete"
    made = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    out = place.view_folder() / place.name
    assert {path.relative_to(out).as_posix() for path in made if path.is_relative_to(out)} == {
        *("stray", "stray-0", "stray-1"),
        *(name for name in listed if name not in names),
    }
    assert all(path.is_relative_to(place.view_folder()) for path in made)
    assert f"10 other objects below {job.out} are not shown" in caplog.text


@pytest.mark.usefixtures("proxy")
def test_lost_shards_are_made_again(job: Job, source: CoyoSource, own_origin: Origin) -> None:
    """Those that are missing in the bucket, or have other bytes; only their images are requested."""
    run(job)
    retry(job.out)
    before = objects_of(job.out)
    bucket, place = Bucket(BUCKET), Place.of(job.out)
    bucket.put(f"{place.out_prefix}part-00000.pkl", b"broken")
    if job.world_size is None:  # otherwise there are two
        bucket.delete([f"{place.out_prefix}part-00001.pkl"])
    bucket.close()
    asked = own_origin.requests()
    run(job)
    assert objects_of(job.out) == before
    again = requests_since(own_origin, asked)
    assert 0 < len(again) <= len(source.urls)
    assert run(job).requests == 0


def test_faults_of_the_store_change_nothing(job: Job, proxy: FaultyProxy, tmp_path: Path) -> None:
    """A tenth of all requests are throttled, reset, half received or answered into nowhere."""
    chances = random.Random(7)
    faults = [Fault.SLOW_DOWN, Fault.RESET, Fault.HALF, Fault.LOST]
    proxy.decide = lambda *_: chances.choice(faults) if chances.random() < 0.1 else Fault.NONE
    run(job)
    retry(job.out)
    proxy.decide = lambda *_: Fault.NONE
    assert set(proxy.faults) == set(faults)
    twin = local_twin(job, tmp_path)
    run(twin)
    assert objects_of(job.out) == files_of(twin)
    assert run_check(Check(job.out, world_size=2, batch=1, processes=1)).is_sound
    bucket = Bucket(BUCKET)
    assert bucket.abort_uploads(Place.of(job.out).path) == 0
    bucket.close()


@pytest.mark.usefixtures("proxy")
def test_a_second_run_is_refused(job: Job, tmp_path: Path) -> None:
    """While one is at work, on this machine or elsewhere; ``status`` says who is."""
    seen: list[str] = []

    async def commit_and_try(commit: Commit) -> ShardCounts:
        counts = await commit_in_thread(commit)
        if not seen:
            seen.append("")
            environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "other cache")}
            command = [sys.executable, "-c", _RUN, pickle.dumps(job).hex()]
            done = await ended(command, environment)
            seen[0] = done.stderr
            seen.append((await ended([sys.executable, "-m", "datafetch", "status", job.out], environment)).stdout)
        return counts

    run(job, backends=threads_with(commit_and_try))
    assert f"another run is working on {job.out} (process {os.getpid()} on" in seen[0]
    assert "running" in seen[1] or "starting" in seen[1]


_RUN = "import pickle, sys, datafetch; datafetch.run(pickle.loads(bytes.fromhex(sys.argv[1])))"


async def ended(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command in a thread."""
    return await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
    )


@pytest.mark.usefixtures("proxy")
def test_hollow_rows_are_downloaded_to_be_resharded(
    source: CoyoSource, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk has no room for them twice; and a retry downloads those that it merges."""
    monkeypatch.setattr(working_copy, "_RESHARDING_SHARE", 1 << 60)
    monkeypatch.setattr(working_copy, "_SMALL_BYTES", 0)
    monkeypatch.setattr(local_files, "_THREADS", 2)
    job = replace(coyo_job(source, Path("unused"), world_size=2), out=location)
    run(job)
    assert _filled_rows(tmp_path) == 0
    retry(job.out)
    assert _filled_rows(tmp_path) == 0
    twin = local_twin(job, tmp_path)
    run(twin)
    assert objects_of(job.out) == files_of(twin)


def _filled_rows(folder: Path) -> int:
    return sum(path.stat().st_blocks for path in folder.glob("cache/datafetch/outputs/**/*.pkl"))


def test_nothing_secret_is_stored(
    job: Job, proxy: FaultyProxy, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in the bucket nor in local files or messages, whatever fails."""
    chances = random.Random(3)
    proxy.decide = lambda *_: Fault.SLOW_DOWN if chances.random() < 0.05 else Fault.NONE
    caplog.set_level(0, "datafetch")
    run(job)
    secret = b"secret-of-the-tests"
    bucket = Bucket(BUCKET)
    for one in bucket.list(Place.of(job.out).path):
        found = bucket.get(one.key)
        assert found is not None
        assert secret not in found.body
        assert b"AKIAOFTHETESTS" not in found.body
    bucket.close()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret not in path.read_bytes()
    shown = capfd.readouterr()
    assert "secret-of" not in shown.out + shown.err + caplog.text
    content = json.loads(
        next((tmp_path / "cache").glob("datafetch/outputs/*/pkl03-split.datafetch/job.json")).read_text()
    )
    assert content["asked"]["out"] == job.out


@pytest.mark.usefixtures("proxy")
def test_what_can_not_be_in_a_bucket_is_refused(
    job: Job, source: CoyoSource, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line each, and nothing is written."""
    with pytest.raises(ConfigurationError, match="leave out --reuse"):
        run(replace(job, reuse=True))
    for work in (fetch_shards, finish):
        with pytest.raises(ConfigurationError, match="fetch_shards and finish take a folder"):
            work(job)
    for scheme in ("gs", "az", "hf", "ftp"):
        with pytest.raises(ConfigurationError, match="is no place for an output"):
            replace(job, out=f"{scheme}://images/out")
    assert main(["prepare", "llava-pretrain", "--source", str(source.folder), "--root", f"s3://{BUCKET}/x"]) == 2
    assert "become files, which datafetch does not put into a bucket" in capfd.readouterr().err
    assert main(["status", job.out]) == 2
    assert f"there is no run in {job.out}" in capfd.readouterr().err
    assert main(["prepare", "coyo", "--source", str(source.folder), "--root", f"s3://{BUCKET}/x", "--dry-run"]) == 2
    assert "--dry-run asks nobody" in capfd.readouterr().out
    assert main(["datasets", "--root", f"s3://{BUCKET}/x"]) == 2
    assert "datasets looks at a folder" in capfd.readouterr().err
    assert state_keys(job.out) == []
    monkeypatch.setitem(sys.modules, "botocore.config", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'vlm-datafetch\[s3\]'"):
        run(job)


_RUN_WITH_A_SHORT_LEASE = """
import pickle, sys, datafetch
from datafetch.errors import ResourceError
from datafetch.store.buckets.working_copy import WorkingCopy
WorkingCopy.__init__.__kwdefaults__["lease_s"] = 2.0
try:
    datafetch.run(pickle.loads(bytes.fromhex(sys.argv[1])))
except ResourceError as error:
    sys.exit(str(error))
"""


@pytest.mark.rotating
@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("part", ["/log/", "/shards/"])
def test_a_run_that_was_paused_and_replaced_records_nothing(  # noqa: PLR0913, PLR0917 - fixtures and cases
    store: ObjectStore,
    source: CoyoSource,
    location: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    number: int,
) -> None:
    """Its last request, which arrives when its successor is complete, has no effect; then it says what happened."""
    job = replace(coyo_job(source, Path("unused"), world_size=2), out=location)
    successor_is_done, is_paused = threading.Event(), threading.Event()
    puts = count(1)

    def pause(method: str, path: str) -> Fault:
        if method == "PUT" and part in path and next(puts) == number:
            paused.send_signal(signal.SIGSTOP)
            is_paused.set()
            assert successor_is_done.wait(_PATIENCE_S)
        return Fault.NONE

    with FaultyProxy(store.port, pause) as proxy:
        paused = subprocess.Popen(
            [sys.executable, "-c", _RUN_WITH_A_SHORT_LEASE, pickle.dumps(job).hex()],
            env={**os.environ, **login(proxy.url), "XDG_CACHE_HOME": str(tmp_path / "paused")},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert is_paused.wait(_PATIENCE_S)
        use(monkeypatch, login(store.url))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "successor"))
        while True:
            try:
                run(job)
                break
            except ConfigurationError as error:  # the lease of the other one has not expired
                assert "another run is working on" in str(error)  # noqa: PT017 - it is tried again
        retry(job.out)
        before = objects_of(location), lines_of(location)
        successor_is_done.set()
        paused.send_signal(signal.SIGCONT)
        _, message = paused.communicate(timeout=_PATIENCE_S)
    assert paused.returncode == 1
    assert f"the lock on {location} was lost" in message or f"another run has taken over {location}" in message
    assert (objects_of(location), lines_of(location)) == before
    twin = local_twin(job, tmp_path)
    run(twin)
    assert objects_of(location) == files_of(twin)
    assert run(job).requests == 0
    assert [key for key in state_keys(location) if key.startswith("shards/")] == []


def test_ctrl_c_leaves_a_run_that_another_machine_goes_on_with(
    store: ObjectStore, source: CoyoSource, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with 130, releases the lease, and uploads what is in progress."""
    interrupted: subprocess.Popen[str] | None = None

    def interrupt(method: str, path: str) -> Fault:
        if interrupted is not None and method == "PUT" and "/log/" in path and path.endswith("3.json"):
            interrupted.send_signal(signal.SIGINT)
        return Fault.NONE

    with FaultyProxy(store.port, interrupt) as proxy:
        interrupted = subprocess.Popen(
            _command(source, location, tmp_path / "scratch", is_resharded=True),
            env={**os.environ, **login(proxy.url), "XDG_CACHE_HOME": str(tmp_path / "cache")},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        _, messages = interrupted.communicate(timeout=_PATIENCE_S)
    assert interrupted.returncode == 130, messages
    assert "Traceback" not in messages
    use(monkeypatch, login(store.url))
    elsewhere(monkeypatch, tmp_path)
    assert read_status(location).state == "interrupted"
    assert read_status(location).holder is None
    job = replace(coyo_job(source, Path("unused"), world_size=2), out=location)
    run(job)
    retry(location)
    twin = local_twin(job, tmp_path)
    run(twin)
    assert objects_of(location) == files_of(twin)


def _command(source: CoyoSource, location: str, scratch: Path, *, is_resharded: bool) -> list[str]:
    root = location.removesuffix("/coyo-700m/pkl03-split")
    return [
        *(sys.executable, "-m", "datafetch", "prepare", "coyo", "--source", str(source.folder)),
        *("--ids", str(source.ids), "--root", root, "--scratch", str(scratch), "--allow-net", "127.0.0.0/8"),
        *("--connections", "8", "--per-host", "8", "--processes", "1", "--retries", "0"),
        *(("--world-size", "2") if is_resharded else ("--no-reshard",)),
    ]


@dataclass
class Killer:
    """Runs commands through a proxy, each of which is killed some requests later than the one before.

    Attributes:
        store: The store behind the proxy.
        step: How many more requests each command may send than the one before.
        kills: How many were killed.
    """

    store: ObjectStore
    step: int
    kills: int = 0

    def run(self, commands: Iterable[Sequence[str]], cache: Path) -> None:
        """Run commands until one ends by itself, which has to be well."""
        with FaultyProxy(self.store.port, self._decide) as proxy:
            environment = {**os.environ, **login(proxy.url), "XDG_CACHE_HOME": str(cache)}
            for command in commands:
                self._left = 2 + self.step * self.kills
                self._process = subprocess.Popen(
                    command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
                _, messages = self._process.communicate(timeout=_PATIENCE_S)
                if self._process.returncode != _KILLED:
                    assert self._process.returncode == 0, messages
                    return
                self.kills += 1

    def _decide(self, method: str, path: str) -> Fault:
        """Kill the command instead of passing on a request that would change something, or instead of its response."""
        if method in {"PUT", "POST", "DELETE"} and "/lock" not in path:
            self._left -= 1
            if self._left == 0:
                self._process.send_signal(signal.SIGKILL)
                return Fault.LOST if self.step % 2 else Fault.RESET
        return Fault.NONE


def _scratch_folders(tmp_path: Path, *, is_elsewhere: bool) -> Iterator[Path]:
    """The scratch folder of each command: always the same one, or a new one, the one before being lost."""
    for number in range(60):
        yield tmp_path / (f"scratch-{number}" if is_elsewhere else "scratch")
        if is_elsewhere:
            shutil.rmtree(tmp_path / f"scratch-{number}", ignore_errors=True)  # killed before it was created


@pytest.mark.rotating
@pytest.mark.parametrize("is_resharded", [False, True], ids=["as cut", "resharded"])
@pytest.mark.parametrize("is_elsewhere", [False, True], ids=["here", "elsewhere"])
@pytest.mark.parametrize(("step", "workers"), [(2, 1), (3, 2), (5, 1)])
def test_a_run_killed_at_any_request_ends_as_if_undisturbed(  # noqa: PLR0913, PLR0917 - fixtures and cases
    store: ObjectStore,
    location: str,
    tmp_path: Path,
    own_origin: Origin,
    small_pictures: Pictures,
    is_resharded: bool,
    is_elsewhere: bool,
    step: int,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its successor goes on here, or elsewhere, with what is in the bucket alone."""
    faults = {7: "missing", 19: "html"}
    urls = faulty_urls(own_origin, small_pictures[1], faults, IMAGES, f"{tmp_path.name}-{next(_numbers)}")
    source = write_coyo_source(tmp_path / "source", urls, files=SHARDS)
    scratch_folders = _scratch_folders(tmp_path, is_elsewhere=is_elsewhere)
    killer = Killer(store, step)
    killer.run(
        (
            [*_command(source, location, scratch, is_resharded=is_resharded), "--workers", str(workers)]
            for scratch in scratch_folders
        ),
        tmp_path / "cache",
    )
    assert killer.kills > 2
    use(monkeypatch, login(store.url))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "view"))
    job = coyo_job(source, tmp_path / "twin" / "pkl03-split", world_size=2 if is_resharded else None)
    run(job)
    _check_complete(location, files_of(job))
    assert lines_of(location) == stable(read_ledger(job))


@pytest.mark.rotating
@pytest.mark.parametrize("is_elsewhere", [False, True], ids=["here", "elsewhere"])
@pytest.mark.parametrize("step", [2, 3])
def test_a_retry_killed_at_any_request_ends_as_if_undisturbed(
    store: ObjectStore, job: Job, tmp_path: Path, is_elsewhere: bool, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while it replaces the trainer's files one by one; until all are in place, the output is not complete."""
    use(monkeypatch, login(store.url))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "view"))
    run(job)
    killer = Killer(store, step)
    killer.run(
        (
            [sys.executable, "-m", "datafetch", "retry", job.out, "--scratch", str(scratch)]
            for scratch in _scratch_folders(tmp_path, is_elsewhere=is_elsewhere)
            if _is_sound_so_far(job.out)
        ),
        tmp_path / "cache",
    )
    assert killer.kills > 2
    twin = local_twin(job, tmp_path)
    run(twin)
    _check_complete(job.out, files_of(twin))


def _is_sound_so_far(location: str) -> bool:
    """Check that an output that calls itself complete is."""
    if read_status(location).state == "complete":
        assert run_check(Check(location, world_size=2, batch=1, processes=1, quick=True)).is_sound
    return True


def _check_complete(location: str, files: Mapping[str, bytes]) -> None:
    assert objects_of(location) == files
    assert [key for key in state_keys(location) if key.startswith(("shards/", "spool/", "added/"))] == []
    assert read_status(location).state == "complete"
    assert run_check(Check(location, world_size=2, batch=1, processes=1)).is_sound


@pytest.mark.usefixtures("proxy")
def test_an_output_can_be_resharded_later_and_lose_all_rows_of_a_shard(
    tmp_path: Path, own_origin: Origin, small_pictures: Pictures, location: str
) -> None:
    """From the manifest's shards to equal ones, by another run; a shard without rows has a ledger alone."""
    faults = dict.fromkeys(range(20, 40), "missing")
    urls = faulty_urls(own_origin, small_pictures[1], faults, IMAGES, f"{tmp_path.name}-{next(_numbers)}")
    source = write_coyo_source(tmp_path / "source", urls, files=SHARDS)
    job = replace(coyo_job(source, Path("unused")), out=location)
    run(job)
    twin = local_twin(job, tmp_path)
    run(twin)
    _check_complete(location, files_of(twin))
    for one in (job, twin):
        assert run(replace(one, world_size=2)).requests == 0
    _check_complete(location, files_of(twin))
