"""The results of a retry are merged into its shard, sample by sample, also for samples of several images."""

import asyncio
import pickle
import random
import tracemalloc
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from test_spool import make_result

from datafetch.datasets.coyo import Coyo
from datafetch.engine.retry_source import FailedSamples
from datafetch.errors import ConfigurationError
from datafetch.model.kinds import Loader, Payload
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.lost_documents import LostDocuments
from datafetch.model.outcome import NOT_REQUESTED, Encoded, Failure, FailureKind, Outcome, Permission
from datafetch.model.sample import Record, Row, Sample
from datafetch.output import merge
from datafetch.output.commit import Commit, commit_shard
from datafetch.output.merge import Output
from datafetch.output.retry_filter import Retry, RetryFilter
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_reader import read_samples
from datafetch.store.shard_summary import read_shard_counts, read_shard_summary
from datafetch.store.spool import Spool
from datafetch.store.spool_format import ImageResult, read_entries, read_marker
from datafetch.store.spool_reader import SpoolReader

SHARD = "part-00000"
GONE = Failure(FailureKind.HTTP_STATUS, "HTTP 404", 404, 1)
LATE = Failure(FailureKind.TIMEOUT, "too slow", None, 3)


@dataclass(frozen=True, slots=True)
class Documents(Coyo):
    """Documents of several images, which become a row if at least ``least_images`` of them arrived."""

    least_images: int = 1

    def to_row(self, record: Record, payload: Payload) -> Row | None:  # noqa: ARG002 - part of the interface
        """Return a row of the JPEGs that arrived, if there are enough."""
        jpegs = [outcome.jpeg for outcome in record.outcomes if isinstance(outcome, Encoded)]
        return {"key": record.sample.key, "jpegs": jpegs} if len(jpegs) >= self.least_images else None

    def is_lost(self, sample: Sample, failed: Collection[int]) -> bool:
        """Return whether too few images are left."""
        return len(sample.urls) - len(failed) < self.least_images


def image(name: str) -> Encoded:
    """Return an image that arrived."""
    return Encoded(name.encode(), 4, 3, "JPEG", "ab")


def document(position: int, images: int) -> Sample:
    """Return a document with this number of images."""
    return Sample(
        position, f"k{position}", tuple(f"http://example.org/{position}/{n}" for n in range(images)), {"n": 1}
    )


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """An output of documents."""
    return Output(Documents(), OutputLayout(tmp_path / "out", job_hash="first"))


def spool(output: Output, ended: Sequence[tuple[Sample, Sequence[Outcome]]]) -> None:
    """Spool samples with these outcomes, except for images that the spool already has, as the pipeline does."""

    async def write() -> None:
        spool = await Spool.open(output.layout.spool(SHARD))
        for sample, outcomes in ended:
            there = spool.recovered.images.get(sample.position, {})
            ends = [make_result(sample, n, outcome) for n, outcome in enumerate(outcomes) if n not in there]
            await spool.append(*ends, sample)
        await spool.close()

    asyncio.run(write())


def first_run(output: Output, documents: Sequence[Sequence[Outcome]]) -> None:
    """Publish a shard of documents whose images have these outcomes."""
    samples = [document(position, len(outcomes)) for position, outcomes in enumerate(documents)]
    spool(output, list(zip(samples, documents, strict=True)))
    commit_shard(Commit(output, SHARD, len(documents)))


def retry(output: Output, retry_filter: RetryFilter, arrived: dict[tuple[int, int], Outcome]) -> dict[int, set[int]]:
    """Retry, and return which images were requested: position of the sample → numbers of its images.

    Args:
        output: The output to retry.
        retry_filter: The failures to retry.
        arrived: (sample, image) → the image's outcome in this retry; all others fail for good.
    """
    number = read_shard_summary(output.layout.ledger(SHARD)).retry + 1
    again = replace(output, layout=replace(output.layout, job_hash="again"), retry=Retry(number, retry_filter))
    assert again.retry is not None
    source = FailedSamples(again, again.retry, [SHARD])
    requested: dict[int, set[int]] = {}
    for shard in source.shards():
        samples = list(source.samples(shard))
        there: dict[int, set[int]] = {}
        for line in _begun(again):
            there.setdefault(line.sample, set()).add(line.image)
        for sample in samples:
            requested[sample.position] = set(range(len(sample.urls))) - there.get(sample.position, set())
        spool(again, [(s, [arrived.get((s.position, n), GONE) for n in range(len(s.urls))]) for s in samples])
        commit_shard(Commit(again, SHARD, shard.size))
        again.layout.spool(SHARD).unlink()
    return requested


