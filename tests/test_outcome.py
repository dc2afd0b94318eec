"""Outcomes, failures and counts as values."""

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datafetch.model.ledger_line import LedgerLine, ShardCounts
from datafetch.model.outcome import NOT_REQUESTED, OK, Body, Encoded, Failure, FailureKind, Outcome, Permission
from datafetch.model.report import Report
from datafetch.model.sample import Sample

ENCODED = Encoded(b"jpeg", 4, 3, "PNG", "ab12")
MAY_PASS = {"dns_failed", "connect", "timeout", "disconnected", "empty", "host_down", "truncated"}


@pytest.mark.parametrize("kind", [kind for kind in FailureKind if kind is not FailureKind.HTTP_STATUS])
def test_every_kind_says_whether_it_may_pass(kind: FailureKind) -> None:
    """The contract's column "may pass?" holds for every kind."""
    assert Failure(kind).may_pass == (kind.value in MAY_PASS)


@pytest.mark.parametrize(
    ("before", "now", "is_so"),
    [
        (("truncated", "ab12"), ("truncated", "ab12"), True),
        (("truncated", "ab12"), ("truncated", "cd34"), False),
        (("truncated", ""), ("truncated", ""), False),
        (("not_an_image", "ab12"), ("truncated", "ab12"), False),
        (("too_many_pixels", "ab12"), ("too_many_pixels", "ab12"), False),
    ],
)
def test_the_same_damage_twice_is_damage_of_the_file(
    before: tuple[str, str], now: tuple[str, str], is_so: bool
) -> None:
    """Only the same bytes prove damage on the server; another transfer may be truncated elsewhere."""
    first, second = (Failure(FailureKind(kind), sha256=sha256) for kind, sha256 in (before, now))
    assert second.is_as_damaged_as(first) == is_so


@pytest.mark.parametrize("status", range(201, 600))
def test_only_temporary_statuses_may_pass(status: int) -> None:
    """A refusal is final; overload, timeouts and server errors may pass."""
    may_pass = status in {408, 425, 429, 500, 502, 503, 504}
    assert Failure(FailureKind.HTTP_STATUS, status=status).may_pass == may_pass


@pytest.mark.parametrize(
    "outcome",
    [
        ENCODED,
        replace(ENCODED, is_original=True),
        Failure(FailureKind.TRUNCATED, "cut", 200, 2, "http://example.org/b.jpg", 12.5, "ab12"),
        replace(NOT_REQUESTED, status=200, attempts=2, final_url="http://example.org/b.jpg", fetch_ms=12.5),
    ],
)
def test_a_ledger_line_keeps_the_outcome(sample: Sample, outcome: Outcome) -> None:
    """An outcome that is written to a ledger line is restored from it."""
    body = Body(b"body!", "http://example.org/b.jpg", 2, 12.5)
    line = LedgerLine.of(sample, 0, body, outcome)
    assert line.to_outcome(b"jpeg" if isinstance(outcome, Encoded) else b"") == outcome
    assert (line.body_bytes, line.status, line.attempts, line.fetch_ms) == (5, 200, 2, 12.5)


@pytest.mark.parametrize("is_original", [True, False])
def test_a_ledger_says_which_images_were_not_encoded_again(sample: Sample, is_original: bool) -> None:
    """They are marked in a column of their own; ``detail`` is empty for an image that arrived."""
    line = LedgerLine.of(sample, 0, Body(b"body!"), replace(ENCODED, is_original=is_original))
    assert (line.outcome, line.detail, line.is_original) == ("ok", "", is_original)


@pytest.mark.parametrize(
    ("detail", "is_original", "is_skipped"),
    [
        ("kept as received", True, False),
        ("not asked for: the document was lost with image 2", False, True),
        ("HTTP 404", False, False),
    ],
)
def test_the_details_of_earlier_ledgers_are_understood(
    sample: Sample, detail: str, is_original: bool, is_skipped: bool
) -> None:
    """Ledgers of earlier versions lack the columns and have the facts in ``detail``."""
    fields = asdict(LedgerLine.of(sample, 0, Body(b"body!"), ENCODED)) | {"detail": detail}
    for later in ("permitted", "is_original"):
        del fields[later]
    line = LedgerLine.from_fields(fields)
    assert (line.is_original, line.is_skipped, line.permitted) == (is_original, is_skipped, ())


