"""Objects of a store, the lease on an output, and its commit log, against a server that speaks S3's protocol."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import msgspec
import pytest
from object_store import BUCKET, Fault, FaultyProxy, ObjectStore, login, use
from runs import read_lines

from datafetch.engine.recipe import plan_recipe
from datafetch.errors import ConfigurationError, ResourceError
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import Body, Encoded, Failure, FailureKind
from datafetch.model.sample import Sample
from datafetch.store.buckets import bucket as bucket_module
from datafetch.store.buckets import lease as lease_module
from datafetch.store.buckets.bucket import IF_NEW, PART_BYTES, Bucket, Condition, StoppedError
from datafetch.store.buckets.commit_log import CommitLog, Contents, LogEntry, LoggedFile
from datafetch.store.buckets.lease import Lease, LeaseState, prove_conditions, read_lease
from datafetch.store.buckets.local_files import LocalFiles
from datafetch.store.buckets.place import Place
from datafetch.store.buckets.spool_segments import SpoolSegments
from datafetch.store.lock_holder import LockHolder
from datafetch.store.spool_format import ImageResult
from datafetch.store.spool_writer import write_spool

_numbers = count()
_LARGE_BYTES = 2 * PART_BYTES + 12_345


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """A server for this module."""
    with ObjectStore() as served:
        yield served


@pytest.fixture
def proxy(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy in front of it, which this process uses."""
    monkeypatch.setattr(bucket_module, "_FIRST_PAUSE_S", 0.01)
    with FaultyProxy(store.port) as disturbing:
        use(monkeypatch, login(disturbing.url))
        yield disturbing


@pytest.fixture
def bucket(proxy: FaultyProxy) -> Iterator[Bucket]:
    """The bucket, through the proxy."""
    opened = Bucket(BUCKET)
    yield opened
    opened.close()
    assert proxy.requests


@pytest.fixture
def prefix() -> str:
    """A prefix that no other test uses."""
    return f"test-{next(_numbers)}-{os.getpid()}/"


def test_a_store_that_never_answers_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address may be wrong, so the message has it, without a login."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    use(monkeypatch, login(f"http://user:secret@127.0.0.1:{port}"))
    monkeypatch.setattr(bucket_module, "_FIRST_PATIENCE_S", 0.2)
    with (
        Bucket(BUCKET) as bucket,
        pytest.raises(ResourceError, match=rf"\(no connection to 127\.0\.0\.1:{port}\); check the network"),
    ):
        bucket.get("x")


def first_of(method: str, fault: Fault, *, part: str = "", times: int = 1) -> Callable[[str, str], Fault]:
    """Return what disturbs the first requests of a method whose path contains something."""
    left = count(times, -1)
    return lambda asked, path: fault if asked == method and part in path and next(left) > 0 else Fault.NONE


@pytest.mark.slow
def test_a_put_is_carried_out_if_its_condition_holds(bucket: Bucket, prefix: str) -> None:
    """New objects, and those with a known entity tag; anything else is refused and changes nothing."""
    key = f"{prefix}object"
    first = bucket.put(key, b"first", IF_NEW)
    assert first is not None
    assert bucket.put(key, b"second", IF_NEW) is None
    second = bucket.put(key, b"second", Condition(first))
    assert second is not None
    assert bucket.put(key, b"third", Condition(first)) is None
    assert bucket.put(f"{prefix}none", b"fourth", Condition(first)) is None
    found = bucket.get(key)
    assert found is not None
    assert (found.body, found.etag) == (b"second", second)
    assert 0 <= found.age_s < 60
    bucket.delete([key, key])
    assert bucket.get(key) is None
    assert bucket.put(key, b"fifth", IF_NEW) is not None


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.TOO_MANY, Fault.RESET, Fault.HALF, Fault.LOST])
@pytest.mark.parametrize("condition", [None, IF_NEW], ids=["always", "if new"])
def test_a_disturbed_put_is_carried_out_once(
    bucket: Bucket, proxy: FaultyProxy, prefix: str, fault: Fault, condition: Condition | None
) -> None:
    """It is sent again; one whose response was lost is not taken for somebody else's."""
    key = f"{prefix}object"
    proxy.decide = first_of("PUT", fault, times=5)
    etag = bucket.put(key, bytes(100_000), condition)
    assert proxy.faults == {fault: 5}
    found = bucket.get(key)
    assert found is not None
    assert (found.body, found.etag) == (bytes(100_000), etag)


