"""Fetching the images of a sample: a lost document stops its other requests, and a run requests each URL once."""

import asyncio
import base64
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import LOOPBACK, until
from in_process import retry, run
from jobs import read_ledger, read_rows
from preloaded import PreloadedCommand
from runs import PATIENCE_S, Run, dying_at_a_step, run_undisturbed
from test_spool import make_outcome, make_result, make_sample

from datafetch import IdsIndex, Job, Report, read_status
from datafetch.cli.render import show_report
from datafetch.datasets import find_dataset
from datafetch.datasets.mmc4 import Mmc4CoreOptions
from datafetch.demo.origin import Origin
from datafetch.engine import dedup
from datafetch.engine.dedup import OwnUrl, ReadableSpools, UrlTable
from datafetch.engine.feed import Feed
from datafetch.engine.job import hash_of, read_job
from datafetch.errors import ConfigurationError, ManifestError
from datafetch.fetch import BodyBudget, Fetcher, FetchPolicy
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.manifest import Samples
from datafetch.model.outcome import Failure, FailureKind
from datafetch.model.sample import Sample, Shard
from datafetch.output.retry_filter import RetryFilter
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_reader import read_samples
from datafetch.store.shard_summary import read_shard_summary
from datafetch.store.spool import Spool
from datafetch.store.spool_format import ImageResult
from datafetch.store.spool_reader import SpoolReader

POLICY = FetchPolicy(allow_net=LOOPBACK, backoff_s=0.01, connections=32, per_host=32, retries=0)
Pictures = tuple[Path, list[str]]
_numbers = count()


class Web:
    """An origin that gives each test URLs of its own, and counts the requests for them."""

    def __init__(self, origin: Origin, names: Sequence[str]) -> None:
        self._origin = origin
        self._names = names
        self._run = next(_numbers)

    def url(self, number: int, behaviour: str = "well") -> str:
        """Return a new URL for a picture, served with the given behaviour."""
        name = self._names[number % len(self._names)]
        return self._origin.url(behaviour, name, f"sample-{self._run}-{number}")

    def request_counts(self, urls: Sequence[str]) -> list[int]:
        """Return the number of requests for each URL."""
        requests = self._origin.requests()
        return [requests.get("/" + url.split("/", 3)[3], 0) for url in urls]

    def abandoned_count(self, url: str) -> int:
        """Return how often the client closed the connection before the response was complete."""
        return self._origin.lost().get("/" + url.split("/", 3)[3], 0)


@pytest.fixture
def web(origin: Origin, small_pictures: Pictures) -> Web:
    """A web whose URLs only this test requests."""
    return Web(origin, small_pictures[1])


def write_documents(path: Path, documents: Sequence[Sequence[str]]) -> None:
    """Write a file of documents, each with these image URLs."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        for number, urls in enumerate(documents):
            info = [{"raw_url": url, "matched_text_index": 0} for url in urls]
            matrix = [[float(position)] for position in range(len(urls))]
            json.dump({"n": number, "image_info": info, "similarity_matrix": matrix, "text_list": ["text"]}, file)
            file.write("\n")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job that fetches documents, from a source that the test writes."""
    return Job(
        dataset="mmc4-core",
        source=str(tmp_path / "source"),
        out=str(tmp_path / "data" / "out"),
        fetch=POLICY,
        processes=1,
        world_size=None,
    )


def check_counts(report: Report, images: int) -> None:
    """Check that the report counts each image exactly once, as ok or failed and under one outcome."""
    totals = report.totals
    assert totals.ok + totals.failed == totals.images == images
    assert sum(totals.outcomes.values()) == images