@pytest.mark.parametrize(
    "earlier",
    [
        {"detail": "not asked for: the document was lost with image 2"},
        {"detail": "skipped: without image 2, the document cannot become a row", "is_skipped": True},
    ],
)
def test_an_image_that_an_earlier_version_skipped_was_not_requested(sample: Sample, earlier: dict[str, object]) -> None:
    """It had the kind and status of the image that its document was lost with; now it has a kind of its own."""
    failure = Failure(FailureKind.HTTP_STATUS, status=500)
    line = LedgerLine.from_fields(asdict(LedgerLine.of(sample, 0, failure, failure)) | earlier)
    assert (line.outcome, line.status, line.is_skipped, line.failure) == ("not_requested", None, True, NOT_REQUESTED)
    assert LedgerLine.from_fields(asdict(line)) == line


def test_a_ledger_line_of_a_failed_fetch_has_no_size(sample: Sample) -> None:
    """Nothing arrived, so there are no bytes, pixels or hash."""
    failure = Failure(FailureKind.HTTP_STATUS, "HTTP 404", 404, 1, "http://example.org/cat.jpg", 3.0)
    line = LedgerLine.of(sample, 0, failure, failure)
    assert (line.outcome, line.status, line.body_bytes, line.width, line.height, line.sha256) == (
        "http_status",
        404,
        0,
        None,
        None,
        "",
    )
    assert line.to_outcome(b"") == failure


OUTCOMES = st.dictionaries(st.sampled_from([OK, *(kind.value for kind in FailureKind)]), st.integers(1, 10**9))


@given(st.lists(st.builds(ShardCounts, st.integers(0, 10**9), st.integers(0, 10**9), OUTCOMES, st.integers(0, 10**12))))
def test_counts_add_up(parts: list[ShardCounts]) -> None:
    """No count is lost when those of shards are added up, in the sum and in the summary."""
    total = ShardCounts.sum(parts)
    assert total.images == sum(part.images for part in parts)
    assert total.ok + total.failed == total.images
    report = Report(
        dataset="coyo",
        out="out",
        totals=total,
        shards=len(parts),
        reused=0,
        repeated=0,
        fetched_bytes=0,
        written_bytes=0,
        requests=0,
        connections=8,
        elapsed_s=1.0,
    )
    summary = report.summary()
    images, samples = summary["images"], summary["samples"]
    assert isinstance(images, dict)
    assert isinstance(samples, dict)
    assert images["ok"] + images["failed"] == images["total"]
    assert sum(images["by_kind"].values()) == images["failed"]
    assert samples["rows"] + samples["dropped"] == samples["total"]


def test_a_line_of_an_earlier_version_has_no_permissions(sample: Sample) -> None:
    """Spools and ledgers of earlier versions lack the column, or have null in it."""
    line = LedgerLine.of(sample, 0, Body(b"body!"), ENCODED)
    fields = asdict(line)
    assert LedgerLine.from_fields(fields) == line
    assert LedgerLine.from_fields({**fields, "permitted": None}) == line
    del fields["permitted"]
    assert LedgerLine.from_fields(fields) == line


def test_a_line_has_the_permissions_of_fetching_and_decoding(sample: Sample) -> None:
    """Each permission is there once, in alphabetical order, whether fetching or decoding used it."""
    body = Body(b"body!", permitted=(Permission.ALLOW_NET, Permission.OPT_OUT))
    line = LedgerLine.of(sample, 0, body, replace(ENCODED, permitted=(Permission.MAX_PIXELS,)))
    assert line.permitted == (Permission.ALLOW_NET, Permission.MAX_PIXELS, Permission.OPT_OUT)
    assert LedgerLine.from_fields({**asdict(line), "permitted": ["allow-net", "max-pixels", "opt-out"]}) == line


def test_a_long_reason_is_truncated(sample: Sample) -> None:
    """A long message from a server is truncated."""
    failure = Failure(FailureKind.TOO_MANY_REDIRECTS, "x" * 100_000)
    assert len(LedgerLine.of(sample, 0, failure, failure).detail) == 1000
