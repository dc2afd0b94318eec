"""Merge a spool into the samples of a shard: of a new shard, or of a published one after a retry.

Rules: everything is streamed in the order of positions. What a sample becomes is decided here and nowhere else.

Theory of operation: ``merge_spool`` turns each sample of a spool into ledger lines, a row (unless the dataset drops the
sample) and, if an image failed, the entries that a later retry needs: the sample, and those of its images that arrived.

``merge_retry`` reads four sequences side by side, each in the order of positions: the shard's own rows (after
resharding, those that were added since) and its ledger, the stored samples with failed images, and the spool of the
retry. For each position of the shard:

* A sample that is not in the retry's spool keeps its ledger lines, its row, byte for byte, and its stored entries.
* A sample in the spool is built again from all of its images. The spool begins with the results that the retry did not
  fetch again (``RetryFilter.images_to_keep``), so it holds every image of the sample. For images that were fetched
  again, the attempts add up, and an image that was truncated twice with the same bytes is final (``corrupt``).
* A row never becomes worse. An image that the row holds is counted against ``--max-sample`` before new ones, so new
  images can't displace it, and the old row is kept unless an image arrived that had failed before.

``merge_repair`` does the same with samples whose row is lost: their rows are made again, whatever became of the images.

The result is a function of these four inputs alone, so a merge that was interrupted can be repeated with the same
bytes. A sample that is in one of the sequences, but not in the shard, means that state was lost, and stops the merge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeAlias, TypeVar

from datafetch.errors import ConservationError
from datafetch.model.dataset import Dataset
from datafetch.model.kinds import CounterName, Payload
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import OK, FailureKind, Permission
from datafetch.model.sample import BAD_LINE, REFUSED, Sample
from datafetch.output.formats import PublishedRow, format_of
from datafetch.output.repair import images_to_keep
from datafetch.output.retry_filter import Retry, RetryFilter
from datafetch.output.row import OutputRow, placeholder
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_reader import read_samples
from datafetch.store.shard_summary import read_shard_summary
from datafetch.store.spool_format import ImageResult, LazySpoolRecord, SpooledImage
from datafetch.store.spool_reader import SpooledSample, SpoolReader

_MAX_ATTEMPTS = 127  # the ledger's column has 8 bits with a sign
DEFAULT_MAX_SAMPLE_BYTES = 256 * 1024 * 1024
"""How large the images of one sample may be together by default; what exceeds it needs ``Permission.MAX_SAMPLE``."""

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Output:
    """What all shards of a run have in common: how records become rows, and where they are written.

    Attributes:
        dataset: The dataset, which builds the rows.
        layout: The paths of the output.
        payload: How a row holds its images.
        retry: The retry that the run is; None for a run that is not one.
        max_sample_bytes: How large the images of one sample may be together.
        replaces_files: Whether files of others are replaced that have the names of the output's.
        is_repair: Whether the run writes the rows again that were in lost files of a resharded output.
    """

    dataset: Dataset
    layout: OutputLayout
    payload: Payload = Payload.BASE64
    retry: Retry | None = None
    max_sample_bytes: int = DEFAULT_MAX_SAMPLE_BYTES
    replaces_files: bool = True
    is_repair: bool = False


@dataclass(frozen=True, slots=True)
class MergedSample:
    """What a shard is to hold of one sample.

    Attributes:
        position: Its 0-based position in the shard.
        lines: Its lines of the ledger.
        row: The row to write, new or copied; it must be written before the next sample is taken. None if there is no
            row, or if a published row stays where it is, in a resharded file or as a file of its own.
        has_row: Whether the sample has a row, to be written or already published.
        kept_for_retry: What is kept for a later retry; empty if all of its images arrived.
        counted_as: What a sample without images is counted as in the shard's notes, if it stands for a record of the
            manifest that could not be read or was refused.
        is_unselected: Whether it became a row that the id list does not select, so that it has none.
    """

    position: int
    lines: tuple[LedgerLine, ...]
    row: OutputRow | PublishedRow | None
    has_row: bool
    kept_for_retry: tuple[LazySpoolRecord, ...]
    counted_as: CounterName | None = None
    is_unselected: bool = False


def could_have_row(dataset: Dataset, sample: Sample, lines: tuple[LedgerLine, ...], retry_filter: RetryFilter) -> bool:
    """Whether a sample would become a row if all images arrived that a retry with this filter fetches again."""
    selected = retry_filter.select(lines)
    return not dataset.is_lost(sample, {line.image for line in lines if line.outcome != OK} - selected)


def merge_spool(output: Output, shard: str) -> Iterator[MergedSample]:
    """The samples of a shard that is committed from its spool alone."""
    for spooled in SpoolReader(*output.layout.spools(shard)).samples():
        yield _merge_sample(output, spooled)


def merge_retry(output: Output, shard: str, retry_filter: RetryFilter) -> Iterator[MergedSample]:
    """The samples of a published shard after a retry, whose spool holds those that were retried.

    Raises:
        ConservationError: The retry or the stored state has samples that the shard lacks.
    """

    def keep(stored: SpooledSample | None, lines: tuple[LedgerLine, ...]) -> tuple[SpooledImage, ...]:
        assert stored is not None, "every sample that can be retried was stored"
        return retry_filter.images_to_keep(stored, lines)

    return _merge_published(output, shard, keep, has_rows=True)


def merge_repair(output: Output, shard: str) -> Iterator[MergedSample]:
    """The samples of a published shard after a repair, whose spool holds those whose row was lost.

    Raises:
        ConservationError: The repair or the stored state has samples that the shard lacks.
    """
    return _merge_published(output, shard, images_to_keep, has_rows=False)


def _merge_published(output: Output, shard: str, keep: _Keep, *, has_rows: bool) -> Iterator[MergedSample]:
    """The samples of a published shard, of which some are in a spool.

    Args:
        output: How rows are made.
        shard: The shard.
        keep: Which results of a sample in the spool were not fetched again, given what was stored of it.
        has_rows: Whether the samples in the spool that have a row still have it, so that it can stay.
    """
    layout, output_format = output.layout, format_of(output.layout)
    summary = read_shard_summary(layout.ledger(shard))
    rows: Iterator[PublishedRow] = output_format.read_rows(layout, shard) if summary.totals.rows else iter(())
    lines = ByPosition(read_samples(layout.ledger(shard)), lambda lines: lines[0].sample)
    kept_samples = ByPosition(SpoolReader(layout.kept_for_retry(shard)).samples(), _position)
    retried = ByPosition(SpoolReader(*layout.spools(shard)).samples(), _position)
    for position in range(summary.totals.samples):
        has_row = bool(summary.has_row[position])
        lines_before = lines.take(position) or ()
        row = next(rows, None) if summary.own_rows[position] else None
        stored = kept_samples.take(position)
        spooled = retried.take(position)
        if spooled is None:
            stored_records = () if stored is None else (*stored.images, stored.sample)
            yield MergedSample(position, lines_before, row, has_row, stored_records)
        else:
            kept = keep(stored, lines_before)
            in_row = frozenset(image.line.image for image in kept if image.line.outcome == OK)
            merged = _merge_sample(output, _add_history(spooled, lines_before, kept), in_row)
            is_old_row_right = not output_format.rows_have_outcomes and not _has_new_image(merged.lines, lines_before)
            keeps_row = has_row and has_rows and is_old_row_right
            yield replace(merged, row=row) if keeps_row else merged
    if not lines.is_empty or not kept_samples.is_empty or not retried.is_empty or next(rows, None) is not None:
        raise ConservationError(f"shard {shard}: the retry has samples that the shard lacks")


def _merge_sample(output: Output, complete: SpooledSample, in_row: frozenset[int] = frozenset()) -> MergedSample:
    """Turn a sample with the results of all of its images into what the shard is to hold of it.

    Args:
        output: How rows are made.
        complete: The sample, with all of its images.
        in_row: Images that its published row holds already, by number; they are never removed from it.
    """
    spooled = SpooledSample(complete.sample, _enforce_size_limit(complete.images, output.max_sample_bytes, in_row))
    record = spooled.record(lambda image: placeholder(image.line.image) if image.jpeg_bytes else b"")
    values = output.dataset.to_row(record, output.payload)
    row = None if values is None else OutputRow(values, spooled.images)
    kept_for_retry = _records_for_retry(output, spooled, has_row=row is not None)
    counted_as = _counted_as(record.sample)
    return MergedSample(record.sample.position, spooled.lines, row, row is not None, kept_for_retry, counted_as)


def _counted_as(sample: Sample) -> CounterName | None:
    if sample.urls or len(sample.row) != 1:
        return None
    (reason,) = sample.row
    return {BAD_LINE: CounterName.BAD_LINES, REFUSED: CounterName.REFUSED}.get(reason)


def _enforce_size_limit(
    images: Sequence[SpooledImage], max_bytes: int, in_row: frozenset[int]
) -> tuple[SpooledImage, ...]:
    """Turn those images into failures that would make their sample larger than the limit.

    Images of a published row are counted first, then the others in the order of the sample. So the result depends
    neither on which image arrived first nor on how often the run was interrupted.
    """
    total_bytes = sum(image.jpeg_bytes for image in images if image.line.image in in_row)
    limited: list[SpooledImage] = []
    for image in images:
        is_in_row = image.line.image in in_row
        if is_in_row or total_bytes + image.jpeg_bytes <= max_bytes or not image.jpeg_bytes:
            total_bytes += 0 if is_in_row else image.jpeg_bytes
            needs_permission = total_bytes > DEFAULT_MAX_SAMPLE_BYTES and image.jpeg_bytes and not is_in_row
            limited.append(_add_permission(image, Permission.MAX_SAMPLE) if needs_permission else image)
            continue
        detail = f"with it the images of its sample are larger than {max_bytes:,} bytes together (--max-sample)"
        line = replace(
            image.line, outcome=FailureKind.TOO_LARGE.value, width=None, height=None, format="", detail=detail
        )
        limited.append(ImageResult(line, b""))
    return tuple(limited)


def _add_permission(image: SpooledImage, permission: Permission) -> SpooledImage:
    return replace(image, line=replace(image.line, permitted=tuple(sorted({*image.line.permitted, permission}))))


def _records_for_retry(output: Output, spooled: SpooledSample, *, has_row: bool) -> tuple[LazySpoolRecord, ...]:
    """What a retry needs of a sample with a failed image; nothing if all images arrived.

    That is the sample, and its other images if they are in a row or if a retry with default options could complete
    one. If the output holds image files, a sample without URLs is stored as well, because it has the reason why.
    """
    if not spooled.sample.urls and format_of(output.layout).allows_other_files:
        return (spooled.sample,)
    if all(line.outcome == OK for line in spooled.lines):
        return ()
    if has_row or could_have_row(output.dataset, spooled.sample, spooled.lines, RetryFilter()):
        return (*(image for image in spooled.images if image.line.outcome == OK), spooled.sample)
    return (spooled.sample,)


def _add_history(
    spooled: SpooledSample, lines_before: tuple[LedgerLine, ...], kept: tuple[SpooledImage, ...]
) -> SpooledSample:
    """Combine the results of a retry with the ledger lines from before it.

    Args:
        spooled: The sample with the results of all of its images.
        lines_before: The ledger lines of the same images.
        kept: Those of the images that were not fetched again.
    """
    kept_numbers = {image.line.image for image in kept}
    images = tuple(
        image if image.line.image in kept_numbers else replace(image, line=_add_line_history(image.line, line_before))
        for image, line_before in zip(spooled.images, lines_before, strict=True)
    )
    return SpooledSample(spooled.sample, images)


def _add_line_history(line: LedgerLine, line_before: LedgerLine) -> LedgerLine:
    """The ledger line of an image that was fetched again: with all attempts, and final if damaged in the same way."""
    line = replace(line, attempts=min(_MAX_ATTEMPTS, line.attempts + line_before.attempts))
    failure, failure_before = line.failure, line_before.failure
    is_corrupt = failure is not None and failure_before is not None and failure.is_as_damaged_as(failure_before)
    return replace(line, outcome=FailureKind.CORRUPT.value) if is_corrupt else line


def _has_new_image(lines: tuple[LedgerLine, ...], lines_before: tuple[LedgerLine, ...]) -> bool:
    """Whether an image arrived that had failed before."""
    return any(now.outcome == OK != before.outcome for now, before in zip(lines, lines_before, strict=True))


def _position(spooled: SpooledSample) -> int:
    return spooled.sample.position


_Keep: TypeAlias = Callable[[SpooledSample | None, tuple[LedgerLine, ...]], tuple[SpooledImage, ...]]


class ByPosition(Generic[_Value]):
    """A sequence of values in ascending order of position, which need not have one for each position."""

    def __init__(self, values: Iterable[_Value], position: Callable[[_Value], int]) -> None:
        self._values = iter(values)
        self._position = position
        self._next = next(self._values, None)

    @property
    def is_empty(self) -> bool:
        """Whether all values have been taken."""
        return self._next is None

    def take(self, position: int) -> _Value | None:
        """Take the value at a position; None if there is none. To be called in ascending order of position."""
        if self._next is None or self._position(self._next) != position:
            return None
        taken, self._next = self._next, next(self._values, None)
        return taken
