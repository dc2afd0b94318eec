"""A retry fetches only images that failed, and merges those that arrive into their shards."""

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import LOOPBACK
from in_process import retry, run, threads_with
from jobs import POLICY, coyo_job, faulty_urls, files_of, path_of, read_ledger, read_rows, requests_since
from nameserver import Answer, NameServer
from origin import Web
from runs import PATIENCE_S, read_lines

from datafetch import FailureKind, Job, RetryFilter, read_status
from datafetch.cli.app import main
from datafetch.cli.render import show_report, show_status
from datafetch.datasets import find_dataset
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.engine.job import hash_of, read_job
from datafetch.engine.permissions import Permitted
from datafetch.engine.retry_source import FailedSamples
from datafetch.engine.retry_state import begin_retry
from datafetch.errors import ConfigurationError, ResourceError
from datafetch.fetch import FetchPolicy, OptOut
from datafetch.model.ledger_line import LedgerLine, ShardCounts
from datafetch.model.outcome import Failure, Permission
from datafetch.model.report import FailureCounts
from datafetch.model.sample import Shard
from datafetch.output.commit import Commit
from datafetch.output.merge import Output
from datafetch.store.layout import OutputLayout
from datafetch.store.shard_summary import read_shard_summary
from datafetch.store.spool import Spool
from datafetch.store.spool_format import ImageResult
from datafetch.store.spool_writer import write_spool

Pictures = tuple[Path, list[str]]
IMAGES = 60
# Positions of images that fail at first: a flaky one succeeds later, a missing one never. The third shard has none.
FAULTS = {2: "flaky", 7: "missing", 11: "flaky", 19: "missing", 23: "flaky", 24: "flaky", 39: "flaky"}
FLAKY = [position for position, fault in FAULTS.items() if fault == "flaky"]


@pytest.fixture
def source(tmp_path: Path, own_origin: Origin, small_pictures: Pictures) -> CoyoSource:
    """A manifest of three files, some of whose images fail at first."""
    names = [name for name in small_pictures[1] if name.endswith(".jpg")]
    urls = faulty_urls(own_origin, names, FAULTS, IMAGES, tmp_path.name)
    return write_coyo_source(tmp_path / "source", urls, files=3)


@pytest.fixture(params=[None, 2], ids=["as cut", "resharded"])
def job(tmp_path: Path, source: CoyoSource, request: pytest.FixtureRequest) -> Job:
    """A job that fetches this manifest; its shards stay as the manifest cut them, or are resharded for two ranks."""
    return coyo_job(source, tmp_path / "data" / "out", world_size=request.param)


def test_a_retry_fetches_exactly_the_failures_that_may_pass(
    tmp_path: Path, job: Job, source: CoyoSource, own_origin: Origin
) -> None:
    """Once the server has recovered, the output of a retry equals that of a run without these failures."""
    first = run(job)
    assert first.totals.outcomes == {"ok": IMAGES - len(FAULTS), "http_status": len(FAULTS)}
    before = own_origin.requests()
    # A retry needs neither the manifest nor the id list.
    for path in source.folder.iterdir():
        path.rename(path.with_suffix(".away"))
    report = retry(job.out)
    urls = list(source.urls.values())
    assert requests_since(own_origin, before) == {path_of(urls[position]): 1 for position in FLAKY}
    assert report.totals.outcomes == {"ok": IMAGES - 2, "http_status": 2}
    assert (report.retried, report.requests, report.reused) == (len(FLAKY), len(FLAKY), first.totals.ok)
    for path in source.folder.iterdir():
        path.rename(path.with_suffix(".parquet"))
    healed = replace(job, out=str(tmp_path / "healed"))
    run(healed)
    assert files_of(job) == files_of(healed)
    assert len(read_rows(job)) == IMAGES - 2
    attempts = {line["url"]: line["attempts"] for line in read_ledger(job)}
    assert attempts == {url: 2 if position in FLAKY else 1 for position, url in enumerate(urls)}
    assert {line["url"]: line["outcome"] for line in read_ledger(job)} == {
        line["url"]: line["outcome"] for line in read_ledger(healed)
    }


def test_a_shard_without_retried_images_is_not_written_again(tmp_path: Path, source: CoyoSource) -> None:
    """Neither its rows file nor its ledger is replaced."""
    job = coyo_job(source, tmp_path / "out")
    run(job)
    files = [Path(job.out) / "part-00002.pkl", OutputLayout(Path(job.out)).ledger("part-00002")]
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in files]
    retry(job.out)
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in files] == before


def test_a_second_retry_has_nothing_to_do(job: Job, own_origin: Origin) -> None:
    """Failures that can't pass are not requested again, and the files stay unchanged."""
    run(job)
    retry(job.out)
    before, requests = files_of(job), own_origin.requests()
    report = retry(job.out)
    assert (report.retried, report.requests) == (0, 0)
    assert own_origin.requests() == requests
    assert files_of(job) == before
    assert run(job).requests == 0
    assert files_of(job) == before


