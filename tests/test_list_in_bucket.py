"""Lists of URLs as webdataset and parquet in a bucket: the same as on a disk, and no reader finds half a shard."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_process import retry, run
from jobs import POLICY, faulty_urls, files_of, read_ledger, requests_since
from object_store import BUCKET, Fault, FaultyProxy, ObjectStore, login, use
from test_bucket_output import Killer, elsewhere, lines_of, objects_of, stable, state_keys
from test_cluster_in_bucket import Cluster, driven

from datafetch import Check, Job, ListFormat, ListJob, ListOptions, read_status, run_check
from datafetch.cli.app import main
from datafetch.datasets import LIST
from datafetch.demo.origin import Origin
from datafetch.engine.cluster.interface import NodeLostError
from datafetch.engine.cluster.messages import NodeReport
from datafetch.engine.job import own_spec
from datafetch.errors import ConfigurationError
from datafetch.model.checksum import crc32
from datafetch.store.buckets import bucket as bucket_module
from datafetch.store.buckets import view, working_copy
from datafetch.store.buckets.bucket import Bucket
from datafetch.store.buckets.commit_log import CommitLog, LoggedFile
from datafetch.store.buckets.node_copy import NodeCopy
from datafetch.store.buckets.place import Place
from datafetch.store.buckets.stored_output import StoredOutput

Pictures = tuple[Path, list[str]]
IMAGES, SHARDS = 30, 3
LASTING = {7: "missing", 19: "html"}
FAULTS = {**LASTING, 2: "flaky", 11: "flaky", 28: "flaky"}
FLAKY = len(FAULTS) - len(LASTING)
SUFFIXES = {"webdataset": (".tar", ".parquet", "_stats.json"), "parquet": (".parquet",)}
TIMES = ("start_time", "end_time", "duration")
_numbers = count()

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


def list_of(tmp_path: Path, urls: list[str]) -> Path:
    """Write a list with captions and a column."""
    path = tmp_path / f"list-{next(_numbers)}.parquet"
    captions = [f"caption {number}" for number in range(len(urls))]
    pq.write_table(pa.table({"URL": urls, "TEXT": captions, "width": range(len(urls))}), path)
    return path


@pytest.fixture
def urls(tmp_path: Path, own_origin: Origin, small_pictures: Pictures) -> list[str]:
    """URLs of which some fail, and some of these once only."""
    return faulty_urls(own_origin, small_pictures[1], FAULTS, IMAGES, f"{tmp_path.name}-{next(_numbers)}")


@pytest.fixture(params=SUFFIXES)
def job(tmp_path: Path, urls: list[str], request: pytest.FixtureRequest) -> Job:
    """A job on a list of them whose output is in the bucket."""
    options = ListOptions(format=ListFormat(request.param), shard_size=IMAGES // SHARDS, keep_col=("width",))
    location = f"s3://{BUCKET}/{os.getpid()}-{next(_numbers)}/sets/images"
    return ListJob(str(list_of(tmp_path, urls)), location, options, fetch=POLICY, processes=1, image=own_spec(LIST))


def suffixes_of(job: Job) -> tuple[str, ...]:
    """Return the suffixes of the files of a shard, in order."""
    assert isinstance(job.options, ListOptions)
    return SUFFIXES[job.options.format.value]


def without_times(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the content of files, without what statistics have of times."""
    return {
        name: {key: value for key, value in json.loads(content).items() if key not in TIMES}
        if name.endswith("_stats.json")
        else content
        for name, content in files.items()
    }


def twin_of(job: Job, tmp_path: Path) -> Job:
    """Run the same job into a local folder."""
    twin = replace(job, out=str(tmp_path / f"twin-{next(_numbers)}" / "images"))
    run(twin)
    return twin


def check_complete(job: Job, twin: Job) -> None:
    """Check that an output is that of a local run, that the log has each file, and that nothing else is left."""
    assert without_times(objects_of(job.out)) == without_times(files_of(twin))
    logged = logged_files(job)
    for name, content in objects_of(job.out).items():
        assert (logged[f"out/{name}"].size_bytes, logged[f"out/{name}"].crc32) == (len(content), crc32(content))
    assert {name for name in logged if name.startswith("out/")} == {f"out/{name}" for name in objects_of(job.out)}
    assert [key for key in state_keys(job.out) if key.startswith(("shards/", "spool/"))] == []
    assert read_status(job.out).state == "complete"
    verdict = run_check(Check(job.out, processes=1))
    assert verdict.is_sound, verdict.problems
    assert (verdict.shards, verdict.samples) == (SHARDS, IMAGES)