@pytest.mark.slow
@pytest.mark.rotating
@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.RESET, Fault.HALF, Fault.LOST])
@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_a_large_file_arrives_whole(
    bucket: Bucket, proxy: FaultyProxy, prefix: str, fault: Fault, method: str, tmp_path: Path
) -> None:
    """Whether its parts are disturbed, or the requests that begin and complete the upload. Nothing is left open."""
    path, copy = tmp_path / "large", tmp_path / "copy"
    path.write_bytes(os.urandom(_LARGE_BYTES))
    proxy.decide = first_of(method, fault, times=2)
    assert bucket.upload(path, f"{prefix}large", 7, IF_NEW) is not None
    assert proxy.faults == {fault: 2}
    proxy.decide = lambda *_: Fault.NONE
    assert bucket.download(f"{prefix}large", copy)
    assert copy.read_bytes() == path.read_bytes()
    described = bucket.describe(f"{prefix}large")
    assert described is not None
    assert (described.size_bytes, described.crc32, described.is_ours) == (_LARGE_BYTES, 7, True)
    if method == "POST" and fault is Fault.LOST:  # the response with the first upload's id was lost
        assert bucket.abort_uploads(prefix) <= 2
    assert bucket.abort_uploads(prefix) == 0


@pytest.mark.slow
def test_a_large_file_is_not_put_in_place_of_another(bucket: Bucket, prefix: str, tmp_path: Path) -> None:
    """Its upload is aborted if the condition does not hold."""
    path = tmp_path / "large"
    path.write_bytes(bytes(_LARGE_BYTES))
    other = bucket.put(f"{prefix}large", b"other")
    assert bucket.upload(path, f"{prefix}large", 7, IF_NEW) is None
    described = bucket.describe(f"{prefix}large")
    assert described is not None
    assert described.etag == other
    assert bucket.abort_uploads(prefix) == 0


@pytest.mark.slow
def test_uploads_that_nobody_completes_are_aborted(bucket: Bucket, prefix: str) -> None:
    """Those below a prefix, as a killed process leaves them; others are nobody's business."""
    for name in ("one", "two"):
        bucket._client.create_multipart_upload(Bucket=BUCKET, Key=f"{prefix}{name}")
    other = bucket._client.create_multipart_upload(Bucket=BUCKET, Key=f"other-{prefix}one")
    assert bucket.abort_uploads(prefix) == 2
    assert bucket.abort_uploads(prefix) == 0
    bucket._client.abort_multipart_upload(Bucket=BUCKET, Key=other["Key"], UploadId=other["UploadId"])