def test_all_failures_or_some_kinds_can_be_retried(job: Job, source: CoyoSource, own_origin: Origin) -> None:
    """``--all`` also requests failures that can't pass, and ``--kinds`` those of its kinds. Attempts add up."""
    run(job)
    urls = list(source.urls.values())
    missing = [path_of(urls[position]) for position, fault in FAULTS.items() if fault == "missing"]
    before = own_origin.requests()
    assert retry(job.out, RetryFilter(frozenset({FailureKind.TIMEOUT}))).retried == 0
    assert retry(job.out, RetryFilter.all()).retried == len(FAULTS)
    assert requests_since(own_origin, before) == {path_of(urls[position]): 1 for position in FAULTS}
    before = own_origin.requests()
    assert retry(job.out, RetryFilter(frozenset({FailureKind.HTTP_STATUS}))).retried == len(missing)
    assert requests_since(own_origin, before) == dict.fromkeys(missing, 1)
    attempts = {path_of(line["url"]): line["attempts"] for line in read_ledger(job)}
    assert {attempts[path] for path in missing} == {3}
    assert {read_shard_summary(path).retry for path in OutputLayout(Path(job.out)).ledgers.iterdir()} == {0, 1, 2}


@pytest.mark.usefixtures("_commands_in_threads")
def test_images_of_a_host_that_was_down_are_retried_with_the_kind_of_its_failures(
    tmp_path: Path, small_pictures: Pictures, capfd: pytest.CaptureFixture[str]
) -> None:
    """Images that were not tried go along with ``--kinds connect``, and the summary says how many arrived."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(small_pictures[0]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler, bind_and_activate=False)
    server.server_bind()  # without listening, it refuses connections
    host = f"127.0.0.1:{server.server_port}"
    jpeg = next(name for name in small_pictures[1] if name.endswith(".jpg"))
    source = write_coyo_source(tmp_path / "source", [f"http://{host}/{jpeg}?{number}" for number in range(24)])
    out = tmp_path / "出力"
    policy = replace(POLICY, per_host=1)
    first = run(coyo_job(source, out, fetch=policy))
    tried = first.totals.outcomes["connect"]
    assert first.totals.outcomes == {"connect": tried, "host_down": 24 - tried}
    assert main(["retry", str(out), "--kinds", "tls"]) == 0
    assert "retried" not in capfd.readouterr().out
    with server:
        server.server_activate()
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        assert main(["retry", str(out), "--kinds", "connect"]) == 0
        server.shutdown()
        serving.join()
    assert "\nretried 24, 24 arrived\n" in capfd.readouterr().out
    report = orjson.loads(OutputLayout(out).report.read_bytes())
    assert (report["retried"], report["retried_arrived"], report["images"]["ok"]) == (24, 24, 24)


def test_a_retry_needs_a_complete_run(job: Job, tmp_path: Path) -> None:
    """Without a run, or after an incomplete one, the error is one line, and nothing is written."""
    with pytest.raises(ConfigurationError, match="there is no run in"):
        retry(str(tmp_path / "nowhere"))
    assert not list(tmp_path.glob("nowhere*"))
    run(job)
    OutputLayout(Path(job.out)).report.unlink()
    with pytest.raises(ConfigurationError, match="not complete"):
        retry(job.out)


def test_an_interrupted_retry_is_completed_first(job: Job) -> None:
    """A retry of other failures is refused until then, and a retry without options completes it."""
    run(job)
    layout = OutputLayout(Path(job.out))
    layout.retry.write_text('{"number": 1, "kinds": ["timeout"], "scratch": null, "token": "abc"}')
    for other in ({FailureKind.TLS}, {FailureKind.TLS, FailureKind.TIMEOUT}):
        with pytest.raises(ConfigurationError, match=r"\(timeout\) was interrupted; .* first: datafetch retry .*/out$"):
            retry(job.out, RetryFilter(frozenset(other)))
    with pytest.raises(ConfigurationError, match=r"\(timeout\) was interrupted"):
        retry(job.out, RetryFilter(also=frozenset({FailureKind.TLS})))
    assert retry(job.out).retried == 0
    assert not layout.retry.exists()
    assert retry(job.out).retried == len(FLAKY)


def test_an_interrupted_retry_resumes_with_its_scratch(tmp_path: Path, job: Job) -> None:
    """The images it has are in its scratch folder, so a retry with another scratch folder is refused."""
    run(job)
    layout = OutputLayout(Path(job.out))
    retry_filter = RetryFilter(frozenset({FailureKind.TIMEOUT}))  # no image failed so, and nothing is written
    layout.retry.write_text(f'{{"number": 1, "kinds": ["timeout"], "scratch": "{tmp_path}/a", "token": "abc"}}')
    spool = OutputLayout(layout.out, tmp_path / "a", f"{hash_of(read_job(layout)[1])}-retry-1-abc").spool("part-00000")
    write_spool(spool, [])
    with pytest.raises(ConfigurationError, match=rf"give --scratch {tmp_path}/a again, or delete"):
        retry(job.out, retry_filter, change=lambda before: replace(before, scratch=str(tmp_path / "b")))
    assert spool.exists()
    retry(job.out, retry_filter)
    assert not layout.retry.exists()
    assert not spool.exists()


@pytest.mark.rotating
def test_a_retry_uses_the_options_of_the_run(job: Job) -> None:
    """Networks that the run allowed stay allowed, and an option that is given holds for this retry only."""
    run(job)
    blocked = retry(job.out, change=lambda before: replace(before, fetch=replace(before.fetch, allow_net=())))
    assert blocked.totals.outcomes["blocked_address"] == len(FLAKY)
    assert retry(job.out, RetryFilter.all()).totals.ok == IMAGES - 2


def resharded(job: Job) -> Job:
    """Return the same job with resharded output."""
    return replace(job, world_size=2)


@pytest.fixture
def cut_job(tmp_path: Path, source: CoyoSource) -> Job:
    """A job whose shards stay as the manifest cut them."""
    return coyo_job(source, tmp_path / "data" / "out")


def test_a_resharded_output_stays_resharded(cut_job: Job) -> None:
    """A retry without options for ranks adds its rows to the resharded output."""
    run(resharded(cut_job))
    retry(cut_job.out, change=lambda before: replace(before, world_size=None))
    assert len(read_rows(cut_job)) == IMAGES - 2
    assert not OutputLayout(Path(cut_job.out)).added.exists()


def test_a_resharded_output_without_new_rows_is_not_written_again(cut_job: Job) -> None:
    """If every image fails again, hundreds of gigabytes stay as they are."""
    run(resharded(cut_job))
    before = {path.name: path.stat().st_ino for path in Path(cut_job.out).iterdir()}
    report = retry(cut_job.out, change=lambda before: replace(before, fetch=replace(before.fetch, allow_net=())))
    assert report.retried == len(FLAKY)
    assert {path.name: path.stat().st_ino for path in Path(cut_job.out).iterdir()} == before


def test_third_party_files_stop_a_retry(job: Job) -> None:
    """A file that datafetch did not write stops a retry before it begins, and is kept."""
    run(job)
    notes = Path(job.out) / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(ConfigurationError, match=r"notes\.txt was not written by this job"):
        retry(job.out)
    assert notes.read_text() == "mine"


def test_a_spool_of_an_earlier_retry_is_deleted(job: Job) -> None:
    """A spool that a killed retry left is not read, since the shards have its images by now."""
    run(job)
    retry(job.out, change=lambda before: replace(before, fetch=replace(before.fetch, allow_net=())))
    layout = OutputLayout(Path(job.out), job_hash=f"{hash_of(read_job(OutputLayout(Path(job.out)))[1])}-retry-1-abc")
    write_spool(layout.spool("part-00000"), [])
    assert retry(job.out, RetryFilter.all()).totals.ok == IMAGES - 2
    assert not layout.all_spools.exists()


def test_a_damaged_reshard_record_requires_a_fresh_start(cut_job: Job, own_origin: Origin) -> None:
    """Runs and retries are refused until ``--fresh`` starts over, as the message says."""
    run(resharded(cut_job))
    OutputLayout(Path(cut_job.out)).reshard_record.write_text("garbage")
    before = own_origin.requests()
    with pytest.raises(ConfigurationError, match="is damaged; put back what was there, or start over with --fresh"):
        retry(cut_job.out)
    with pytest.raises(ConfigurationError, match="is damaged; put back what was there, or start over with --fresh"):
        run(resharded(cut_job))
    assert own_origin.requests() == before
    assert run(replace(resharded(cut_job), fresh=True)).totals.ok == IMAGES - 2


_NO_PERMISSIONS = (
    '{"insecure": true, "opt_out": "obey", "allow_net": ["everything"], "max_body_bytes": 9, "max_pixels": 9, '
    '"max_sample_bytes": 9}'
)


_DAMAGED_RETRY_STATES = (
    *("", "{}", "[1]", "null", '{"number": "x", "kinds": 3}'),
    '{"number": 1, "kinds": ["rain"], "scratch": null, "token": "abc"}',
    '{"number": 1, "kinds": null, "scratch": null, "token": "../abc"}',
    '{"number": 1, "kinds": null, "scratch": "a\\u0000", "token": "abc"}',
    '{"number": 1, "kinds": null, "scratch": null, "token": "abc", "permitted": {"insecure": true}}',
    '{"number": 1, "kinds": null, "scratch": null, "token": "abc", "permitted": ' + _NO_PERMISSIONS + "}",
)


def test_a_damaged_retry_state_is_reported(cut_job: Job) -> None:
    """Nothing is guessed about the retry that was interrupted."""
    run(cut_job)
    path = OutputLayout(Path(cut_job.out)).retry
    for content in _DAMAGED_RETRY_STATES:
        path.write_text(content)
        with pytest.raises(ConfigurationError, match=r"retry\.json is damaged"):
            retry(cut_job.out)
        assert path.read_text() == content


@pytest.mark.rotating
def test_a_retry_is_refused_while_a_shard_is_missing(cut_job: Job, own_origin: Origin) -> None:
    """Nothing is requested; once a run has made the shard again, the retry works."""
    run(cut_job)
    (Path(cut_job.out) / "part-00000.pkl").unlink()
    before = own_origin.requests()
    with pytest.raises(ConfigurationError, match="is not complete; run the command that started it again"):
        retry(cut_job.out)
    assert own_origin.requests() == before
    run(cut_job)
    assert retry(cut_job.out).totals.ok == IMAGES - 2


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-20])])
def test_missing_failed_samples_are_reported(job: Job, damage: Callable[[Path], object]) -> None:
    """Samples that can't be retried are not skipped silently."""
    run(job)
    before = files_of(job)
    damage(OutputLayout(Path(job.out)).kept_for_retry("part-00000"))
    with pytest.raises(ConfigurationError, match="does not hold what failed in that shard"):
        retry(job.out)
    assert files_of(job) == before