def logged_files(job: Job) -> Mapping[str, LoggedFile]:
    """Return what the commit log has of an output."""
    place, bucket = Place.of(job.out), Bucket(BUCKET)
    try:
        return CommitLog(bucket, place.log_prefix, job.out).read().files
    finally:
        bucket.close()


def half_shard(shard: str, files: Mapping[str, bytes | None]) -> str:
    """Say what is wrong with the files of a shard of which the last one is there; empty if nothing is.

    Args:
        shard: Its name.
        files: The content of each file by its suffix; None if it is not there.
    """
    tar, table, stats = (files[suffix] for suffix in SUFFIXES["webdataset"])
    if stats is None:
        return ""
    if tar is None or table is None:
        return f"{shard}: the statistics are there, and the {'tar' if tar is None else 'parquet'} is not"
    rows = pq.read_table(io.BytesIO(table)).to_pylist()
    arrived = [row["key"] for row in rows if row["status"] == "success"]
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        images = [name.partition(".")[0] for name in members.getnames() if name.endswith(".jpg")]
    if images != arrived:
        return f"{shard}: {len(images)} images in the tar, and {len(arrived)} in the parquet"
    successes = json.loads(stats)["successes"]
    return "" if successes == len(arrived) else f"{shard}: {successes} successes, and {len(arrived)} images"


@dataclass
class Reader:
    """A reader of a bucket that looks at a shard whenever one of its objects is about to change.

    Attributes:
        store: The store.
        job: The job whose shards are read.
        changes: How many changes there were, by what they were about to do.
        whole: How often there was a shard with its last file, and with the others.
        problems: What was wrong.
    """

    store: ObjectStore
    job: Job
    changes: Counter[str] = field(default_factory=Counter)
    whole: int = 0
    problems: list[str] = field(default_factory=list)

    def decide(self, method: str, path: str) -> Fault:
        """Look at the shard of a request of the proxy."""
        prefix = f"/{BUCKET}/{Place.of(self.job.out).out_prefix}"
        name = urlsplit(path).path.removeprefix(prefix)
        suffix = next((one for one in suffixes_of(self.job) if name.endswith(one)), "")
        if method in {"PUT", "POST", "DELETE"} and suffix and path.startswith(prefix):
            self.look(name.removesuffix(suffix))
            self.changes[f"{method} {suffix}"] += 1
        return Fault.NONE

    def look(self, shard: str) -> None:
        """Look at a shard."""
        prefix = Place.of(self.job.out).out_prefix
        files = {suffix: self.store.read(f"{prefix}{shard}{suffix}") for suffix in SUFFIXES["webdataset"]}
        problem = half_shard(shard, files)
        if problem:
            self.problems.append(problem)
        elif files["_stats.json"] is not None:
            self.whole += 1