@pytest.mark.slow
def test_a_store_that_can_not_be_reached_costs_one_line(
    bucket: Bucket, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some minutes; and a bucket that does not exist at once."""
    monkeypatch.setattr(bucket_module, "_PATIENCE_S", 0.05)
    proxy.decide = lambda *_: Fault.SLOW_DOWN
    with pytest.raises(ResourceError, match=r"could not read a in s3://images for 0 seconds \(SlowDown\)"):
        bucket.get("a")
    proxy.decide = lambda *_: Fault.NONE
    missing = Bucket("no-such-bucket")
    with pytest.raises(ConfigurationError, match="there is no bucket s3://no-such-bucket; create it"):
        missing.put("a", b"")
    missing.close()


@pytest.mark.slow
def test_a_run_that_is_stopped_asks_no_store_again(bucket: Bucket, proxy: FaultyProxy) -> None:
    """A request is sent again by the bucket alone, which can be stopped, and not by the library below it."""
    proxy.decide = lambda *_: Fault.SLOW_DOWN
    bucket.stop.set()
    with pytest.raises(StoppedError):
        bucket.get("a")
    assert proxy.faults == {Fault.SLOW_DOWN: 1}


@pytest.mark.slow
@pytest.mark.parametrize("size_bytes", [10, 3 << 20], ids=["at its end", "on the way"])
def test_a_full_disk_is_not_taken_for_a_lost_network(
    bucket: Bucket, proxy: FaultyProxy, prefix: str, size_bytes: int
) -> None:
    """A download to it fails at once, and the error names the file."""
    bucket.put(f"{prefix}object", bytes(size_bytes))
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        bucket.download(f"{prefix}object", Path("/dev/full"))
    assert [method for method, _ in proxy.requests] == ["PUT", "GET"]


@pytest.mark.slow
def test_a_store_without_conditional_puts_is_refused(bucket: Bucket, proxy: FaultyProxy, prefix: str) -> None:
    """One line says so; and what was written to find out is deleted."""
    prove_conditions(bucket, f"{prefix}probe")
    proxy.decide = lambda *_: Fault.UNCONDITIONAL
    with pytest.raises(ConfigurationError, match="does not carry out conditional puts"):
        prove_conditions(bucket, f"{prefix}probe")
    assert list(bucket.list(prefix)) == []


@pytest.mark.slow
def test_a_lease_is_held_by_one(bucket: Bucket, prefix: str) -> None:
    """A second process is told by whom, and the next holder has a larger token."""
    first = Lease(bucket, f"{prefix}lock", "s3://images/out")
    first.acquire()
    first.check()
    second = Lease(bucket, f"{prefix}lock", "s3://images/out")
    with pytest.raises(ConfigurationError, match=rf"another run is working on s3://images/out \(process {os.getpid()}"):
        second.acquire()
    held = read_lease(bucket, f"{prefix}lock")
    assert held is not None
    assert held.token == first.token
    first.release()
    assert read_lease(bucket, f"{prefix}lock") is None
    second.acquire()
    assert second.token == first.token + 1
    second.release()
    assert [one.key for one in bucket.list(prefix)] == [f"{prefix}lock"]


@pytest.mark.slow
def test_many_who_ask_at_once_get_one_lease(bucket: Bucket, prefix: str) -> None:
    """Of eight threads one gets it, again and again."""
    tokens = []
    for _ in range(3):
        leases = [Lease(bucket, f"{prefix}lock", "s3://images/out") for _ in range(8)]
        threads = [threading.Thread(target=_try_to_acquire, args=(lease,)) for lease in leases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (holder,) = (lease for lease in leases if lease._state is not None)
        tokens.append(holder.token)
        holder.release()
    assert tokens == [1, 2, 3]


def _try_to_acquire(lease: Lease) -> None:
    try:
        lease.acquire()
    except ConfigurationError:
        return


def _write_lease(bucket: Bucket, key: str, holder: LockHolder, lease_s: float, *, pid_namespace: str = "") -> None:
    state = LeaseState(token=7, nonce="other", lease_s=lease_s, holder=holder, pid_namespace=pid_namespace)
    bucket.put(key, msgspec.json.encode(state))


@pytest.mark.slow
def test_an_expired_lease_is_taken(bucket: Bucket, prefix: str) -> None:
    """That of another machine when it expires by the store's clock; that of an ended process of this one at once."""
    here = LockHolder.this_process(is_shared=False)
    _write_lease(bucket, f"{prefix}elsewhere", replace(here, host="elsewhere"), 1.0)
    lease = Lease(bucket, f"{prefix}elsewhere", "s3://images/out")
    lease.acquire()
    assert lease.token == 8
    lease.release()
    ended, own = replace(here, process_start=1), lease_module._pid_namespace()
    _write_lease(bucket, f"{prefix}here", ended, 1e6, pid_namespace=own)
    lease = Lease(bucket, f"{prefix}here", "s3://images/out")
    lease.acquire()
    assert lease.token == 8
    lease.release()


@pytest.mark.slow
@pytest.mark.parametrize("pid_namespace", ["", "another pid:[4026531836]"], ids=["unknown", "another"])
def test_a_machine_of_the_same_name_is_another_one(
    bucket: Bucket, proxy: FaultyProxy, prefix: str, pid_namespace: str
) -> None:
    """As of two containers: that there is no such process here says nothing, and its holder renews the lease."""
    holder = replace(LockHolder.this_process(is_shared=False), process_start=1)
    _write_lease(bucket, f"{prefix}lock", holder, 60.0, pid_namespace=pid_namespace)
    reads = count(1)

    def renew(method: str, _: str) -> Fault:
        if method == "GET" and next(reads) == 2:
            _write_lease(bucket, f"{prefix}lock", replace(holder, since_unix_s=1), 60.0, pid_namespace=pid_namespace)
        return Fault.NONE

    proxy.decide = renew
    with pytest.raises(ConfigurationError, match="another run is working on s3://images/out"):
        Lease(bucket, f"{prefix}lock", "s3://images/out").acquire()


@pytest.mark.slow
def test_an_abandoned_lease_of_a_store_without_a_clock_is_taken(
    bucket: Bucket, proxy: FaultyProxy, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it has not changed for its time, or that of any lease if it claims to hold longer; not before."""
    monkeypatch.setattr(lease_module, "LEASE_S", 1.0)
    proxy.decide = lambda *_: Fault.UNDATED
    holder = replace(LockHolder.this_process(is_shared=False), host="elsewhere")
    _write_lease(bucket, f"{prefix}lock", holder, 1e9)
    began_s = time.monotonic()
    lease = Lease(bucket, f"{prefix}lock", "s3://images/out")
    lease.acquire()
    assert time.monotonic() - began_s >= 1.0
    assert lease.token == 8
    lease.release()


@pytest.mark.slow
def test_a_holder_notices_that_it_has_lost_its_lease(bucket: Bucket, proxy: FaultyProxy, prefix: str) -> None:
    """Because another one has taken it, or because it could not be renewed in time."""
    key = f"{prefix}lock"
    lost = Lease(bucket, key, "s3://images/out", lease_s=1.0)
    lost.acquire()
    _write_lease(bucket, key, LockHolder.this_process(is_shared=False), 60.0)
    assert lost._thread is not None
    lost._thread.join()
    with pytest.raises(ResourceError, match="the lock on s3://images/out was lost"):
        lost.check()
    lost.release()
    unreachable = Lease(bucket, f"{prefix}other", "s3://images/out", lease_s=0.5)
    unreachable.acquire()
    noticed = threading.Event()
    proxy.decide = lambda method, _: Fault.RESET if method == "PUT" else Fault.NONE
    while not noticed.wait(0.01):
        try:
            unreachable.check()
        except ResourceError:
            noticed.set()
    proxy.decide = lambda *_: Fault.NONE
    unreachable.release()


@pytest.mark.slow
def test_a_lost_response_does_not_lose_the_lease(
    bucket: Bucket, proxy: FaultyProxy, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when it is taken nor when it is renewed."""
    key = f"{prefix}lock"
    proxy.decide = lambda method, _: Fault.LOST if method == "PUT" and next(_numbers) % 2 else Fault.NONE
    monkeypatch.setattr(lease_module, "_RENEWALS", 60)
    lease = Lease(bucket, key, "s3://images/out", lease_s=30.0)
    lease.acquire()
    renewals = 0
    while renewals < 4:
        held = read_lease(bucket, key)
        assert held is not None
        renewals = held.renewal
        lease.check()
    assert proxy.faults[Fault.LOST] > 2
    lease.release()


def _file(key: str) -> LoggedFile:
    return LoggedFile(key, 1, 2, "etag")


@pytest.mark.slow
def test_a_log_adds_up(bucket: Bucket, prefix: str) -> None:
    """Whole entries, changes and what is gone, read by another process; and entries before the last whole one don't."""
    log = CommitLog(bucket, prefix, "s3://images/out")
    assert log.read() == Contents()
    log.append(LogEntry(1, {}, is_whole=True))
    for number in range(70):
        log.append(LogEntry(1, {f"state/{number}": _file(f"{number}")}))
    log.append(LogEntry(1, {"state/3": _file("new")}, ["state/4"], finals=["a", "b"]))
    other = CommitLog(bucket, prefix, "s3://images/out")
    contents = other.read()
    assert contents == log.contents
    assert (contents.number, len(contents.files), contents.finals) == (72, 69, {"a", "b"})
    assert contents.files["state/3"].key == "new"
    other.append(LogEntry(2, dict(contents.files), is_whole=True, finals=["b"]))
    other.forget_earlier()
    assert len(list(bucket.list(prefix))) == 1
    assert CommitLog(bucket, prefix, "").read() == other.contents


@pytest.mark.slow
def test_who_was_fenced_off_records_nothing(bucket: Bucket, prefix: str) -> None:
    """Not at the number that the next holder has written, and with no effect at one that it has deleted."""
    paused = CommitLog(bucket, prefix, "s3://images/out")
    paused.append(LogEntry(1, {}, is_whole=True))
    following = CommitLog(bucket, prefix, "s3://images/out")
    following.read()
    following.append(LogEntry(2, {}, is_whole=True))
    with pytest.raises(ResourceError, match="another run has taken over s3://images/out"):
        paused.append(LogEntry(1, {"state/late": _file("late")}))
    following.append(LogEntry(2, {"state/a": _file("a")}))
    following.append(LogEntry(3, dict(following.contents.files), is_whole=True))
    following.forget_earlier()
    paused.append(LogEntry(1, {"state/late": _file("late")}))
    assert CommitLog(bucket, prefix, "").read().files == {"state/a": _file("a")}


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "other"])
def test_a_damaged_log_costs_one_line(bucket: Bucket, prefix: str, damage: str) -> None:
    """An entry that is missing, or is something else."""
    log = CommitLog(bucket, prefix, "s3://images/out")
    log.append(LogEntry(1, {}, is_whole=True))
    for number in range(3):
        log.append(LogEntry(1, {f"state/{number}": _file(f"{number}")}))
    key = f"{prefix}0000000002.json"
    if damage == "missing":
        bucket.delete([key])
    else:
        bucket.put(key, b"[]")
    with pytest.raises(ConfigurationError, match=r"is damaged: entries are missing|is not an entry of this version"):
        CommitLog(bucket, prefix, "s3://images/out").read()