@pytest.mark.rotating
@pytest.mark.parametrize("name", ["ledger/part-00001.parquet", "failed/part-00001.spool"])
def test_a_damaged_file_costs_only_its_shard(cut_job: Job, own_origin: Origin, name: str) -> None:
    """The error names the file to delete; the next run makes that shard again and keeps everything else."""
    run(cut_job)
    before = files_of(cut_job)
    layout = OutputLayout(Path(cut_job.out))
    (layout.state_folder / name).write_bytes(b"damaged")
    with pytest.raises(ConfigurationError, match=r"delete (it|\S*part-00001\.parquet) and run 'datafetch prepare'"):
        retry(cut_job.out, RetryFilter.all())
    layout.ledger("part-00001").unlink()
    with pytest.raises(ConfigurationError, match="is not complete; run the command that started it again"):
        retry(cut_job.out)
    requests_before = own_origin.requests()
    run(cut_job)
    assert {name: content for name, content in before.items() if "part-00001" not in name}.items() <= files_of(
        cut_job
    ).items()
    assert 0 < len(requests_since(own_origin, requests_before)) < IMAGES
    # The first retry may have ended other shards before it found the damage; this one completes it.
    assert retry(cut_job.out, RetryFilter.all()).totals.ok == IMAGES - 2
    assert retry(cut_job.out, RetryFilter.all()).retried == 2