def _begun(output: Output) -> list[LedgerLine]:
    with output.layout.spool(SHARD).open("rb") as file:
        entries = read_entries(file, read_marker(file))
        return [entry.record.line for entry in entries if isinstance(entry.record, ImageResult)]


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the shard."""
    loaded: list[dict[str, Any]] = pickle.loads((folder / f"{SHARD}.pkl").read_bytes())
    assert int((folder / f"{SHARD}.count").read_text()) == len(loaded)
    return loaded


def test_a_document_gets_the_image_that_it_lacked(output: Output) -> None:
    """Its other images are neither requested nor lost, and every other document stays unchanged."""
    first_run(output, [[image("a0"), LATE], [image("b0")], [LATE, GONE], [GONE], [], [image("f0"), image("f1")]])
    assert [row["key"] for row in rows(output.layout.out)] == ["k0", "k1", "k5"]
    assert retry(output, RetryFilter(), {(0, 1): image("a1"), (2, 0): image("c0")}) == {0: {1}, 2: {0}}
    assert [(row["key"], row["jpegs"]) for row in rows(output.layout.out)] == [
        ("k0", [b"a0", b"a1"]),
        ("k1", [b"b0"]),
        ("k2", [b"c0"]),
        ("k5", [b"f0", b"f1"]),
    ]
    lines = [line for sample in read_samples(output.layout.ledger(SHARD)) for line in sample]
    assert [(line.sample, line.image, line.outcome) for line in lines] == [
        (0, 0, "ok"),
        (0, 1, "ok"),
        (1, 0, "ok"),
        (2, 0, "ok"),
        (2, 1, "http_status"),
        (3, 0, "http_status"),
        (5, 0, "ok"),
        (5, 1, "ok"),
    ]
    assert lines[1].attempts == 3 + 1
    summary = read_shard_summary(output.layout.ledger(SHARD))
    assert summary.has_row.tolist() == [True, True, True, False, False, True]
    assert summary.own_rows.tolist() == summary.has_row.tolist()


def test_a_row_never_loses_an_image_to_a_retry(output: Output) -> None:
    """If an image fails again, even in another way, the row keeps the images that it had."""
    first_run(output, [[image("a0"), GONE, LATE]])
    before = rows(output.layout.out)
    assert retry(output, RetryFilter.all(), {(0, 1): LATE, (0, 2): GONE}) == {0: {1, 2}}
    assert rows(output.layout.out) == before
    assert retry(output, RetryFilter(), {(0, 1): image("a1")}) == {0: {1}}
    assert rows(output.layout.out)[0]["jpegs"] == [b"a0", b"a1"]


def test_a_lost_sample_is_not_requested(output: Output) -> None:
    """A document that needs an image that failed for good is retried only if all failures are selected."""
    strict = replace(output, dataset=Documents(least_images=2))
    first_run(strict, [[GONE, LATE], [image("b0"), LATE]])
    assert not (strict.layout.out / f"{SHARD}.pkl").exists()
    kept = SpoolReader(strict.layout.kept_for_retry(SHARD)).samples()
    assert {spooled.sample.position: len(spooled.images) for spooled in kept} == {0: 0, 1: 1}
    assert retry(strict, RetryFilter(), {(1, 1): image("b1")}) == {1: {1}}
    assert [row["jpegs"] for row in rows(strict.layout.out)] == [[b"b0", b"b1"]]
    assert retry(strict, RetryFilter.all(), {(0, 0): image("a1"), (0, 1): image("a2")}) == {0: {0, 1}}
    assert [row["jpegs"] for row in rows(strict.layout.out)] == [[b"a1", b"a2"], [b"b0", b"b1"]]
    assert list(SpoolReader(strict.layout.kept_for_retry(SHARD)).samples()) == []


@pytest.mark.parametrize(
    ("images", "retry_filter", "requested"),
    [
        ([LATE, NOT_REQUESTED, image("a2")], RetryFilter(), {0, 1}),
        ([NOT_REQUESTED, LATE, GONE], RetryFilter(), {0, 1}),
        ([NOT_REQUESTED, GONE, NOT_REQUESTED], RetryFilter(), set()),
        ([GONE, GONE, NOT_REQUESTED], RetryFilter.all(), {0, 1, 2}),
        ([GONE, LATE, NOT_REQUESTED], RetryFilter(frozenset({FailureKind.HTTP_STATUS})), {0, 2}),
        ([GONE, LATE, NOT_REQUESTED], RetryFilter(frozenset({FailureKind.TLS, FailureKind.NOT_REQUESTED})), set()),
        ([NOT_REQUESTED, image("a1"), image("a2")], RetryFilter(), {0}),
        ([NOT_REQUESTED, image("a1"), GONE], RetryFilter(), set()),
    ],
)
def test_images_that_were_not_requested_go_with_their_document(
    output: Output, images: Sequence[Outcome], retry_filter: RetryFilter, requested: set[int]
) -> None:
    """They are requested if and only if another failed image of their document is, or there is none."""
    strict = replace(output, dataset=Documents(least_images=2))
    first_run(strict, [[image("z")], images, [image("z0"), image("z1")]])
    before = strict.layout.ledger(SHARD).read_bytes()
    arriving: dict[tuple[int, int], Outcome] = {(1, number): image(f"new{number}") for number in range(3)}
    assert retry(strict, retry_filter, arriving) == ({1: requested} if requested else {})
    assert (strict.layout.ledger(SHARD).read_bytes() == before) == (not requested)
    assert [row["key"] for row in rows(strict.layout.out)] == (["k1", "k2"] if requested else ["k2"])


def test_lost_documents_are_counted_by_their_first_failure(output: Output) -> None:
    """And by how many of their images arrived. Rows, documents without images and unselected rows are not lost."""
    strict = replace(output, dataset=Documents(least_images=2, loader=Loader.MMC4))
    documents: list[list[Outcome]] = [
        [NOT_REQUESTED, LATE, GONE],
        [image("b0"), GONE],
        [GONE, *map(image, "abcdefgh")],
        [],
        [NOT_REQUESTED, image("e1")],
        [image("f0"), LATE],
    ]
    first_run(strict, documents)
    assert read_shard_counts(strict.layout.ledger(SHARD)).lost == LostDocuments(
        {"timeout": 2, "http_status": 1, "not_requested": 1}, (1, 3, 0, 0, 0, 0, 0)
    )
    retry(strict, RetryFilter(), {(0, 1): image("a1"), (5, 1): image("f1")})
    assert read_shard_counts(strict.layout.ledger(SHARD)).lost == LostDocuments(
        {"http_status": 3}, (0, 3, 0, 0, 0, 0, 0)
    )


def test_rows_that_are_not_selected_are_not_lost(output: Output) -> None:
    """An id list that counts rows leaves out rows whatever arrived of them."""
    documents = replace(output, dataset=Documents(loader=Loader.MMC4))
    spool(documents, [(document(0, 2), [image("a"), GONE]), (document(1, 1), [GONE])])
    counts = commit_shard(Commit(documents, SHARD, 2, row_numbers=frozenset()))
    assert (counts.rows, counts.lost) == (0, LostDocuments({"http_status": 1}, (1, 0, 0, 0, 0, 0, 0)))


def test_not_requested_alone_selects_nothing() -> None:
    """The error says what to name instead."""
    with pytest.raises(ConfigurationError, match=r"not_requested alone selects nothing.*name the kinds of these fail"):
        RetryFilter(frozenset({FailureKind.NOT_REQUESTED}))


def test_a_retry_of_a_resharded_output_writes_only_new_rows(output: Output) -> None:
    """If the output is resharded, the new and changed rows of a retry are written to a folder of their own."""
    first_run(output, [[image("a0"), LATE], [LATE], [image("c0")]])
    before = {path.name: path.read_bytes() for path in output.layout.out.iterdir()}
    output.layout.reshard_record.write_text("{}")
    assert retry(output, RetryFilter(), {(0, 1): image("a1"), (1, 0): image("b0")}) == {0: {1}, 1: {0}}
    assert {path.name: path.read_bytes() for path in output.layout.out.iterdir()} == before
    assert [row["jpegs"] for row in rows(output.layout.added)] == [[b"a0", b"a1"], [b"b0"]]
    summary = read_shard_summary(output.layout.ledger(SHARD))
    assert summary.has_row.tolist() == [True, True, True]
    assert summary.own_rows.tolist() == [True, True, False]


def outcomes_of(output: Output) -> list[list[str]]:
    """Return the outcomes in the ledger, for each sample."""
    return [[line.outcome for line in lines] for lines in read_samples(output.layout.ledger(SHARD))]


@pytest.mark.parametrize("seed", range(4))
def test_images_beyond_max_sample_bytes_are_too_large(output: Output, seed: int) -> None:
    """Images that exceed the limit fail, counted in manifest order; smaller images after them may still fit."""
    output = replace(output, max_sample_bytes=10)
    sample = document(0, 5)
    images = [image(text) for text in ("aaaa", "bbbbb", "cc", "d", "e")]
    ends = [make_result(sample, number, encoded) for number, encoded in enumerate(images)]
    random.Random(seed).shuffle(ends)

    async def write() -> None:
        spool = await Spool.open(output.layout.spool(SHARD))
        await spool.append(*ends, sample)
        await spool.close()

    asyncio.run(write())
    totals = commit_shard(Commit(output, SHARD, 1))
    assert outcomes_of(output) == [["ok", "ok", "too_large", "ok", "too_large"]]
    assert totals.outcomes == {"ok": 3, "too_large": 2}
    assert rows(output.layout.out) == [{"key": "k0", "jpegs": [b"aaaa", b"bbbbb", b"d"]}]
    (lines,) = read_samples(output.layout.ledger(SHARD))
    assert "--max-sample" in lines[2].detail
    assert (lines[2].width, lines[2].height, lines[2].format) == (None, None, "")


def test_a_single_image_may_exceed_max_sample_bytes(output: Output) -> None:
    """The limit also applies to a sample of one image, which may be exactly as large."""
    output = replace(output, max_sample_bytes=3)
    first_run(output, [[image("abc")], [image("abcd")]])
    assert outcomes_of(output) == [["ok"], ["too_large"]]
    assert [row["key"] for row in rows(output.layout.out)] == ["k0"]


def test_a_larger_max_sample_bytes_adds_images_in_a_retry(output: Output) -> None:
    """A retry with a larger limit adds the image, without fetching the others again."""
    small = replace(output, max_sample_bytes=10)
    first_run(small, [[image("aaaaaa"), image("bbbbbb"), image("cc")]])
    assert outcomes_of(small) == [["ok", "too_large", "ok"]]
    kinds = RetryFilter(frozenset({FailureKind.TOO_LARGE}))
    assert retry(output, kinds, {(0, 1): image("bbbbbb")}) == {0: {1}}
    assert rows(output.layout.out)[0]["jpegs"] == [b"aaaaaa", b"bbbbbb", b"cc"]


def test_images_beyond_the_default_limit_have_the_permission(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger marks exactly the images that needed it, whatever limit was set."""
    monkeypatch.setattr(merge, "DEFAULT_MAX_SAMPLE_BYTES", 8)
    first_run(replace(output, max_sample_bytes=100), [[image("aaaaaa"), image("bb"), image("c"), LATE], [image("d")]])
    permitted = [[line.permitted for line in lines] for lines in read_samples(output.layout.ledger(SHARD))]
    assert permitted == [[(), (), (Permission.MAX_SAMPLE,), ()], [()]]