def test_a_lost_document_stops_its_other_requests(job: Job, web: Web, tmp_path: Path) -> None:
    """A hanging request is cancelled long before its deadline, and its image has an outcome that says so."""
    gone, stuck, well = web.url(0, "missing"), web.url(1, "stuck"), web.url(2)
    write_documents(tmp_path / "source" / "docs_shard_0_v3.jsonl", [[stuck, gone], [well]])
    report = run(job)
    assert report.elapsed_s < POLICY.timeout_s / 2
    check_counts(report, 3)
    assert web.abandoned_count(stuck) == 1
    assert report.totals.outcomes == {"ok": 1, "http_status": 1, "not_requested": 1}
    assert report.totals.notes == {"not_asked": 1}
    first, second, _ = read_ledger(job)
    assert (first["outcome"], first["status"], first["attempts"]) == ("not_requested", None, 0)
    assert (first["detail"], first["is_skipped"]) == ("its document could no longer become a row", True)
    assert (second["outcome"], second["status"], second["attempts"]) == ("http_status", 404, 1)
    assert not second["is_skipped"]
    hosts = read_status(job.out).hosts
    assert [host.by_kind for host in hosts] == [{"http_status": 1}]
    assert [row["n"] for row in read_rows(job)] == [1]


def test_keep_at_least_continues_while_enough_images_can_arrive(job: Job, web: Web, tmp_path: Path) -> None:
    """With ``--keep-at-least``, a document is lost only once too few of its images can still arrive."""
    documents = [
        [web.url(0, "missing"), web.url(1, "slow"), web.url(2)],
        [web.url(3, "missing"), web.url(4, "missing"), web.url(5, "stuck")],
    ]
    write_documents(tmp_path / "source" / "docs_shard_0_v3.jsonl", documents)
    report = run(replace(job, options=Mmc4CoreOptions(keep_at_least=2)))
    check_counts(report, 6)
    assert report.totals.notes == {"not_asked": 1}
    (row,) = read_rows(job)
    assert [image["raw_url"] for image in row["image_info"]] == documents[0][1:]
    assert row["similarity_matrix"] == [[1.0], [2.0]]
    assert all(base64.b64decode(image["image_base64"]).startswith(b"\xff\xd8") for image in row["image_info"])


def test_cancelled_images_are_retried_with_the_image_that_lost_their_document(
    job: Job, web: Web, tmp_path: Path
) -> None:
    """A retry fetches all images of a lost document, or none if the document can't be saved."""
    documents = [[web.url(0, "stuck"), web.url(1, "flaky")], [web.url(2, "stuck"), web.url(3, "missing")]]
    write_documents(tmp_path / "source" / "docs_shard_0_v3.jsonl", documents)
    run(job)
    calm = tmp_path / "source" / "docs_shard_0_v3.jsonl"
    calm.unlink()
    assert [line["outcome"] for line in read_ledger(job)] == ["not_requested", "http_status"] * 2
    assert [line["status"] for line in read_ledger(job)] == [None, 500, None, 404]
    report = retry(job.out, change=lambda before: replace(before, fetch=replace(before.fetch, timeout_s=0.5)))
    assert report.retried == 2
    assert [line["outcome"] for line in read_ledger(job)][1:] == ["ok", "not_requested", "http_status"]
    assert read_ledger(job)[0]["outcome"] == "timeout"
    assert web.request_counts([url for urls in documents for url in urls])[1] == 2


@pytest.mark.parametrize("order", [("missing", "flaky"), ("flaky", "missing")])
def test_the_order_of_failures_makes_no_difference_to_a_retry(
    job: Job, web: Web, tmp_path: Path, order: tuple[str, str]
) -> None:
    """If enough images can still arrive, a retry requests the failures that may pass and the cancelled images."""
    urls = [web.url(0, order[0]), web.url(1, order[1]), web.url(2, "stuck"), web.url(3)]
    write_documents(tmp_path / "source" / "docs_shard_0_v3.jsonl", [urls])
    run(replace(job, options=Mmc4CoreOptions(keep_at_least=3)))
    before = web.request_counts(urls)
    assert read_ledger(job)[2]["outcome"] == "not_requested"
    report = retry(job.out, change=lambda old: replace(old, fetch=replace(old.fetch, timeout_s=0.3)))
    now = web.request_counts(urls)
    gone, flaky = order.index("missing"), order.index("flaky")
    assert now[gone] == before[gone]
    assert (now[flaky], now[2]) == (2, before[2] + 1)
    assert 0 <= report.reused <= report.totals.ok
    assert report.images_per_s >= 0


