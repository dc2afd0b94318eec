"""Reads and counts the lines of ledgers: all of them, some columns, or a row group, a few thousand lines at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datafetch.errors import raise_if_exhausted
from datafetch.model.ledger_line import LEGACY_SKIPPED_PREFIX, LedgerLine
from datafetch.model.lost_documents import LostDocumentCounter, LostDocuments
from datafetch.model.outcome import NOT_REQUESTED, OK, Failure, FailureKind, Permission
from datafetch.model.report import FailureCounts
from datafetch.store.ledger_format import LATER_COLUMNS, LINE_COLUMNS, SCHEMA, not_a_ledger, open_ledger, read_footer
from datafetch.store.shard_summary import read_shard_summary

_NULLABLE = LATER_COLUMNS | {"status", "width", "height"}
_SOME_HASH = "0" * 64
_BATCH_LINES = 4096  # converted to Python objects at a time


def read_samples(path: Path) -> Iterator[tuple[LedgerLine, ...]]:
    """The lines of each sample that has images, in the order of samples and images."""
    with open_ledger(path) as file:
        lines = (LedgerLine.from_fields(line) for batch in _batches(file, LINE_COLUMNS) for line in batch.to_pylist())
        for _, sample in groupby(lines, attrgetter("sample")):
            yield tuple(sample)


def read_keys(path: Path) -> Iterator[str]:
    """The key of each image's sample, in order; a sample with several images is repeated."""
    with open_ledger(path) as file:
        for batch in _batches(file, ["key"]):
            column: Any = batch.column("key")
            yield from column.to_pylist()


def read_failures(path: Path) -> set[Failure]:
    """The distinct failures of a ledger, by what decides whether they may pass: kind, status and a hash of a body.

    NOT_REQUESTED is among them if a sample has no other failure; otherwise a retry follows the others.
    """
    columns = ["sample", "outcome", "status", "sha256"]
    found: set[tuple[str, int | None, bool]] = set()
    not_requested, with_others = set(), set()
    with open_ledger(path) as file:
        for batch in _batches(file, columns):
            for sample, outcome, status, sha256 in zip(*(batch[name].to_pylist() for name in columns), strict=True):
                if outcome == FailureKind.NOT_REQUESTED:
                    not_requested.add(sample)
                elif outcome != OK:
                    with_others.add(sample)
                    found.add((outcome, status, bool(sha256)))
    failures = {
        Failure(FailureKind(outcome), status=status, sha256=_SOME_HASH if has_body else "")
        for outcome, status, has_body in found
    }
    return failures | {NOT_REQUESTED} if not_requested - with_others else failures


def count_failures(path: Path) -> FailureCounts:
    """Count the failed images of a published shard by reason, and those that a retry without options requests again.

    Those are the temporary ones, and what was not requested along with them, of samples that have a row or no other
    failure. Of documents that need only some of their images, others may be requested, too.
    """
    import pyarrow.compute as pc  # noqa: PLC0415 - slow to load, and a commit process does not need it

    summary = read_shard_summary(path)
    columns = ["sample", "outcome", "status", "sha256"]
    with open_ledger(path) as file:
        batches = [batch.filter(pc.not_equal(batch["outcome"], OK)) for batch in _batches(file, columns)]
    table = pa.Table.from_batches(batches, pa.schema([SCHEMA.field(name) for name in columns])).combine_chunks()
    distinct = pc.unique(_failure_keys(table))
    numbers = pc.index_in(_failure_keys(table), value_set=distinct).to_numpy()
    failures = [_failure_of(key.as_py()) for key in distinct]
    samples = table["sample"].to_numpy()
    may_pass = np.array([failure.may_pass for failure in failures], np.bool_)[numbers]
    skipped = np.array([failure.kind is FailureKind.NOT_REQUESTED for failure in failures], np.bool_)[numbers]
    has_row = np.asarray(summary.has_row, np.bool_)
    has_temporary, has_final = np.zeros_like(has_row), np.zeros_like(has_row)
    has_temporary[samples[may_pass]] = True
    has_final[samples[~may_pass & ~skipped]] = True
    is_retried = (has_temporary & (has_row | ~has_final))[samples] & (may_pass | skipped)
    return FailureCounts(_by_reason(failures, numbers), _by_reason(failures, numbers[is_retried]))


def count_unpermitted(path: Path, kind: FailureKind, permission: Permission) -> int:
    """The number of images that were requested and failed with a kind although a permission was not used."""
    import pyarrow.compute as pc  # noqa: PLC0415 - slow to load, and a commit process does not need it

    count = 0
    with open_ledger(path) as file:
        for batch in _batches(file, ["outcome", "detail", "permitted", "is_skipped"]):
            requested = without_skipped(batch)
            lines = requested.filter(pc.equal(requested["outcome"], kind.value)).to_pylist()
            count += sum(permission not in (line.get("permitted") or ()) for line in lines)
    return count


def count_lost_documents(path: Path) -> LostDocuments:
    """Count the lost documents of a published shard, whose ledger is of an earlier version and lacks their number."""
    has_row, counter = read_shard_summary(path).has_row, LostDocumentCounter()
    for lines in read_samples(path):
        if not has_row[lines[0].sample]:
            counter.add([line.outcome for line in lines])
    return counter.result()