@pytest.mark.slow
def test_hollow_files_take_no_space_and_are_filled_while_they_are_read(
    bucket: Bucket, prefix: str, tmp_path: Path
) -> None:
    """They have the size and the time of what they stand for; a journal survives a torn last line."""
    content = os.urandom(1 << 20)
    etag = bucket.put(f"{prefix}a.pkl", content)
    assert etag is not None
    files = {"out/a.pkl": LoggedFile(f"{prefix}a.pkl", len(content), 0, etag)}
    local = LocalFiles(bucket, tmp_path / "copy", "out", checks_out=False)
    local.open()
    (tmp_path / "copy" / "out").mkdir()
    (tmp_path / "copy" / "out" / "left-over").touch()
    local.bring(files, lambda *_: False)
    path = local.layout.out / "a.pkl"
    assert [one.name for one in local.layout.out.iterdir()] == ["a.pkl"]
    status = path.stat()
    assert (status.st_size, status.st_blocks) == (len(content), 0)
    with local.at_hand(files, path, keeps=False):
        assert path.read_bytes() == content
        assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert path.stat().st_blocks == 0
    with local.at_hand(files, path, keeps=True):
        pass
    local.close()
    with (tmp_path / "copy" / "files.jsonl").open("ab") as journal:
        journal.write(b'{"name":"out/a.p')
    again = LocalFiles(bucket, tmp_path / "copy", "out")
    again.open()
    again.bring(files, lambda *_: True)
    assert again.layout.out.joinpath("a.pkl").read_bytes() == content
    assert not again.is_hollow("out/a.pkl")
    again.close()