def test_the_summary_says_why_documents_were_lost(
    job: Job, web: Web, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the first failure of each, with how many rows there would be otherwise; a retry keeps it right."""
    gone, flaky = partial(web.url, behaviour="missing"), partial(web.url, behaviour="flaky")
    documents = [[web.url(0)], [gone(1), gone(2)], [web.url(3), flaky(4)], [web.url(5), web.url(6), gone(7)]]
    for shard, part in enumerate((documents[:2], documents[2:])):
        write_documents(tmp_path / "source" / f"docs_shard_{shard}_v3.jsonl", part)
    check_lost(job, run(job), 3, capfd)
    check_lost(job, retry(job.out), 2, capfd)
    for ledger in OutputLayout(Path(job.out)).ledgers.iterdir():
        make_as_of_earlier_version(ledger, dict.fromkeys(range(2), "http_status"))
    check_lost(job, run(job), 2, capfd)


def check_lost(job: Job, report: Report, lost: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Check what a report says of lost documents, which all had an HTTP status, against the ledgers."""
    arrived = []
    for ledger in OutputLayout(Path(job.out)).ledgers.iterdir():
        has_row = read_shard_summary(ledger).has_row
        samples = [lines for lines in read_samples(ledger) if not has_row[lines[0].sample]]
        arrived += [sum(line.outcome == "ok" for line in lines) for lines in samples]
    rows = {least: len(read_rows(job)) + sum(one >= least for one in arrived) for least in range(1, max(arrived) + 1)}
    assert report.summary()["documents"] == {
        "lost": len(arrived),
        "by_kind": {"http_status": lost},
        "keep_at_least": {str(least): count for least, count in rows.items()},
    }
    show_report(report, as_json=False)
    (line,) = (line for line in capfd.readouterr().out.splitlines() if line.startswith("documents"))
    counts = [f"{count} row{'s' * (count > 1)}" if least == 1 else f"{least}: {count}" for least, count in rows.items()]
    otherwise = f"; with --keep-at-least 1 there would be at least {', '.join(counts)}" if counts else ""
    assert line == f"documents lost: {lost} (http_status {lost}){otherwise}"


def make_as_of_earlier_version(ledger: Path, cause: dict[int, str]) -> None:
    """Give images that were not requested the outcome and status of another, as earlier versions did.

    Args:
        ledger: The ledger.
        cause: Sample → the kind of its failure.
    """
    table, metadata = pq.read_table(ledger), pq.read_metadata(ledger).metadata
    lines = table.to_pylist()
    for line in lines:
        if line["is_skipped"]:
            line |= {"outcome": cause[line["sample"]], "detail": "skipped: without image 1, the document …"}
            line["status"] = next(one["status"] for one in lines if one["sample"] == line["sample"] and one["status"])
    totals = json.loads(metadata[b"datafetch.totals"])
    totals["outcomes"] = dict(Counter(line["outcome"] for line in lines))
    totals.pop("lost", None)
    schema = table.schema.with_metadata({**metadata, b"datafetch.totals": json.dumps(totals).encode()})
    pq.write_table(pa.Table.from_pylist(lines, schema=schema), ledger)


def test_a_ledger_of_an_earlier_version_is_retried_rightly(job: Job, web: Web, tmp_path: Path) -> None:
    """Its images that were not requested have the kind of another; a retry gives them an outcome of their own."""
    documents = [[web.url(0, "stuck"), web.url(1, "flaky")], [web.url(2, "stuck"), web.url(3, "missing")]]
    write_documents(tmp_path / "source" / "docs_shard_0_v3.jsonl", documents)
    run(job)
    ledger = OutputLayout(Path(job.out)).ledger("docs_shard_00000_v3")
    make_as_of_earlier_version(ledger, dict.fromkeys(range(2), "http_status"))
    assert [line["outcome"] for line in read_ledger(job)] == ["http_status"] * 4
    assert [host.by_kind for host in read_status(job.out).hosts] == [{"http_status": 2}]
    report = retry(job.out, change=lambda before: replace(before, fetch=replace(before.fetch, timeout_s=0.5)))
    check_counts(report, 4)
    assert report.retried == 2
    assert [line["outcome"] for line in read_ledger(job)] == ["timeout", "ok", "not_requested", "http_status"]
    assert report.totals.outcomes == {"ok": 1, "timeout": 1, "http_status": 1, "not_requested": 1}


def test_a_spool_of_an_earlier_version_is_resumed(job: Job, web: Web, tmp_path: Path) -> None:
    """Its images that were not requested get their own outcome when the shard is committed."""
    urls = [web.url(0, "missing"), web.url(1)]
    write_documents(tmp_path / "source" / "docs_shard_0_v3.jsonl", [urls, [web.url(2)]])
    run(job)
    (document, *_) = SpoolReader(OutputLayout(Path(job.out)).kept_for_retry("docs_shard_00000_v3")).samples()
    again = replace(job, out=str(tmp_path / "again" / "out"))
    job_hash = hash_of(read_job(OutputLayout(Path(job.out)))[1])
    path = OutputLayout(Path(again.out), job_hash=job_hash).spool("docs_shard_00000_v3")
    failures = [
        Failure(FailureKind.HTTP_STATUS, "HTTP 404", 404, 1),
        Failure(FailureKind.HTTP_STATUS, "not asked for: the document was lost with image 0", 404),
    ]

    async def spool_document() -> None:
        begun = await Spool.open(path)
        results = [make_result(document.sample, number, failure) for number, failure in enumerate(failures)]
        await begun.append(*results, document.sample)
        await begun.close()

    asyncio.run(spool_document())
    report = run(again)
    check_counts(report, 3)
    assert report.totals.outcomes == {"ok": 1, "http_status": 1, "not_requested": 1}
    assert web.request_counts(urls)[1] <= 1


def test_a_resumed_run_skips_documents_that_are_already_lost(job: Job, web: Web, tmp_path: Path) -> None:
    """If an earlier run recorded the failure that loses a document, the resumed run requests no image of it."""
    urls = [web.url(0, "missing"), web.url(1), web.url(2)]
    write_documents(tmp_path / "source" / "docs_shard_0_v3.jsonl", [urls])
    run(job)
    layout = OutputLayout(Path(job.out))
    before = read_ledger(job)
    spool = next(iter(SpoolReader(layout.kept_for_retry("docs_shard_00000_v3")).samples()))
    lost = Failure(FailureKind.HTTP_STATUS, "404", 404, 1)
    again = replace(job, out=str(tmp_path / "again" / "out"))

    path = OutputLayout(Path(again.out), job_hash=hash_of(read_job(layout)[1])).spool("docs_shard_00000_v3")

    async def spool_failure() -> None:
        begun = await Spool.open(path)
        await begun.append(make_result(spool.sample, 0, lost))
        await begun.close()

    asyncio.run(spool_failure())
    requests_before = web.request_counts(urls)
    report = run(again)
    check_counts(report, 3)
    assert web.request_counts(urls) == requests_before
    assert [line["outcome"] for line in read_ledger(again)] == ["http_status", "not_requested", "not_requested"]
    assert before[0]["outcome"] == "http_status"


def test_a_document_over_max_sample_bytes_stops_its_other_requests(job: Job, web: Web, tmp_path: Path) -> None:
    """Once the images that arrived exceed the limit together, a hanging request is cancelled."""
    write_documents(tmp_path / "source" / "docs_shard_0_v3.jsonl", [[web.url(0, "stuck"), web.url(1)], [web.url(2)]])
    report = run(replace(job, max_sample_bytes=1))
    assert report.elapsed_s < POLICY.timeout_s / 2
    check_counts(report, 3)
    assert report.totals.outcomes == {"too_large": 2, "not_requested": 1}
    assert report.totals.notes == {"not_asked": 1}
    cancelled, crossing, alone = read_ledger(job)
    assert cancelled["outcome"] == "not_requested"
    assert all("--max-sample" in line["detail"] and line["attempts"] == 1 for line in (crossing, alone))
    assert read_rows(job) == []


def test_max_sample_bytes_may_be_raised_later(job: Job, web: Web, tmp_path: Path) -> None:
    """The limit is not part of the identity: a run resumes with another one, and a retry fetches what was refused."""
    write_documents(tmp_path / "source" / "docs_shard_0_v3.jsonl", [[web.url(0), web.url(1)]])
    run(replace(job, max_sample_bytes=1))
    outcomes = run(replace(job, max_sample_bytes=1 << 20)).totals.outcomes
    assert outcomes in ({"too_large": 2}, {"too_large": 1, "not_requested": 1})  # whether both arrived before
    kinds = RetryFilter(frozenset({FailureKind.TOO_LARGE}))
    report = retry(job.out, kinds, change=lambda before: replace(before, max_sample_bytes=1 << 20))
    assert report.totals.outcomes == {"ok": 2}
    assert len(read_rows(job)[0]["image_info"]) == 2


@pytest.mark.rotating
@pytest.mark.parametrize(("connections", "late"), [(1, 3), (32, 0), (32, 1), (32, 2)])
def test_which_images_exceed_the_limit_depends_only_on_their_order(
    job: Job, web: Web, tmp_path: Path, connections: int, late: int
) -> None:
    """With ``--keep-at-least``, a row has the same images whatever the concurrency and whichever image was slow."""
    urls = [web.url(number, "slow" if number == late else "well") for number in range(4)]
    write_documents(tmp_path / "source" / "docs_shard_0_v3.jsonl", [urls])
    job = replace(
        job,
        fetch=replace(POLICY, connections=connections),
        options=Mmc4CoreOptions(keep_at_least=1),
        out=str(tmp_path / "all"),
    )
    run(job)
    sizes = [len(base64.b64decode(image["image_base64"])) for image in read_rows(job)[0]["image_info"]]
    bounded = replace(job, out=str(tmp_path / "bounded"), max_sample_bytes=sizes[0] + sizes[1] + sizes[3] - 1)
    expected, held_bytes = [], 0
    for url, size in zip(urls, sizes, strict=True):
        if held_bytes + size <= bounded.max_sample_bytes:
            expected.append(url)
            held_bytes += size
    report = run(bounded)
    assert [image["raw_url"] for image in read_rows(bounded)[0]["image_info"]] == expected
    assert report.totals.outcomes == {"ok": len(expected), "too_large": 4 - len(expected)}
    assert 0 < len(expected) < 4


async def test_cancelled_fetches_release_everything(web: Web) -> None:
    """A fetch that is cancelled at any moment releases its limiter slot, its host's slot and its memory."""
    budget = BodyBudget(1 << 20)
    async with Fetcher(replace(POLICY, connections=4, per_host=2), budget=budget) as fetch:
        for round_ in range(40):
            urls = [web.url(round_ * 10 + n, ("stuck", "slow", "well", "drip")[n % 4]) for n in range(8)]
            tasks = [asyncio.create_task(fetch(url)) for url in urls]
            for _ in range(round_):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        now = fetch.statistics()
        assert (now.open_requests, now.waiting_requests, now.held_bytes) == (0, 0, 0)
        assert not isinstance(await fetch(web.url(999)), Failure)


@pytest.mark.rotating
def test_a_run_requests_each_url_once(job: Job, web: Web, tmp_path: Path) -> None:
    """Within a document, in concurrent documents, in open shards and long afterwards; also if the request failed."""
    logo, banner, gone = web.url(0), web.url(1), web.url(2, "missing")
    own = [web.url(number) for number in range(10, 40)]
    for shard in range(10):
        documents = [[logo, own[shard * 3]], [own[shard * 3 + 1], logo, logo, banner], [gone, own[shard * 3 + 2]]]
        write_documents(tmp_path / "source" / f"docs_shard_{shard}_v3.jsonl", documents)
    report = run(replace(job, options=Mmc4CoreOptions(keep_at_least=1)))
    check_counts(report, 80)
    assert web.request_counts([logo, banner, gone, *own]) == [1] * 33
    assert report.requests == 33
    assert report.totals.ok == 70
    assert report.reused == 70 - 32
    assert report.summary()["images"] == {
        "total": 80,
        "ok": 70,
        "failed": 10,
        "reused": 38,
        "repeated": 38,
        "by_kind": {"http_status": 10},
    }
    lines = [line for line in read_ledger(job) if line["url"] == logo]
    assert {line["sha256"] for line in lines} == {lines[0]["sha256"]}
    assert sum(line["attempts"] for line in lines) == 1
    jpegs = {image["image_base64"] for row in read_rows(job) for image in row["image_info"] if image["raw_url"] == logo}
    assert len(jpegs) == 1
    assert sum(line["attempts"] for line in read_ledger(job) if line["url"] == gone) == 1


def test_urls_with_the_same_hash_keep_their_own_images(
    job: Job, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A URL is requested if the entry under its hash belongs to another URL."""
    monkeypatch.setattr(dedup, "hash", lambda _: 7, raising=False)
    urls = [web.url(number) for number in range(6)]
    write_documents(tmp_path / "source" / "docs_shard_0_v3.jsonl", [[url] for url in (*urls, *urls)])
    report = run(job)
    assert report.totals.ok == 12
    assert all(count >= 1 for count in web.request_counts(urls))
    lines = read_ledger(job)
    assert [line["url"] for line in lines] == urls * 2
    assert [line["sha256"] for line in lines[:6]] == [line["sha256"] for line in lines[6:]]
    assert len({line["sha256"] for line in lines}) == 6


def test_a_retry_requests_each_url_once(job: Job, web: Web, tmp_path: Path) -> None:
    """A retry requests a failed URL again, but only once, however many samples share it."""
    flaky = web.url(0, "flaky")
    write_documents(tmp_path / "source" / "docs_shard_0_v3.jsonl", [[flaky], [flaky], [flaky]])
    run(job)
    assert web.request_counts([flaky]) == [1]
    report = retry(job.out, RetryFilter())
    assert web.request_counts([flaky]) == [2]
    assert (report.totals.rows, report.retried, report.reused, report.repeated) == (3, 3, 2, 2)


def test_a_cancelled_request_is_taken_over_by_the_next_task(job: Job, web: Web, tmp_path: Path) -> None:
    """If the task that fetches a URL is cancelled, the next one that waits for the same URL requests it."""
    shared, gone = web.url(0, "slow"), web.url(1, "missing")
    write_documents(tmp_path / "source" / "docs_shard_0_v3.jsonl", [[shared, gone], [shared]])
    report = run(job)
    check_counts(report, 3)
    assert [row["n"] for row in read_rows(job)] == [1]


def make_url(url: str, table: UrlTable, spools: ReadableSpools) -> OwnUrl:
    """Return a URL with its lock and result in this process."""
    return OwnUrl(url, table, spools, spools.read)


async def test_the_deduplicator_forgets_the_oldest_urls_and_closed_spools(tmp_path: Path) -> None:
    """It finds the newest ``max_urls`` results, except those of hosts that were down and of spools not retained."""
    sample = make_sample(0, images=1)
    table, spools = UrlTable(max_urls=8), ReadableSpools(max_retained_bytes=0)
    urls = [make_url(f"http://e.org/{number}", table, spools) for number in range(41)]
    spool = await Spool.open(tmp_path / "x.spool")

    def result_of(number: int) -> ImageResult:
        return make_result(replace(sample, urls=(f"http://e.org/{number}",)), 0, make_outcome(0))

    for number in range(35):
        urls[number].record(result_of(number), spool, await spool.append(result_of(number)))
    known = [number for number in range(35) if await urls[number].lookup() is not None]
    assert known == list(range(27, 35))
    assert await urls[30].lookup() == result_of(30)
    down = replace(result_of(40), line=replace(result_of(40).line, outcome="host_down"))
    urls[40].record(down, spool, await spool.append(down))
    assert await urls[40].lookup() is None
    await spools.retain(spool)
    await spool.close()
    assert await urls[30].lookup() is None
    spools.close()


async def test_the_deduplicator_tells_urls_with_the_same_hash_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded result names its URL, so it is not returned for another URL with the same hash."""
    monkeypatch.setattr(dedup, "hash", lambda _: 7, raising=False)
    deduplicator = dedup.UrlDeduplicator()
    spool = await Spool.open(tmp_path / "x.spool")
    known = make_result(replace(make_sample(0, images=1), urls=("http://e.org/1",)), 0, make_outcome(0))
    deduplicator.lock("http://e.org/1").record(known, spool, await spool.append(known))
    assert await deduplicator.lock("http://e.org/1").lookup() == known
    assert await deduplicator.lock("http://e.org/2").lookup() is None
    await spool.close()
    deduplicator.close()


async def test_one_task_at_a_time_holds_the_lock_of_a_url() -> None:
    """Tasks wait only for their own URL, in order, also behind one that was cancelled; no lock is left at the end."""
    table, spools = UrlTable(), ReadableSpools()
    order: list[str] = []

    async def hold_lock(url: str, name: str, wait_for: asyncio.Event | None = None) -> None:
        async with make_url(url, table, spools):
            order.append(name)
            if wait_for is not None:
                await wait_for.wait()

    go = asyncio.Event()
    tasks = [asyncio.create_task(hold_lock("a", name, go)) for name in ("first", "cancelled", "second")]
    await asyncio.sleep(0)
    await hold_lock("b", "other")
    assert order == ["first", "other"]
    tasks[1].cancel()
    go.set()
    await asyncio.wait(tasks)
    assert order == ["first", "other", "second"]
    assert table.try_acquire("a")


def test_a_run_stopped_by_a_bad_line_resumes_with_skip_bad_lines(job: Job, web: Web, tmp_path: Path) -> None:
    """A bad line stops the run before its file is fetched; with the option, the run resumes and counts the line."""
    urls = [[web.url(0)], [web.url(1)], [web.url(2)]]
    for shard in range(2):
        write_documents(tmp_path / "source" / f"docs_shard_{shard}_v3.jsonl", urls[shard : shard + 1])
    late = tmp_path / "source" / "docs_shard_9_v3.jsonl"
    write_documents(late, urls[2:])
    late.write_text("{\n" + late.read_text())
    with pytest.raises(ManifestError, match=r"docs_shard_9_v3\.jsonl, line 1: not JSON"):
        run(job)
    assert web.request_counts(urls[2]) == [0]
    report = run(replace(job, options=Mmc4CoreOptions(skip_bad_lines=True)))
    check_counts(report, 3)
    assert report.totals.notes == {"bad_lines": 1}
    assert report.summary()["notes"] == {"bad_lines": 1}
    assert len(read_rows(job)) == 3
    assert web.request_counts(urls[2]) == [1]


def test_indices_of_kept_documents_select_rows(job: Job, web: Web, tmp_path: Path) -> None:
    """Indices count the rows of a shard. A retry would shift them, so it is refused."""
    documents = [[web.url(0)], [web.url(1, "flaky")], [web.url(2)], [web.url(3)]]
    write_documents(tmp_path / "source" / "docs_shard_4_v3.jsonl", documents)
    (tmp_path / "ids").write_text("4,0\n4,2\n4,3\n")
    kept = replace(job, ids=str(tmp_path / "ids"), options=Mmc4CoreOptions(ids_index=IdsIndex.KEPT))
    report = run(kept)
    check_counts(report, 4)
    assert [row["n"] for row in read_rows(job)] == [0, 3]
    assert (report.totals.samples, report.totals.rows) == (4, 2)
    assert report.id_list_result is not None
    assert (report.id_list_result.wanted, report.id_list_result.not_found) == (3, 1)
    with pytest.raises(ConfigurationError, match="an output with --ids-index kept can't be retried"):
        retry(job.out)


@pytest.mark.rotating
@pytest.mark.parametrize(("documents", "most_open"), [(100, 64), (4000, 5), (5000, 4)])
async def test_more_shards_are_open_if_they_are_small(tmp_path: Path, documents: int, most_open: int) -> None:
    """Four large shards are open at once, or more small ones; the next is opened when one is published."""
    record = {"image_info": [{"raw_url": "x", "matched_text_index": 0}], "text_list": [""], "similarity_matrix": [[0]]}
    lines = f"{json.dumps(record)}\n" * documents
    for shard in range(most_open + 3):
        await asyncio.to_thread((tmp_path / f"docs_shard_{shard}_v3.jsonl").write_text, lines)
    manifest = await asyncio.to_thread(find_dataset("mmc4-core").bind, tmp_path, None)
    feed = Feed(manifest, OutputLayout(tmp_path / "out"))
    opened: list[int] = []

    async def pull() -> None:
        while await feed.pull() is not None:
            opened.append(len(feed.open_shards))

    pulling = asyncio.create_task(pull())
    await until(lambda: len(opened) == most_open * documents)
    await feed.close_published(next(iter(feed.open_shards)), ShardCounts())
    await until(lambda: len(opened) == (most_open + 1) * documents)
    assert max(opened) == most_open
    pulling.cancel()
    await asyncio.wait([pulling])
    await feed.close()


class LongTexts(Samples):
    """Samples of 50 MB each."""

    def __init__(self) -> None:
        self.read = 0

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[Sample]:
        for number in range(len(self)):
            self.read += 1
            yield Sample(number, str(number), ("u",), {"text": "a" * 50_000_000})


class OneShard:
    """A source of one shard, whose samples are ``LongTexts``."""

    def __init__(self) -> None:
        self.texts = LongTexts()

    def shards(self) -> list[Shard]:
        """Return the one shard."""
        return [Shard("0", Path("nowhere"), 6, "")]

    def expected_samples(self) -> int | None:
        """Return the number of samples in the shard."""
        return 6

    def samples(self, _: Shard) -> LongTexts:
        """Return the samples of the shard."""
        return self.texts


async def test_reading_ahead_is_bounded_in_bytes(tmp_path: Path) -> None:
    """A sample larger than the bound is read by itself; 256 of them would be gigabytes."""
    source = OneShard()
    feed = Feed(source, OutputLayout(tmp_path / "out"))
    assert await feed.pull() is not None
    assert source.texts.read == 1
    await feed.close()


async def test_samples_in_progress_are_bounded_in_bytes(tmp_path: Path) -> None:
    """Workers hold two samples of 50 MB at a time, however many workers there are; the next come when those end."""
    feed = Feed(OneShard(), OutputLayout(tmp_path / "out"))
    all_are_out = asyncio.Event()
    with_workers, most = 0, 0

    async def work() -> bool:
        nonlocal with_workers, most
        pulled = await feed.pull()
        assert pulled is not None
        with_workers += 1
        most = max(most, with_workers)
        if with_workers == 6:
            all_are_out.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):  # for the others to come as well, if they can
                await all_are_out.wait()
        with_workers -= 1
        return feed.mark_ended(pulled)

    is_last = await asyncio.gather(*(work() for _ in range(6)))
    assert most == 2
    assert sum(is_last) == 1
    await feed.close()


@pytest.mark.rotating
@pytest.mark.parametrize("step", [30, *(pytest.param(step, marks=pytest.mark.slow) for step in (6, 18, 42, 54))])
def test_documents_come_out_the_same_after_a_kill_at_any_step(
    tmp_path: Path, web: Web, preloaded: PreloadedCommand, step: int
) -> None:
    """A run that was killed and resumed writes the same rows as an undisturbed run."""
    for shard in range(3):
        documents = [
            [
                web.url((shard * 40 + number * 3 + position) % 50, "missing" if number % 4 == 3 else "well")
                for position in range(3)
            ]
            for number in range(10)
        ]
        write_documents(tmp_path / "source" / f"docs_shard_{shard}_v3.jsonl", documents)

    def command(root: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "datafetch", "prepare", "mmc4-core", "--source", str(tmp_path / "source")),
            *("--root", str(root), "--allow-net", "127.0.0.0/8", "--processes", "1", "--retries", "0"),
            *("--world-size", "2"),
        ]

    run_undisturbed(command(tmp_path / "undisturbed"), preloaded)
    with Run(
        command(tmp_path / "killed"), dying_at_a_step(" prepare mmc4-core ", step, tmp_path / "killed"), preloaded
    ) as killed:
        assert killed.process.wait(PATIENCE_S) < 0
    run_undisturbed(command(tmp_path / "killed"), preloaded)
    undisturbed, resumed = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "mmc4-core" / "pkl-core-limit-tokens").iterdir()}
        for name in ("undisturbed", "killed")
    )
    assert undisturbed == resumed
    assert len(undisturbed) > 2