def _failure_keys(table: pa.Table) -> Any:
    """What decides whether each failure may pass, as a text: kind, status and whether there is a hash of a body."""
    import pyarrow.compute as pc  # noqa: PLC0415 - slow to load, and a commit process does not need it

    status = pc.fill_null(pc.cast(table["status"], pa.string()), "")
    has_body = pc.if_else(pc.equal(table["sha256"], ""), "", _SOME_HASH)
    return pc.binary_join_element_wise(table["outcome"], status, has_body, " ")


def _failure_of(key: str) -> Failure:
    kind, status, sha256 = key.split(" ")
    return Failure(FailureKind(kind), status=int(status) if status else None, sha256=sha256)


def _by_reason(failures: Sequence[Failure], numbers: Any) -> Counter[str]:
    counts: Counter[str] = Counter()
    for failure, count in zip(failures, np.bincount(numbers, minlength=len(failures)).tolist(), strict=True):
        counts[failure.reason] += count
    return +counts


def without_skipped(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The lines of images other than those that were not requested because their document was lost.

    Args:
        batch: Lines with the columns ``detail`` and, if the ledger has it, ``is_skipped``.
    """
    import pyarrow.compute as pc  # noqa: PLC0415 - slow to load, and a commit process does not need it

    if "is_skipped" in batch.schema.names:
        return batch.filter(pc.invert(batch["is_skipped"]))
    return batch.filter(pc.invert(pc.starts_with(batch["detail"], LEGACY_SKIPPED_PREFIX)))


def read_columns(path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of all lines, in order, in batches of at most a few thousand lines and a few megabytes.

    Raises:
        FileNotFoundError: The ledger does not exist, perhaps no longer.
        ConfigurationError: The file is not a ledger.
    """
    try:
        with open_ledger(path) as file:
            if not {SCHEMA.field(name) for name in names if name not in LATER_COLUMNS} <= set(file.schema_arrow):
                raise pa.ArrowInvalid("other columns")
            yield from _batches(file, list(names))
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise_if_exhausted(error)
        raise not_a_ledger(path) from error


def read_selected(
    path: Path, names: Sequence[str], select: Callable[[pa.RecordBatch], pa.Array]
) -> Iterator[list[LedgerLine]]:
    """The lines that are selected by some of their columns, in order, a few thousand at a time.

    The other columns are read only where a line is selected, so that most of a large ledger is never decompressed.

    Args:
        path: The ledger.
        names: The columns that decide.
        select: Takes a batch of these columns, and returns a boolean for each of its lines.

    Raises:
        FileNotFoundError: The ledger does not exist, perhaps no longer.
        ConfigurationError: The file is not a ledger.
    """
    try:
        with open_ledger(path) as file:
            if not {SCHEMA.field(name) for name in LINE_COLUMNS if name not in LATER_COLUMNS} <= set(file.schema_arrow):
                raise pa.ArrowInvalid("other columns")
            for group in range(file.num_row_groups):
                masks = [select(batch) for batch in _group_batches(file, group, list(names))]
                if any(mask.true_count for mask in masks):
                    for mask, batch in zip(masks, _group_batches(file, group, LINE_COLUMNS), strict=True):
                        yield _lines(batch.filter(mask))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:  # a value error is an unknown permission, for example
        raise_if_exhausted(error)
        raise not_a_ledger(path) from error


def row_group_lines(path: Path) -> list[int]:
    """The number of lines in each row group of a ledger.

    Raises:
        ConfigurationError: The file is not a ledger.
    """
    footer = read_footer(path)
    return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]


class RowGroup:
    """A row group of a ledger in memory, whose lines are converted one at a time."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def line(self, number: int) -> LedgerLine:
        """The line with this number in the row group, counted from 0."""
        return LedgerLine.from_fields(self._table.slice(number, 1).to_pylist()[0])


def read_row_group(path: Path, group: int) -> RowGroup:
    """Read one row group of a ledger.

    Raises:
        ConfigurationError: The file is not a ledger, or has changed.
    """
    try:
        with open_ledger(path) as file:
            return RowGroup(file.read_row_group(group, columns=LINE_COLUMNS, use_threads=False).combine_chunks())
    except (OSError, pa.ArrowException) as error:
        raise_if_exhausted(error)
        raise not_a_ledger(path) from error


def _lines(batch: pa.RecordBatch) -> list[LedgerLine]:
    """A batch as lines.

    Raises:
        ValueError: A value is missing, or is none that datafetch writes.
    """
    if any(batch[name].null_count for name in batch.schema.names if name not in _NULLABLE):
        raise ValueError("values are missing")
    return [LedgerLine.from_fields(line) for line in batch.to_pylist()]


def _batches(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of all lines, in batches that do not extend beyond a row group."""
    for group in range(file.num_row_groups):
        yield from _group_batches(file, group, columns)


def _group_batches(file: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of the lines of a row group, in batches of the same lines whatever the columns."""
    yield from file.iter_batches(_BATCH_LINES, row_groups=[group], columns=columns, use_threads=False)