@pytest.mark.slow
def test_an_object_with_other_bytes_is_not_taken(bucket: Bucket, prefix: str, tmp_path: Path) -> None:
    """Its size or checksum differs from what the log says."""
    bucket.put(f"{prefix}a.json", b"{}")
    local = LocalFiles(bucket, tmp_path / "copy", "out")
    local.open()
    with pytest.raises(ResourceError, match="is not what was written to it"):
        local.bring({"state/a.json": LoggedFile(f"{prefix}a.json", 2, 1, "")}, lambda *_: True)
    for name in ("state/../../a", "out/", "out//tmp/a", "state/./a", "a", "out/a\0b", f"out/{'a' * 241}", "out/\ud800"):
        with pytest.raises(ConfigurationError, match="which no output has"):
            local.bring({name: LoggedFile(f"{prefix}a.json", 2, 1, "")}, lambda *_: True)
    local.close()


@pytest.mark.slow
def test_spools_are_put_together_elsewhere(bucket: Bucket, prefix: str, tmp_path: Path) -> None:
    """What was appended, by several holders; also if a holder cut what it had put together."""
    here, there = tmp_path / "here", tmp_path / "there"
    spool = here / "job" / "part-00000.spool"
    spool.parent.mkdir(parents=True)
    spool.write_bytes(b"one two ")
    first = SpoolSegments(bucket, prefix, here)
    first.restore()
    first.begin(1)
    first.upload()
    with spool.open("ab") as file:
        file.write(b"thr")
    first.end()
    assert len(list(bucket.list(prefix))) == 2
    second = SpoolSegments(bucket, prefix, there)
    second.restore()
    copy = there / "job" / "part-00000.spool"
    assert copy.read_bytes() == b"one two thr"
    second.begin(2)
    with copy.open("r+b") as file:
        file.truncate(8)  # as a run cuts a torn entry
        file.seek(8)
        file.write(b"four and more")
    second.end()
    third = SpoolSegments(bucket, prefix, tmp_path / "third")
    third.restore()
    assert (tmp_path / "third" / "job" / "part-00000.spool").read_bytes() == b"one two four and more"
    third.begin(3)
    (tmp_path / "third" / "job" / "part-00000.spool").unlink()
    third.end()
    assert list(bucket.list(prefix)) == []