def test_a_missing_ledger_of_a_resharded_output_is_reported(cut_job: Job) -> None:
    """Resharding again needs the ledgers of all samples."""
    run(resharded(cut_job))
    OutputLayout(Path(cut_job.out)).ledger("part-00001").unlink()
    with pytest.raises(ConfigurationError, match=r"part-00001\.parquet is missing.*can't be made again one by one"):
        retry(cut_job.out)


def test_a_retry_can_be_started_from_inside_the_output(cut_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is resolved before resharding replaces the folder; the state folder's path works, too."""
    run(resharded(cut_job))
    monkeypatch.chdir(cut_job.out)
    assert retry("../out").totals.ok == IMAGES - 2
    monkeypatch.chdir("/")
    assert len(read_rows(cut_job)) == IMAGES - 2
    assert retry(f"{cut_job.out}.datafetch").retried == 0
    with pytest.raises(ConfigurationError, match="there is no run in /"):
        retry(".")


def test_a_file_added_to_the_output_during_a_run_is_kept(cut_job: Job) -> None:
    """Even if it looks like a shard, it stops the run after the folders were swapped, and is not deleted."""
    run(cut_job)
    layout = OutputLayout(Path(cut_job.out))

    async def put(_: object) -> None:
        await asyncio.to_thread((layout.out / "mine.pkl").write_text, "mine")  # after the folder was checked
        await asyncio.Event().wait()

    with pytest.raises(ConfigurationError, match=r"mine\.pkl is not a file of the shards that were replaced"):
        run(resharded(cut_job), [put])
    mine = layout.replaced / "mine.pkl"
    assert mine.read_text() == "mine"
    with pytest.raises(ConfigurationError, match=r"mine\.pkl"):
        run(replace(resharded(cut_job), fresh=True))
    assert mine.exists()
    mine.unlink()
    assert run(resharded(cut_job)).shards == 2


def test_a_refused_fresh_start_deletes_nothing(cut_job: Job) -> None:
    """If a third-party file stops it, none of datafetch's own files is deleted."""
    run(cut_job)
    (Path(cut_job.out) / "notes.txt").write_text("mine")
    before = files_of(cut_job)
    with pytest.raises(ConfigurationError, match=r"notes\.txt was not written by this job"):
        run(replace(cut_job, fresh=True))
    assert files_of(cut_job) == before
    assert OutputLayout(Path(cut_job.out)).job.exists()


_IMPOSSIBLE_RESHARD_RECORDS: tuple[dict[str, object], ...] = (
    {"shuffle": "x"},
    {"shuffle": -1},
    {"files": {}},
    {"files": {"part-00000": [1]}},
    {"files": {"part-00000": [1, -1]}},
    {"files": {"../part-00000": [1, 1]}},
    {"samples": {"../x": "0"}},
    {"samples": {"x": 0}},
    {"world_size": 0},
    {"batch": True},
)


@pytest.mark.rotating
def test_an_impossible_reshard_record_is_damaged(cut_job: Job) -> None:
    """Whatever the file contains, the error is one line."""
    run(resharded(cut_job))
    path = OutputLayout(Path(cut_job.out)).reshard_record
    record = path.read_bytes()
    for change in _IMPOSSIBLE_RESHARD_RECORDS:
        path.write_bytes(orjson.dumps(orjson.loads(record) | change))
        with pytest.raises(ConfigurationError, match="is damaged; put back what was there, or start over with --fresh"):
            run(replace(cut_job, world_size=4))
    path.write_bytes(record)
    assert run(replace(cut_job, world_size=4)).shards == 4


def test_an_image_that_arrives_damaged_twice_is_not_requested_again(
    tmp_path: Path, own_origin: Origin, small_pictures: Pictures
) -> None:
    """The first transfer may have failed; if a retry gets the same bytes, the file on the server is damaged."""
    jpegs = [name for name in small_pictures[1] if name.endswith(".jpg")]
    urls = [
        own_origin.url("truncated" if number < 3 else "well", jpegs[number], f"{tmp_path.name}-{number}")
        for number in range(6)
    ]
    source = write_coyo_source(tmp_path / "source", urls)
    job = coyo_job(source, tmp_path / "out")
    assert run(job).totals.outcomes == {"ok": 3, "truncated": 3}
    report = retry(job.out)
    assert (report.retried, report.totals.outcomes) == (3, {"ok": 3, "corrupt": 3})
    assert {line["outcome"] for line in read_ledger(job)} == {"ok", "corrupt"}
    assert retry(job.out).retried == 0
    assert retry(job.out, RetryFilter(frozenset({FailureKind.CORRUPT}))).retried == 3


@pytest.fixture
def served(own_origin: Origin, small_pictures: Pictures) -> tuple[Origin, list[str]]:
    """A server, and the names of its pictures."""
    return own_origin, small_pictures[1]


@pytest.mark.parametrize(
    ("kind", "change", "permission"),
    [
        (FailureKind.OPTED_OUT, {"opt_out": OptOut.IGNORE}, Permission.OPT_OUT),
        (FailureKind.BLOCKED_ADDRESS, {"allow_net": LOOPBACK}, Permission.ALLOW_NET),
        (FailureKind.TOO_LARGE, {"max_body_bytes": 1 << 30}, Permission.ALLOW_NET),
    ],
)
def test_refused_images_can_be_permitted_later(
    tmp_path: Path,
    served: tuple[Origin, list[str]],
    kind: FailureKind,
    change: dict[str, Any],
    permission: Permission,
) -> None:
    """A retry with the permission fetches them, and the ledger records for each image what permissions it needed."""
    own_origin, names = served
    behaviour = "noai" if kind is FailureKind.OPTED_OUT else "well"
    urls = [
        own_origin.url("missing" if number == 3 else behaviour, names[number], f"{tmp_path.name}-{number}")
        for number in range(4)
    ]
    source = write_coyo_source(tmp_path / "source", urls)
    strict = replace(POLICY, max_body_bytes=10) if kind is FailureKind.TOO_LARGE else POLICY
    strict = replace(strict, allow_net=()) if kind is FailureKind.BLOCKED_ADDRESS else strict
    job = coyo_job(source, tmp_path / "out", fetch=strict)
    assert run(job).totals.ok == 0
    assert {line["outcome"] for line in read_ledger(job)} <= {kind, "http_status"}
    report = retry(
        job.out, RetryFilter(frozenset({kind})), change=lambda job: replace(job, fetch=replace(job.fetch, **change))
    )
    assert report.totals.ok == 3
    for line in read_ledger(job):
        assert line["outcome"] != "ok" or line["permitted"] == sorted({Permission.ALLOW_NET, permission})


def test_a_retry_with_insecure_fetches_images_behind_bad_certificates(
    tmp_path: Path, small_pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``retry OUT --kinds tls --insecure`` fetches them, and requests no other image again."""
    (tmp_path / "certificates").mkdir()
    with Web(small_pictures[0], tmp_path / "certificates") as web:
        monkeypatch.setenv("SSL_CERT_FILE", str(web.authority))
        listeners = ["https", "http", "expired", "wrong_host", "self_signed", "incomplete_chain"]
        urls = [
            web.origin.url("well", name, number, listener=listener)
            for number, (name, listener) in enumerate(zip(small_pictures[1], listeners, strict=False))
        ]
        source = write_coyo_source(tmp_path / "source", urls)
        job = coyo_job(source, tmp_path / "out")
        assert run(job).totals.outcomes == {"ok": 2, "tls": 4}
        before = web.origin.requests()
        lax = replace(POLICY, insecure=True)
        resumed = run(replace(job, fetch=lax))  # nothing is left to do
        assert (resumed.requests, resumed.permittable) == (0, {"tls": 4})
        assert retry(job.out, RetryFilter(frozenset({FailureKind.TLS}))).totals.ok == len(urls)
        assert len(requests_since(web.origin, before)) == 4
    permitted = [line["permitted"] for line in read_ledger(job)]
    assert permitted == [["allow-net"]] * 2 + [["allow-net", "insecure"]] * 4


@pytest.fixture
def blocked_job(cut_job: Job) -> Job:
    """A job that may not connect to the server."""
    return replace(cut_job, fetch=replace(POLICY, allow_net=()))


BLOCKED = RetryFilter(frozenset({FailureKind.BLOCKED_ADDRESS}))


def allow_loopback(job: Job) -> Job:
    """Return the same job with permission to connect to the server."""
    return replace(job, fetch=replace(job.fetch, allow_net=LOOPBACK))


@pytest.mark.rotating
def test_permissions_of_a_retry_hold_for_later_retries(blocked_job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """An image that failed after it was permitted is not blocked in the next retry; a message lists permissions."""
    caplog.set_level("INFO", "datafetch")
    layout = OutputLayout(Path(blocked_job.out))
    assert run(blocked_job).totals.outcomes == {"blocked_address": IMAGES}
    identity = read_job(layout)[1]
    assert retry(blocked_job.out, BLOCKED, change=allow_loopback).totals.ok == IMAGES - len(FAULTS)
    assert retry(blocked_job.out).totals.outcomes == {"ok": IMAGES - 2, "http_status": 2}
    assert read_job(layout)[1] == identity
    run(blocked_job)
    assert caplog.messages[-1] == (
        "given to an earlier run and not to this one, so no longer permitted, also for retries: "
        f"--allow-net {LOOPBACK[0]}"
    )
    # The second retry was given nothing new.
    assert caplog.messages.count(f"permitted, and remembered for later retries: --allow-net {LOOPBACK[0]}") == 1


def test_allowed_networks_add_up_and_other_permissions_are_replaced() -> None:
    """Networks of all retries stay allowed; for opt-outs and limits, the last given value holds."""
    job = Job("coyo", "source", "out", fetch=replace(POLICY, insecure=True, allow_net=("10.0.0.0/8",)))
    policy = FetchPolicy(allow_net=("10.0.0.0/8", "127.0.0.0/8"), opt_out=OptOut.IGNORE, max_body_bytes=1 << 30)
    later = Permitted.of(replace(job, fetch=policy, max_sample_bytes=5))
    both = later.added_to(Permitted.of(job))
    assert both.apply_to(job).fetch == replace(
        job.fetch, allow_net=policy.allow_net, opt_out=OptOut.IGNORE, max_body_bytes=1 << 30
    )
    assert both.apply_to(job).max_sample_bytes == 5
    assert both.options() == (
        *("--insecure", "--opt-out ignore", "--allow-net 10.0.0.0/8", "--allow-net 127.0.0.0/8"),
        "--max-body 1073741824",
    )


@pytest.mark.rotating
def test_an_interrupted_retry_is_completed_with_its_own_options(
    blocked_job: Job, capfd: pytest.CaptureFixture[str]
) -> None:
    """A retry without options uses its kinds and permissions, whatever ran in between, and counts only its own work."""
    layout = OutputLayout(Path(blocked_job.out))

    def stored() -> int:
        return sum(len(read_lines(path)) for path in layout.all_spools.glob("**/*.spool"))

    async def die(_: Commit) -> ShardCounts:
        # If images were still in flight, the flaky ones among them would be requested twice, and arrive.
        async with asyncio.timeout(PATIENCE_S):
            while await asyncio.to_thread(stored) < IMAGES:  # noqa: ASYNC110 - it depends on other tasks' files
                await asyncio.sleep(0.01)
        raise ResourceError("the disk is full")

    run(blocked_job)
    with pytest.raises(ResourceError):
        retry(blocked_job.out, BLOCKED, change=allow_loopback, backends=threads_with(die))
    assert read_status(blocked_job.out).summary()["retry"] is True
    assert read_status(blocked_job.out).state == "interrupted"
    show_status(read_status(blocked_job.out), as_json=False)
    printed = " ".join(capfd.readouterr().out.split())
    assert "interrupted in a retry; 'datafetch retry' completes it" in printed
    assert run(blocked_job).has_open_retry
    report = retry(blocked_job.out)
    assert report.totals.outcomes == {"ok": IMAGES - len(FAULTS), "http_status": len(FAULTS)}
    assert report.reused + report.requests >= report.totals.ok
    assert report.totals.ok - report.reused <= report.requests
    assert not report.has_open_retry
    assert "retry" not in read_status(blocked_job.out).summary()
    assert retry(blocked_job.out).totals.ok == IMAGES - 2


@pytest.mark.usefixtures("_commands_in_threads")
def test_a_run_names_the_retry_that_fetches_what_it_now_permits(
    tmp_path: Path, origin: Origin, small_pictures: Pictures, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run leaves failed images to a retry; the command that it prints requests those that are permitted now."""
    urls = [origin.url("well", name, tmp_path.name) for name in small_pictures[1][:5]]
    source = write_coyo_source(tmp_path / "source", [*urls, "http://10.0.0.1/blocked"])
    command = ["prepare", "coyo", "--source", str(source.folder), "--root", str(tmp_path), "--no-reshard"]
    command += ["--ids", str(source.ids), "--processes", "1"]
    assert main([*command, "--max-pixels", "20"]) == 0
    assert "had failed before" not in capfd.readouterr().out
    assert main([*command, "--allow-net", "127.0.0.0/8", "--insecure"]) == 0
    printed = capfd.readouterr().out
    (line,) = (one for one in printed.splitlines() if "failed as blocked_address" in one or "had failed before" in one)
    out = tmp_path / "coyo-700m" / "pkl03-split"
    retry_words = f"datafetch retry {out} --kinds blocked_address --allow-net 127.0.0.0/8"
    assert line == f"6 images had failed before --allow-net 127.0.0.0/8 was given; to request them again: {retry_words}"
    assert main(retry_words.split()[1:]) == 0
    assert "retried 6, 5 arrived" in capfd.readouterr().out
    assert main([*command, "--allow-net", "127.0.0.0/8", "--max-body", "64MiB"]) == 0
    assert "had failed before" not in capfd.readouterr().out


@pytest.mark.rotating
@pytest.mark.usefixtures("_commands_in_threads")
def test_a_summary_names_a_retry_where_it_requests_something(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    """It says how many images and why; a retry that requests nothing says what it leaves alone, and how to get that."""
    for report in (run(job), retry(job.out, RetryFilter(frozenset({FailureKind.TIMEOUT})))):
        assert report.failures == FailureCounts({"HTTP 404": 2, "HTTP 500": len(FLAKY)}, {"HTTP 500": len(FLAKY)})
        show_report(report, as_json=False)
        assert (
            f"to request {len(FLAKY)} failed images again, of which some may arrive later "
            f"(HTTP 500: {len(FLAKY)}): datafetch retry {job.out}"
        ) in capfd.readouterr().out.splitlines()
    assert main(["retry", job.out]) == 0
    assert "may arrive later" not in capfd.readouterr().out
    assert main(["retry", job.out]) == 0
    again = f"datafetch retry {job.out} --kinds http_status"
    assert (
        "nothing was requested, because this retry leaves alone what failed (HTTP 404: 2); "
        f"to request it all the same: {again}"
    ) in capfd.readouterr().out.splitlines()
    assert main(again.split()[1:]) == 0
    assert "retried 2, 0 arrived" in capfd.readouterr().out


@pytest.mark.usefixtures("_commands_in_threads")
def test_name_servers_given_later_take_along_the_names_that_were_not_found(
    tmp_path: Path, own_origin: Origin, small_pictures: Pictures, capfd: pytest.CaptureFixture[str]
) -> None:
    """A finished output's run names the retry, and so does the first one; a retry with another server requests them."""
    port = own_origin.url("well", "any", "any").split(":")[2].partition("/")[0]
    urls = [
        f"http://cats.example:{port}{path_of(own_origin.url('well', name, tmp_path.name))}"
        for name in small_pictures[1][:3]
    ]
    source = write_coyo_source(tmp_path / "source", urls)
    command = ["prepare", "coyo", "--source", str(source.folder), "--ids", str(source.ids), "--processes", "1"]
    command += ["--root", str(tmp_path), "--no-reshard", "--allow-net", "127.0.0.0/8", "--retries", "0"]
    out = tmp_path / "coyo-700m" / "pkl03-split"
    with NameServer() as ignorant, NameServer({"cats.example": Answer(("127.0.0.1",))}) as server:
        assert main([*command, "--nameserver", ignorant.address]) == 0
        again = f"datafetch retry {out} --kinds dns_not_found"
        assert f"to request them again after that: {again}" in capfd.readouterr().out.splitlines()
        assert main([*command, "--nameserver", server.address]) == 0
        assert (
            f"3 images had failed before --nameserver {server.address} was given; "
            f"to request them again: {again} --nameserver {server.address}"
        ) in capfd.readouterr().out.splitlines()
        assert main(["retry", str(out), "--nameserver", server.address]) == 0
        assert "retried 3, 3 arrived" in capfd.readouterr().out


@pytest.mark.rotating
def test_images_that_need_a_permission_are_counted(blocked_job: Job) -> None:
    """Runs and retries count them by kind; kinds that a permission selects are retried with those that may pass."""
    assert run(blocked_job).permittable == {"blocked_address": IMAGES}
    assert retry(blocked_job.out).permittable == {"blocked_address": IMAGES}
    report = retry(blocked_job.out, RetryFilter(also=BLOCKED.kinds or frozenset()), change=allow_loopback)
    assert (report.retried, report.permittable) == (IMAGES, {})
    assert retry(blocked_job.out, RetryFilter(also=frozenset({FailureKind.TLS}))).retried == len(FLAKY)


@dataclass(frozen=True)
class InterruptedRetry:
    """A retry that was interrupted after its first image."""

    shard: Shard
    spool: Path
    source: Callable[[], FailedSamples]
    result: ImageResult


def interrupt_retry(job: Job) -> InterruptedRetry:
    """Begin a retry, and record a 404 for the first image of its first shard."""
    identity = read_job(OutputLayout(Path(job.out)))[1]
    layout = OutputLayout(Path(job.out), job_hash=hash_of(identity))
    shards = list(identity["shards"])
    retry_state = begin_retry(layout, RetryFilter(), shards, Permitted.of(job))
    output = Output(find_dataset("coyo"), layout.for_retry(retry_state.number, retry_state.token), retry=retry_state)

    def source() -> FailedSamples:
        return FailedSamples(output, retry_state, shards)

    shard = source().shards()[0]
    sample = next(iter(source().samples(shard)))
    failure = Failure(FailureKind.HTTP_STATUS, "HTTP 404", 404, 1, sample.urls[0])
    result = ImageResult(LedgerLine.of(sample, 0, failure, failure), b"")
    path = output.layout.spool(shard.name)
    asyncio.run(_append(path, result))
    return InterruptedRetry(shard, path, source, result)


async def _append(path: Path, result: ImageResult) -> None:
    spool = await Spool.open(path)
    await spool.append(result)
    await spool.close()


def test_a_clock_that_is_set_back_does_not_restart_a_retry(cut_job: Job, own_origin: Origin) -> None:
    """Images that an interrupted retry has are kept, although its spools look older than the ledgers."""
    run(cut_job)
    interrupted = interrupt_retry(cut_job)
    for ledger in OutputLayout(Path(cut_job.out)).ledgers.iterdir():
        os.utime(ledger, ns=(2**62, 2**62))
    os.utime(interrupted.spool, (0, 0))
    before = own_origin.requests()
    assert retry(cut_job.out).totals.ok == IMAGES - 2 - 1
    requests = requests_since(own_origin, before)
    assert len(requests) == len(FLAKY) - 1
    assert path_of(interrupted.result.line.url) not in requests


@pytest.mark.rotating
def test_a_spool_made_from_an_earlier_ledger_is_discarded(cut_job: Job) -> None:
    """Its samples belong to a ledger that was replaced, even if it looks newer than the new one."""
    run(cut_job)
    interrupted = interrupt_retry(cut_job)
    kept = interrupted.spool.read_bytes()
    layout = OutputLayout(Path(cut_job.out))
    for path in (layout.ledger(interrupted.shard.name), layout.out / f"{interrupted.shard.name}.pkl"):
        path.unlink()
    run(cut_job)
    interrupted.spool.parent.mkdir(parents=True, exist_ok=True)
    interrupted.spool.write_bytes(kept)
    os.utime(interrupted.spool, ns=(2**62, 2**62))
    interrupted.source().samples(interrupted.shard)
    assert interrupted.spool.read_bytes() != kept
    assert interrupted.result.line not in read_lines(interrupted.spool)