def test_a_new_image_does_not_displace_an_older_one(output: Output) -> None:
    """A new image that exceeds the limit fails; the images that the row already has stay, in any order."""
    output = replace(output, max_sample_bytes=10)
    first_run(output, [[LATE, image("bbbbbb"), image("cc")]])
    assert retry(output, RetryFilter(), {(0, 0): image("aaa")}) == {0: {0}}
    assert outcomes_of(output) == [["too_large", "ok", "ok"]]
    assert rows(output.layout.out)[0]["jpegs"] == [b"bbbbbb", b"cc"]


@pytest.mark.rotating
def test_a_commit_holds_single_images_in_memory(output: Output) -> None:
    """The memory of a commit, also of a retry, is that of some images, and not of a document with hundreds of them."""
    image_bytes = 200_000
    noise = random.Random(0).randbytes(image_bytes)
    many: list[Outcome] = [replace(image("x"), jpeg=noise[number:] + noise[:number]) for number in range(200)]
    first_run(output, [[image("small"), LATE], many, [*many[:100], LATE]])
    for committing in (
        lambda: commit_shard(Commit(output, SHARD, 3)),
        lambda: retry(output, RetryFilter(), {(0, 1): image("late"), (2, 100): image("late")}),
    ):
        tracemalloc.start()
        committing()
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 30 * image_bytes
    (_, whole, _) = rows(output.layout.out)
    assert whole["jpegs"] == [encoded.jpeg for encoded in many if isinstance(encoded, Encoded)]