@pytest.mark.slow
def test_a_segment_behind_a_gap_is_left_out(bucket: Bucket, prefix: str, tmp_path: Path) -> None:
    """As one that arrived before another one that never did."""
    for token, start, content in ((1, 0, b"ab"), (1, 4, b"ef"), (2, 1, b"BC")):
        bucket.put(f"{prefix}job/a.spool/main/{token:010}-{start:015}-{start + 2:015}", content)
    SpoolSegments(bucket, prefix, tmp_path).restore()
    assert (tmp_path / "job" / "a.spool").read_bytes() == b"aBC"


def _spool_of(path: Path, *outcomes: str | None, first: int = 0) -> list[str]:
    """Write a spool of samples with an image each, from a position on; None is one that arrived. Returns its lines."""
    records: list[ImageResult | Sample] = []
    for position, outcome in enumerate(outcomes, first):
        sample = Sample(position, str(position), (f"http://h/{path.parent.parent.name}/{position}",), {})
        image: Encoded | Failure = Encoded(b"jpeg", 4, 3, "PNG", "ab")
        if outcome is not None:
            image = Failure(FailureKind(outcome), "why", None, 1, "", 1.0)
        body = image if isinstance(image, Failure) else Body(b"body", sample.urls[0])
        records += [ImageResult(LedgerLine.of(sample, 0, body, image), b"" if outcome else b"jpeg"), sample]
    write_spool(path, records)
    return [sample.urls[0] for sample in records if isinstance(sample, Sample)]