@pytest.mark.usefixtures("proxy")
def test_a_run_and_a_retry_leave_what_they_leave_on_a_disk(
    job: Job, tmp_path: Path, own_origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, but for times; then nothing is left to do. The retry needs no file of this machine."""
    report = run(job)
    assert (report.out, report.totals.ok, report.totals.rows) == (job.out, IMAGES - len(FAULTS), IMAGES)
    twin = replace(job, out=str(tmp_path / "twin" / "images"))
    before = own_origin.requests()
    assert run(job).requests == 0
    assert requests_since(own_origin, before) == {}
    elsewhere(monkeypatch, tmp_path)
    again = retry(job.out)
    assert (again.retried, again.retried_arrived, again.out) == (FLAKY, FLAKY, job.out)
    run(twin)
    check_complete(job, twin)
    assert run(job).requests == 0
    assert retry(job.out).requests == 0


@pytest.mark.usefixtures("proxy")
def test_what_is_looked_at_elsewhere_is_what_is_there(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rows are downloaded while they are read, and are not kept; a changed or missing object is found."""
    run(job)
    elsewhere(monkeypatch, tmp_path)
    monkeypatch.setattr(view, "_SMALL_BYTES", 0)
    status = read_status(job.out)
    assert (status.out, status.state, status.ok, status.failed) == (job.out, "complete", 25, 5)
    assert status.published_bytes == sum(map(len, objects_of(job.out).values()))
    for quick in (False, True):
        verdict = run_check(Check(job.out, processes=1, quick=quick))
        assert verdict.is_sound, verdict.problems
        assert (verdict.out, verdict.samples, verdict.output_format) == (job.out, IMAGES, suffixes_name(job))
    assert rows_on_disk(tmp_path, "cache-*") == 0
    assert main(["failures", job.out, "--jsonl"]) == 0
    failed = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert len(failed) == len(FAULTS)
    assert main(["explain", job.out, failed[0]["key"]]) == 0
    assert failed[0]["url"] in capfd.readouterr().out
    assert main(["status", job.out, "--command"]) == 0
    assert f"--out {job.out} " in capfd.readouterr().out
    bucket, place = Bucket(BUCKET), Place.of(job.out)
    first, last = suffixes_of(job)[0], suffixes_of(job)[-1]
    bucket.put(f"{place.out_prefix}00000{first}", b"broken")
    bucket.delete([f"{place.out_prefix}00001{last}"])
    bucket.close()
    for quick in (False, True):
        problems = run_check(Check(job.out, processes=1, quick=quick)).problems
        for shard in ("00000", "00001"):
            assert any(problem.startswith(shard) for problem in problems), problems


def suffixes_name(job: Job) -> str:
    """Return the name of the format of a job."""
    return next(name for name, suffixes in SUFFIXES.items() if suffixes == suffixes_of(job))


def rows_on_disk(folder: Path, caches: str) -> int:
    """Return the bytes that rows take in caches of this machine."""
    paths = [path for suffix in ("tar", "parquet") for path in folder.glob(f"{caches}/**/images/*.{suffix}")]
    assert paths
    return sum(path.stat().st_blocks for path in paths)


@pytest.mark.usefixtures("proxy")
def test_rows_in_the_bucket_take_no_space_here(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither after a run, nor after a retry, which downloads those that it merges."""
    monkeypatch.setattr(working_copy, "_SMALL_BYTES", 0)
    run(job)
    assert rows_on_disk(tmp_path, "cache") == 0
    retry(job.out)
    assert rows_on_disk(tmp_path, "cache") == 0
    check_complete(job, twin_of(job, tmp_path))


def test_no_reader_finds_half_a_shard(job: Job, proxy: FaultyProxy, store: ObjectStore, own_origin: Origin) -> None:
    """The statistics are only there with their tar and parquet, in a run, a retry, a repair, and a new start."""
    reader = Reader(store, job)
    proxy.decide = reader.decide
    last, size = suffixes_of(job)[-1], len(suffixes_of(job))
    run(job)
    assert reader.changes == {f"PUT {suffix}": SHARDS for suffix in suffixes_of(job)}
    reader.changes.clear()
    retry(job.out)
    assert reader.problems == []
    assert reader.changes == {f"PUT {suffix}": SHARDS for suffix in suffixes_of(job)} | (
        {f"DELETE {last}": SHARDS} if size > 1 else {}
    )
    bucket, place = Bucket(BUCKET), Place.of(job.out)
    before = without_times(objects_of(job.out))
    bucket.delete([f"{place.out_prefix}00001{suffix}" for suffix in (".parquet", "_stats.json")])
    bucket.close()
    asked = own_origin.requests()
    run(job)
    assert without_times(objects_of(job.out)) == before
    lost = IMAGES // SHARDS if size == 1 else sum(10 <= number < 20 for number in LASTING)
    assert len(requests_since(own_origin, asked)) == lost  # images that a tar still has are taken from it
    run(replace(job, fresh=True, limit=15))
    assert sorted(objects_of(job.out)) == sorted(f"0000{n}{suffix}" for n in range(2) for suffix in suffixes_of(job))
    look_at_all(reader)
    assert reader.problems == []
    assert reader.whole > SHARDS or size == 1


def command_of(job: Job, scratch: Path, workers: int) -> list[str]:
    """Return the command for a job."""
    return [
        *(sys.executable, "-m", "datafetch", "get", job.source, "--out", job.out, "--format", suffixes_name(job)),
        *("--shard-size", str(IMAGES // SHARDS), "--keep-col", "width", "--scratch", str(scratch)),
        *("--allow-net", "127.0.0.0/8", "--connections", "8", "--per-host", "8", "--processes", "1"),
        *("--retries", "0", "--workers", str(workers)),
    ]


@pytest.mark.rotating
@pytest.mark.parametrize(("step", "is_elsewhere"), [(4, False), (5, True)], ids=["here", "elsewhere"])
def test_a_run_killed_at_any_request_ends_as_if_undisturbed(  # noqa: PLR0913, PLR0917 - fixtures and cases
    store: ObjectStore,
    job: Job,
    tmp_path: Path,
    own_origin: Origin,
    small_pictures: Pictures,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    is_elsewhere: bool,
) -> None:
    """Its successor goes on here, or elsewhere with what is in the bucket alone; nothing half is there in between."""
    urls = faulty_urls(own_origin, small_pictures[1], LASTING, IMAGES, f"{tmp_path.name}-{next(_numbers)}")
    job = replace(job, source=str(list_of(tmp_path, urls)))
    use(monkeypatch, login(store.url))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "view"))
    reader, killer = Reader(store, job), Killer(store, step)
    killer.run(
        (
            command_of(job, tmp_path / (f"scratch-{number}" if is_elsewhere else "scratch"), 1 + number % 2)
            for number in range(60)
            if look_at_all(reader)
        ),
        tmp_path / "cache",
    )
    assert killer.kills > 2
    assert reader.problems == []
    twin = twin_of(job, tmp_path)
    check_complete(job, twin)
    assert lines_of(job.out) == stable(read_ledger(twin))


@pytest.mark.rotating
@pytest.mark.parametrize(("step", "is_elsewhere"), [(4, True), (5, False)], ids=["elsewhere", "here"])
def test_a_retry_killed_at_any_request_ends_as_if_undisturbed(
    store: ObjectStore, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, is_elsewhere: bool
) -> None:
    """Also while it replaces the files of shards; until all are in place, the output is not complete."""
    use(monkeypatch, login(store.url))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "view"))
    run(job)
    reader, killer = Reader(store, job), Killer(store, step)
    scratch_folders = (tmp_path / (f"scratch-{number}" if is_elsewhere else "scratch") for number in range(60))
    killer.run(
        (
            [sys.executable, "-m", "datafetch", "retry", job.out, "--scratch", str(scratch)]
            for scratch in scratch_folders
            if look_at_all(reader) and is_sound_so_far(job)
        ),
        tmp_path / "cache",
    )
    assert killer.kills > 2
    assert reader.problems == []
    check_complete(job, twin_of(job, tmp_path))


def look_at_all(reader: Reader) -> bool:
    """Look at all shards."""
    for shard in range(SHARDS):
        reader.look(f"{shard:05d}")
    return True


def is_sound_so_far(job: Job) -> bool:
    """Check that an output that calls itself complete is."""
    if read_status(job.out).state == "complete":
        assert run_check(Check(job.out, processes=1, quick=True)).is_sound
    return True


def test_a_command_makes_it(
    proxy: FaultyProxy, job: Job, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``get``, with other objects of the bucket refused and left alone; and ``files`` is refused with one line."""
    del proxy
    bucket, place = Bucket(BUCKET), Place.of(job.out)
    bucket.put(f"{place.out_prefix}mine.txt", b"mine")
    command = command_of(job, tmp_path / "scratch", 1)[3:]
    assert main(command) == 2
    assert "mine.txt was not written by this job" in capfd.readouterr().err
    bucket.delete([f"{place.out_prefix}mine.txt"])
    bucket.close()
    assert main(command) == 0
    monkeypatch.setenv("COLUMNS", "1000")
    assert main([*command, "--format", "files"]) == 2
    assert "choose --format webdataset or parquet, or give a folder" in capfd.readouterr().err
    with pytest.raises(ConfigurationError, match="leave out --reuse"):
        run(replace(job, reuse=True))
    assert len(objects_of(job.out)) == SHARDS * len(suffixes_of(job))


@pytest.mark.measured
def test_nodes_of_a_cluster_make_what_one_process_makes(
    job: Job, proxy: FaultyProxy, store: ObjectStore, tmp_path: Path, own_origin: Origin, small_pictures: Pictures
) -> None:
    """They upload the files of a shard themselves, in order; then nothing is left to do, and a retry goes on."""
    urls = faulty_urls(own_origin, small_pictures[1], FAULTS, IMAGES, f"{tmp_path.name}-{next(_numbers)}")
    job = replace(job, source=str(list_of(tmp_path, urls)))
    reader = Reader(store, job)
    proxy.decide = reader.decide
    report = driven(job, Cluster(tmp_path, "a", "b"))
    assert (report.out, report.totals.ok, report.requests) == (job.out, IMAGES - len(FAULTS), IMAGES)
    assert reader.changes == {f"PUT {suffix}": SHARDS for suffix in suffixes_of(job)}
    assert driven(job, Cluster(tmp_path)).requests == 0
    assert run(job).requests == 0
    assert retry(job.out).retried_arrived == FLAKY
    assert reader.problems == []
    check_complete(job, twin_of(job, tmp_path))


@pytest.mark.rotating
def test_a_shard_that_a_killed_node_had_uploaded_is_made_again(
    job: Job, proxy: FaultyProxy, store: ObjectStore, tmp_path: Path, own_origin: Origin, small_pictures: Pictures
) -> None:
    """The driver did not hear of it; its statistics are replaced with the rest, so no reader finds half of it."""
    urls = faulty_urls(own_origin, small_pictures[1], LASTING, IMAGES, f"{tmp_path.name}-{next(_numbers)}")
    job = replace(job, source=str(list_of(tmp_path, urls)))
    reader = Reader(store, job)
    proxy.decide = reader.decide
    killed: list[str] = []

    def kill(node: Any, report: NodeReport) -> None:
        if report.uploaded and not killed:
            killed.append(report.uploaded[0].name)
            cluster.kill(node)
            raise NodeLostError("has ended", is_certain=True)

    cluster = Cluster(tmp_path, "a", "b", look=kill)
    driven(job, cluster)
    assert killed
    assert reader.problems == []
    twin = twin_of(job, tmp_path)
    check_complete(job, twin)
    assert lines_of(job.out) == stable(read_ledger(twin))


@pytest.mark.usefixtures("proxy")
def test_a_node_puts_no_file_next_to_those_of_another_commit(tmp_path: Path) -> None:
    """What is there with the same bytes is taken; from the first file on that is another one, all are put elsewhere."""
    location = f"s3://{BUCKET}/{os.getpid()}-{next(_numbers)}/images"
    place, bucket = Place.of(location), Bucket(BUCKET)
    suffixes = SUFFIXES["webdataset"]
    key = f"{place.state_prefix}job"
    job = LoggedFile(key, 2, crc32(b"{}"), bucket.put(key, b"{}") or "")
    stored = StoredOutput(location, job, 1, suffixes, is_staged=False, scratch=str(tmp_path))
    bucket.put(f"{place.out_prefix}00000.tar", b"tar", crc32=crc32(b"tar"))  # of a node that was killed then

    def uploaded(number: int, *contents: bytes) -> set[str]:
        node = NodeCopy(stored, number)
        node.open()
        try:
            node.layout.out.mkdir()
            for suffix, content in zip(suffixes, contents, strict=True):
                (node.layout.out / f"00000{suffix}").write_bytes(content)
            files = node.upload("00000")
        finally:
            node.close()
        for suffix, content in zip(suffixes, contents, strict=True):
            file = files[f"out/00000{suffix}"]
            found = bucket.get(file.key)
            assert found is not None
            assert (found.body, found.etag, file.crc32) == (content, file.etag, crc32(content))
        return {suffix for suffix in suffixes if files[f"out/00000{suffix}"].key.startswith(place.out_prefix)}

    assert uploaded(1, b"tar", b"rows", b"stats") == {".tar", ".parquet", "_stats.json"}
    assert uploaded(2, b"tar", b"rows", b"later stats") == {".tar", ".parquet"}
    assert uploaded(3, b"tar", b"other rows", b"stats") == {".tar"}
    assert uploaded(4, b"other tar", b"rows", b"stats") == set()
    assert objects_of(location) == {"00000.tar": b"tar", "00000.parquet": b"rows", "00000_stats.json": b"stats"}
    bucket.close()
