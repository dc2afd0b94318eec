"""Everything about one sample: what became of it and why, and what became of each of its images.

Rules: nothing is locked or written. Ledgers are searched by Arrow, two columns of each; only lines that are found
become Python objects. Of many samples with the same URL the first few are explained, and the others counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datafetch.errors import ConfigurationError, raise_if_exhausted
from datafetch.model.bounds import Count
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import OK, FailureKind
from datafetch.model.regular_file import open_regular
from datafetch.monitor.image_lines import LeaveOut, read_image_lines
from datafetch.monitor.observed_output import ObservedOutput
from datafetch.output.formats import ShardFormat, format_of
from datafetch.output.reshard.numbering import NumberedSamples, RowPlace, find_row
from datafetch.output.reshard.record import read_reshard_record
from datafetch.store.shard_summary import read_shard_summary

_COLUMNS = ("key", "url")
_MAX_SAMPLES = 5
_MAX_IMAGES = 1000  # of a sample; documents have up to 256
_MAX_NAMED_IMAGES = 3
_MAX_DROPPED_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ExplainedSample:
    """What became of a sample.

    Attributes:
        shard: The shard of the manifest that it belongs to.
        position: Its position in the shard.
        key: Its key.
        has_row: Whether it became a row; None while its shard is in progress.
        why_lost: Why it became no row; empty otherwise.
        place: Where its row lies; None where it has none, or one whose place is not recorded.
        lines: The ledger lines of its images.
    """

    shard: str
    position: int
    key: str
    has_row: bool | None
    why_lost: str
    place: RowPlace | None
    lines: tuple[LedgerLine, ...]


class DroppedRecord(msgspec.Struct, frozen=True):
    """A record of a published list that is not in the trainer's list. Field names are those of ``dropped.jsonl``."""

    record: Count
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known of the samples with a key, or with an image of a URL.

    Attributes:
        samples: The first of them.
        found: The number of all of them.
        dropped: If there are none: the first records of that key that the trainer's list lacks.
    """

    samples: tuple[ExplainedSample, ...]
    found: int
    dropped: tuple[DroppedRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class _Position:
    shard: str
    sample: int


def explain(output: ObservedOutput, key_or_url: str, *, leave_out: LeaveOut) -> Explanation:
    """Find the samples with a key, or with an image whose published URL is this.

    Args:
        output: The output.
        key_or_url: The key or the URL, exactly as the manifest has it.
        leave_out: Told of each shard whose ledger is damaged.

    Raises:
        ConfigurationError: There is none.
    """
    wanted = key_or_url.encode("utf-8", "backslashreplace").decode()  # as ledgers have it
    chosen: list[_Position] = []
    found = 0
    last = None
    for position in _positions(output, wanted, leave_out):
        if position != last:
            found += 1
            if found <= _MAX_SAMPLES:
                chosen.append(position)
        last = position
    dropped = () if found else tuple(islice(_dropped(output, key_or_url), _MAX_SAMPLES))
    if not found and not dropped:
        raise ConfigurationError(
            f"no sample of {output.layout.out} has the key {key_or_url!r}, or an image whose published URL it is; "
            f"{_what_keys_look_like(output)}samples that have no image, whose images have no outcome yet, or that were "
            "not reached yet, can't be found"
        )
    return Explanation(tuple(_explain_sample(output, position, leave_out) for position in chosen), found, dropped)


def _what_keys_look_like(output: ObservedOutput) -> str:
    """The first key of an output, as an example; empty if there is none yet."""
    found = read_image_lines(output, ("key",), lambda lines: pc.is_valid(lines["key"]), leave_out=lambda _: None)
    example = next((lines.lines[0].key for lines in found if lines.lines), "")
    return f"keys here look like {example!r}, and 'datafetch failures' lists some; " if example else ""


def _positions(output: ObservedOutput, wanted: str, leave_out: LeaveOut) -> Iterator[_Position]:
    """The samples of all images that are found, in order; one for each image."""

    def select(lines: pa.RecordBatch) -> pa.Array:
        return pc.or_(pc.equal(lines["key"], wanted), pc.equal(lines["url"], wanted))

    for found in read_image_lines(output, _COLUMNS, select, leave_out=leave_out):
        for line in found.lines:
            yield _Position(found.shard, line.sample)


def _explain_sample(output: ObservedOutput, position: _Position, leave_out: LeaveOut) -> ExplainedSample:
    def select(lines: pa.RecordBatch) -> pa.Array:
        return pc.equal(lines["sample"], position.sample)

    parts = list(read_image_lines(output, ("sample",), select, [position.shard], leave_out=leave_out))
    lines = tuple(islice(chain.from_iterable(part.lines for part in parts), _MAX_IMAGES))
    is_published = any(part.is_published for part in parts)
    has_row = _has_row(output, position) if is_published else None
    return ExplainedSample(
        shard=position.shard,
        position=position.sample,
        key=lines[0].key if lines else "",
        has_row=has_row,
        why_lost=_why_lost(output, lines) if has_row is False else "",
        place=_place(output, position) if has_row else None,
        lines=lines,
    )


def _has_row(output: ObservedOutput, position: _Position) -> bool:
    has_row = read_shard_summary(output.layout.ledger(position.shard)).has_row
    return position.sample < len(has_row) and bool(has_row[position.sample])


def _place(output: ObservedOutput, position: _Position) -> RowPlace | None:
    """Where a row lies, in an output with files of rows; None if that is not known."""
    layout = output.layout
    output_format = format_of(layout)
    if not isinstance(output_format, ShardFormat):
        return None
    if layout.reshard_record.exists():
        return _place_in_resharded(output, position)
    has_row = read_shard_summary(layout.ledger(position.shard)).has_row
    return RowPlace(output_format.file_with_rows(position.shard), int(np.count_nonzero(has_row[: position.sample])))


def _place_in_resharded(output: ObservedOutput, position: _Position) -> RowPlace | None:
    try:
        record = read_reshard_record(output.layout)
        if record is None or position.shard not in record.samples:
            return None
        samples = NumberedSamples.read(output.layout, [shard for shard in output.job.shards if shard in record.samples])
        return find_row(samples, record, position.shard, position.sample)
    except (ConfigurationError, OSError) as error:  # a record or a ledger is damaged, or a run is replacing them
        raise_if_exhausted(error)
        return None


def _why_lost(output: ObservedOutput, lines: tuple[LedgerLine, ...]) -> str:
    failed = [line for line in lines if line.outcome != OK]
    if not failed:
        return "all of its images arrived, but without another part of it there is no row"
    causes = [f"image {line.image} ({outcome_text(line)})" for line in failed if not line.is_skipped]
    named = ", ".join(causes[:_MAX_NAMED_IMAGES])
    others = f" and {len(causes) - _MAX_NAMED_IMAGES:,} more" if len(causes) > _MAX_NAMED_IMAGES else ""
    if len(lines) == 1:
        return f"its image failed ({outcome_text(failed[0])})"
    if not causes:
        return "its images were not requested"
    least = output.job.fields.get("keep_at_least")
    needed = f"{least} must arrive (--keep-at-least)" if isinstance(least, int) else "all must arrive"
    skipped = len(failed) - len(causes)
    unasked = f"; the rest ({skipped:,}) was then not requested" if skipped else ""
    return f"of its {len(lines):,} images {needed}, and {named}{others} failed{unasked}"


def outcome_text(line: LedgerLine) -> str:
    """An outcome with its HTTP status, if it is for that that the image failed."""
    return f"{line.outcome} {line.status}" if line.outcome == FailureKind.HTTP_STATUS else line.outcome


def _dropped(output: ObservedOutput, key: str) -> Iterator[DroppedRecord]:
    """The records of a key in ``dropped.jsonl``, on whose content nothing depends; none if there is no such file."""
    try:
        with open_regular(output.layout.dropped) as file:
            while line := file.readline(_MAX_DROPPED_LINE_BYTES):
                record = _parse_dropped(line)
                if record is not None and record.key == key:
                    yield record
    except OSError:
        return


def _parse_dropped(line: bytes) -> DroppedRecord | None:
    try:
        return msgspec.json.decode(line, type=DroppedRecord)
    except (ValueError, RecursionError):
        return None