def _lines_of(folder: Path) -> list[tuple[str, str]]:
    """Return URL and outcome of all images in the spools below a folder."""
    return sorted((line.url, line.outcome) for path in folder.glob("**/*.spool") for line in read_lines(path))


@pytest.mark.slow
def test_what_several_nodes_have_is_put_together_once(bucket: Bucket, prefix: str, tmp_path: Path) -> None:
    """Of two results the later node's counts, and failures of one that was sick do not; by a node, or by a run."""
    name, job = "part-00000.spool", "0123456789abcdef"
    urls = {}
    for number, (first, outcomes) in enumerate([(0, (None, "connect", "empty")), (2, (None, None))], 1):
        folder = tmp_path / f"node-{number}"
        urls[number] = _spool_of(folder / job / name, *outcomes, first=first)
        node = SpoolSegments(bucket, prefix, folder, node=f"7-{number}")
        node.begin(7)
        node.end()
    writer = SpoolSegments(bucket, prefix, tmp_path / "driver")
    writer.drop_failures([f"{job}/{name}"], "7-1", ["connect"])
    expected = sorted([(urls[1][0], "ok"), (urls[2][0], "ok"), (urls[2][1], "ok")])
    other = SpoolSegments(bucket, prefix, tmp_path / "other", node="7-3")
    other.bring(f"{job}/{name}")
    assert _lines_of(tmp_path / "other") == expected
    local = tmp_path / "run" / job / name  # what the run has itself is not there twice
    own = _spool_of(local, None, first=3)
    alone = SpoolSegments(bucket, prefix, tmp_path / "run")
    alone.restore()
    assert _lines_of(tmp_path / "run") == sorted([*expected[:1], (urls[2][0], "ok"), (own[0], "ok")])
    alone.begin(8)
    for path in (tmp_path / "run").glob("**/*.spool"):  # as when its shard was recorded
        path.unlink()
    alone.end()
    assert list(bucket.list(prefix)) == []


@pytest.mark.slow
def test_a_recorded_shard_leaves_no_segment_behind(
    bucket: Bucket, proxy: FaultyProxy, prefix: str, tmp_path: Path
) -> None:
    """Also if one is just being uploaded: nothing waits for that, and it is deleted when it has arrived."""
    is_sent, may_arrive = threading.Event(), threading.Event()

    def delay(method: str, _: str) -> Fault:
        if method == "PUT" and not is_sent.is_set():
            is_sent.set()
            assert may_arrive.wait(60)
        return Fault.NONE

    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "a.spool").write_bytes(b"content")
    segments = SpoolSegments(bucket, prefix, tmp_path, node="7-1")
    proxy.decide = delay
    uploading = threading.Thread(target=segments.upload)
    forgetting = threading.Thread(target=segments.forget, args=("job/a.spool",))
    uploading.start()
    assert is_sent.wait(60)
    forgetting.start()
    forgetting.join(20)
    is_held_up = forgetting.is_alive()
    may_arrive.set()
    forgetting.join()
    uploading.join()
    assert not is_held_up
    assert list(bucket.list(prefix)) == []


