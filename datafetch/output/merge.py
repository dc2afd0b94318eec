"""The samples of a shard as they are to stand: from its spool alone, or, after a retry, from what stood there and that.

Rules: everything is streamed in the order of positions; a sample's fate is decided here and nowhere else. What a retry
did not touch is handed on as it lies there, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeAlias, TypeVar

from datafetch.errors import ConservationError
from datafetch.model.interfaces import Dataset
from datafetch.model.kinds import Payload
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import OK, Failure, FailureKind, Permission
from datafetch.model.sample import BAD_LINE, Sample
from datafetch.output.formats import PublishedRow, format_of
from datafetch.output.row import OutputRow, placeholder
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger import read_samples, read_shard_summary
from datafetch.store.retry_filter import Retry, RetryFilter
from datafetch.store.spool import SpooledSample, SpoolReader
from datafetch.store.spool_format import ImageResult, Stored, StoredImage

SpooledImage: TypeAlias = ImageResult | StoredImage
_MOST_ATTEMPTS = 127  # as the ledger's column holds them
MAX_SAMPLE_BYTES = 256 * 1024 * 1024
"""What the images of one sample may take together, by default."""

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Output:
    """What all shards of a run have in common: how records become rows, and where they go.

    Attributes:
        dataset: Whose rows they are.
        layout: Where everything lies.
        payload: How a row holds its images.
        retry: What is tried again; None for a first run.
        max_sample_bytes: What the images of one sample may take together.
    """

    dataset: Dataset
    layout: OutputLayout
    payload: Payload = Payload.BASE64
    retry: Retry | None = None
    max_sample_bytes: int = MAX_SAMPLE_BYTES


@dataclass(frozen=True, slots=True)
class CommittedSample:
    """A sample as its shard is to have it.

    Attributes:
        position: Its place in the shard.
        lines: For the ledger.
        row: Its row, new or as it was published, to be written before the next sample is taken; None where there is
            none, or where it lies in the equal shards, or as a file, and stays.
        has_row: Whether there is a row, here or there.
        failed: Its entries among the failed samples; none when all of its images arrived.
        is_bad_line: Whether it stands for a row of the manifest that could not be read.
    """

    position: int
    lines: tuple[LedgerLine, ...]
    row: OutputRow | PublishedRow | None
    has_row: bool
    failed: tuple[Stored, ...]
    is_bad_line: bool = False


def could_have_row(
    dataset: Dataset, sample: Sample, lines: tuple[LedgerLine, ...], may_arrive: Callable[[Failure], bool]
) -> bool:
    """Whether a sample would be a row if the images that failed in that way arrived."""
    failed = {line.image for line in lines if line.failure is not None and not may_arrive(line.failure)}
    return not dataset.is_lost(sample, failed)


def merge_spool(output: Output, shard: str) -> Iterator[CommittedSample]:
    """The samples of a shard that was fetched for the first time."""
    for spooled in SpoolReader(output.layout.spool(shard)).samples():
        yield _settle(output, spooled)


def merge_retry(output: Output, shard: str, wanted: RetryFilter) -> Iterator[CommittedSample]:
    """The samples of a shard of which some were tried again, in its spool, and the others stay as they are."""
    layout = output.layout
    books = read_shard_summary(layout.ledger(shard))
    rows: Iterator[PublishedRow] = format_of(layout).read_rows(layout, shard) if books.totals.rows else iter(())
    lines = _ByPosition(read_samples(layout.ledger(shard)), lambda lines: lines[0].sample)
    failed = _ByPosition(SpoolReader(layout.failed(shard)).samples(), _position)
    retried = _ByPosition(SpoolReader(layout.spool(shard)).samples(), _position)
    for position in range(books.totals.samples):
        has_row = bool(books.has_row[position])
        before = lines.take(position) or ()
        row = next(rows, None) if has_row else None
        kept = failed.take(position)
        spooled = retried.take(position)
        if spooled is None:
            yield CommittedSample(position, before, row, has_row, () if kept is None else (*kept.images, kept.sample))
        else:
            assert kept is not None, "what is tried again was kept"
            stayed = wanted.carried_over(kept, before)
            there = frozenset(end.line.image for end in stayed if end.line.outcome == OK)
            committed = _settle(output, _add_what_was(spooled, before, stayed), there)
            # A row that nothing came to stays where it is.
            yield replace(committed, row=row) if has_row and not _is_better(committed.lines, before) else committed
    if not lines.is_empty or not failed.is_empty or not retried.is_empty or next(rows, None) is not None:
        raise ConservationError(f"shard {shard}: the retry has samples that the shard has not")


def _settle(output: Output, whole: SpooledSample, there: frozenset[int] = frozenset()) -> CommittedSample:
    """Decide on a sample.

    Args:
        output: How rows are made.
        whole: The sample, with all of its images.
        there: Those that a row of it has already, which it does not lose.
    """
    spooled = SpooledSample(whole.sample, _within(whole.images, output.max_sample_bytes, there))
    record = spooled.record(lambda end: placeholder(end.line.image) if end.jpeg_bytes else b"")
    values = output.dataset.to_row(record, output.payload)
    row = None if values is None else OutputRow(values, spooled.images)
    failed = _keep_for_retry(output, spooled, has_row=row is not None)
    is_bad_line = not record.sample.urls and record.sample.row.keys() == {BAD_LINE}
    return CommittedSample(record.sample.position, spooled.lines, row, row is not None, failed, is_bad_line)


def _within(images: Sequence[SpooledImage], most_bytes: int, there: frozenset[int]) -> tuple[SpooledImage, ...]:
    """Images of a sample; those with which it would be larger than it may be have failed.

    They are counted in their order, after those that are there already: so what came of a sample depends neither on
    which of its images was faster, nor on how often a run was interrupted.
    """
    held_bytes = sum(end.jpeg_bytes for end in images if end.line.image in there)
    within: list[SpooledImage] = []
    for end in images:
        is_there = end.line.image in there
        if is_there or held_bytes + end.jpeg_bytes <= most_bytes or not end.jpeg_bytes:
            held_bytes += 0 if is_there else end.jpeg_bytes
            needs_permission = held_bytes > MAX_SAMPLE_BYTES and end.jpeg_bytes and not is_there
            within.append(_permitted(end, Permission.MAX_SAMPLE) if needs_permission else end)
            continue
        detail = f"with it the images of its sample are larger than {most_bytes:,} bytes together (--max-sample)"
        line = replace(end.line, outcome=FailureKind.TOO_LARGE.value, width=None, height=None, format="", detail=detail)
        within.append(ImageResult(line, b""))
    return tuple(within)


def _permitted(end: SpooledImage, permission: Permission) -> SpooledImage:
    return replace(end, line=replace(end.line, permitted=tuple(sorted({*end.line.permitted, permission}))))


def _keep_for_retry(output: Output, spooled: SpooledSample, *, has_row: bool) -> tuple[Stored, ...]:
    """A sample with a failed image, and its other images where there is a row with them or a retry may make one.

    Where the output holds files, a sample of which nothing could be asked for is kept as well: it tells why.
    """
    if not spooled.sample.urls and format_of(output.layout).allows_other_files:
        return (spooled.sample,)
    if all(line.outcome == OK for line in spooled.lines):
        return ()
    if has_row or could_have_row(output.dataset, spooled.sample, spooled.lines, lambda failure: failure.may_pass):
        return (*(end for end in spooled.images if end.jpeg_bytes), spooled.sample)
    return (spooled.sample,)


def _add_what_was(
    spooled: SpooledSample, before: tuple[LedgerLine, ...], committed: tuple[SpooledImage, ...]
) -> SpooledSample:
    """The sample with what the ledger said of its images before: all requests ever made, and the same damage."""
    stayed = {end.line.image for end in committed}
    images = tuple(
        end if end.line.image in stayed else replace(end, line=_tried_again(end.line, line))
        for end, line in zip(spooled.images, before, strict=True)
    )
    return SpooledSample(spooled.sample, images)


def _tried_again(line: LedgerLine, before: LedgerLine) -> LedgerLine:
    """What the ledger says of an image that was asked for once more, after what it said before."""
    line = replace(line, attempts=min(_MOST_ATTEMPTS, line.attempts + before.attempts))
    now, then = line.failure, before.failure
    is_corrupt = now is not None and then is not None and now.is_as_damaged_as(then)
    return replace(line, outcome=FailureKind.CORRUPT.value) if is_corrupt else line


def _is_better(lines: tuple[LedgerLine, ...], before: tuple[LedgerLine, ...]) -> bool:
    """Whether an image arrived that had not."""
    return any(now.outcome == OK != line.outcome for now, line in zip(lines, before, strict=True))


def _position(spooled: SpooledSample) -> int:
    return spooled.sample.position


class _ByPosition(Generic[_Found]):
    """Values in the order of their positions, taken by position."""

    def __init__(self, values: Iterable[_Found], position: Callable[[_Found], int]) -> None:
        self._values = iter(values)
        self._position = position
        self._next = next(self._values, None)

    @property
    def is_empty(self) -> bool:
        """Whether all have been taken."""
        return self._next is None

    def take(self, position: int) -> _Found | None:
        """The value at a position, or None; positions come in ascending order."""
        if self._next is None or self._position(self._next) != position:
            return None
        taken, self._next = self._next, next(self._values, None)
        return taken