@pytest.mark.slow
def test_what_was_not_deleted_or_uploaded_is_tried_again(
    bucket: Bucket, proxy: FaultyProxy, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments of a spool that is gone; and a spool that always fails holds none of the others up."""
    monkeypatch.setattr(bucket_module, "_PATIENCE_S", 0.05)
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "gone.spool").write_bytes(b"content")
    segments = SpoolSegments(bucket, prefix, tmp_path)
    segments.upload()
    (folder / "gone.spool").unlink()
    proxy.decide = lambda method, _: Fault.RESET if method == "DELETE" else Fault.NONE
    segments.upload()
    assert len(list(bucket.list(prefix))) == 1
    for name in ("a", "b", "c"):
        (folder / f"{name}.spool").write_bytes(b"content")
    first = next(segments._own_files()).stem
    proxy.decide = lambda _, path: Fault.RESET if f"/{first}.spool/" in path else Fault.NONE
    for _ in range(3):
        segments.upload()
    spools = {one.key.removeprefix(prefix).split("/")[1] for one in bucket.list(prefix)}
    assert spools == {f"{name}.spool" for name in "abc" if name != first}


@pytest.mark.slow
def test_segments_with_names_that_lead_elsewhere_are_left_out(bucket: Bucket, prefix: str, tmp_path: Path) -> None:
    """Whoever can write to the bucket can't name a file of this machine; what is no list of kinds costs one line."""
    segment = f"{1:010}-{0:015}-{2:015}"
    for name in ("./a.spool/main", "../a.spool/main", "job/../main", f"job/{'a' * 241}/main", "job/a.spool/.."):
        bucket._client.put_object(Bucket=BUCKET, Key=f"{prefix}{name}/{segment}", Body=b"ab")
    SpoolSegments(bucket, prefix, tmp_path / "spools").restore()
    assert list(tmp_path.iterdir()) == []
    bucket.put(f"{prefix}job/a.spool/worker-7-1/dropped", b"{}")
    with pytest.raises(
        ConfigurationError, match="is no list of failure kinds, which datafetch writes there; delete it"
    ):
        SpoolSegments(bucket, prefix, tmp_path / "spools").restore()


@pytest.mark.slow
def test_segments_of_recorded_shards_are_deleted(bucket: Bucket, prefix: str, tmp_path: Path) -> None:
    """And those of retries, repairs and open shards are not, unless a run has started over."""
    segment = f"{1:010}-{0:015}-{2:015}"
    keys = [
        f"{prefix}0123456789abcdef/{shard}.spool/worker-1-2/{name}"
        for shard, name in (("a", segment), ("a", "dropped"), ("b", segment))
    ]
    keys.append(f"{prefix}0123456789abcdef-retry-1-x/a.spool/main/{segment}")
    for key in keys:
        bucket.put(key, b"[]")
    segments = SpoolSegments(bucket, prefix, tmp_path)
    segments.forget_all({"a"})
    assert [one.key for one in bucket.list(prefix)] == sorted(keys[2:])
    segments.forget_all(None)
    assert list(bucket.list(prefix)) == []


def test_the_data_folder_may_be_in_a_bucket() -> None:
    """Outputs of a recipe lie below it, under the same paths as in a folder."""
    planned = plan_recipe(["step-1"], "s3://images/data/", {"coyo": "x"}, {})
    outs = {one.part.name: one.out for one in planned}
    assert outs["coyo"] == "s3://images/data/coyo-700m/pkl03-split"
    assert all(Place.of(out).bucket == "images" for out in outs.values())


def test_places_are_refused_that_are_none() -> None:
    """Credentials, queries, strange buckets and paths; and the state folder stands for its output."""
    place = Place.of("s3://images/data/coyo-700m/pkl03-split/")
    assert (place.bucket, place.out_prefix) == ("images", "data/coyo-700m/pkl03-split/")
    assert place.state_prefix == "data/coyo-700m/pkl03-split.datafetch/"
    assert str(Place.of("s3://images/data/out.datafetch")) == "s3://images/data/out"
    assert place.working_folder(Path("/scratch")).parent == Path("/scratch")
    for wrong in (
        "s3://images",
        "s3://images/",
        "s3:///a",
        "s3://images/a?b=c",
        "s3://images/a/../b",
        "s3://I/a",
        "/a",
    ):
        with pytest.raises(ConfigurationError, match="give s3://BUCKET/FOLDER"):
            Place.of(wrong)
    with pytest.raises(ConfigurationError, match="takes no credentials") as raised:
        Place.of("s3://key:secret@images/a")
    assert "secret@" not in str(raised.value)
