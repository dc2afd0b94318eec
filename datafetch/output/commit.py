"""Commit a shard: turn its complete spool into the files that the trainer reads.

Theory of operation: a shard goes through three states, each of which is entered by one rename.

1. *In progress*: the files are written to ``unpublished/<shard>``, checked and brought to disk. They are a function of
   the spool alone (after a retry, of the spool and the published shard), so if the process is killed, the next run
   discards them and writes the same bytes again.
2. *Committed*: the folder is renamed to ``ready/<shard>``. From here on there is no way back: this process, or the next
   run (``complete_commits``), moves its files to their final paths. A file that is no longer in ``ready`` has been
   moved already and is skipped, so this can be interrupted and resumed anywhere.
3. *Published*: all files have been moved, in an order that is safe at each moment: rows before their count, and the
   ledger last. The existence of the ledger marks the shard as published, and only then may its spool be deleted.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from datafetch.errors import ResourceError
from datafetch.model.kinds import Loader
from datafetch.model.ledger_line import ShardCounts
from datafetch.output.formats import format_of
from datafetch.output.merge import MergedSample, Output, merge_repair, merge_retry, merge_spool
from datafetch.output.row import OutputRow
from datafetch.output.tally import ShardTally
from datafetch.store.atomic import make_folder, publish, sync
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_writer import LedgerWriter
from datafetch.store.shard_summary import FileCheck, read_shard_summary
from datafetch.store.spool_writer import SpoolWriter


@dataclass(frozen=True, slots=True)
class Commit:
    """A shard to commit.

    Attributes:
        output: How records become rows, and where they are written.
        shard: The shard's name.
        samples: The number of samples that the shard must have, whether they are retried or not.
        notes: What was counted while the manifest was scanned, by ``CounterName``; ignored in a retry, which keeps what
            the ledger has.
        row_numbers: Which of the shard's rows are selected, counted from 0; None selects all.
    """

    output: Output
    shard: str
    samples: int
    notes: Mapping[str, int] = field(default_factory=dict)
    row_numbers: frozenset[int] | None = None


CommitShard: TypeAlias = Callable[[Commit], Awaitable[ShardCounts]]
"""Commits a shard and returns its counts; raises the errors of ``commit_shard``."""


def commit_shard(commit: Commit) -> ShardCounts:
    """Write a shard from its complete spool, check it, and publish it.

    A shard without rows consists of its ledger alone, because the trainer would count an empty pickle as a shard.

    Raises:
        ResourceError: The disk is full or can't be written. The spool is unchanged.
        ConservationError: Samples or images were lost or counted twice. Nothing is published.
        ConfigurationError: A file of others would be replaced. Nothing is published.
    """
    layout = commit.output.layout
    try:
        folder = layout.unpublished / commit.shard
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        totals = _write(commit, folder)
        if not totals.rows and not layout.reshard_record.exists():  # resharded files may have the same names
            for path in format_of(layout).files_of(layout, commit.shard):  # left over, without a ledger
                path.unlink(missing_ok=True)
        for path in folder.iterdir():
            sync(path)
        sync(folder)
        if not commit.output.replaces_files:  # as late as possible
            format_of(layout).refuse_other_files(layout, commit.shard, folder)
        make_folder(layout.ready)
        folder.rename(layout.ready / commit.shard)
        sync(layout.ready)
        publish_ready(layout, commit.shard)
    except OSError as error:
        raise ResourceError.from_disk_error(error, f"write shard {commit.shard} to {layout.out}") from error
    return totals


def publish_ready(layout: OutputLayout, shard: str) -> None:
    """Publish the files of a committed shard, the ledger last; those that were published before a kill are skipped."""
    ready = layout.ready / shard
    rows = layout.added if layout.reshard_record.exists() else layout.out
    format_of(layout).publish(layout, shard, ready, rows)
    kept, ledger = layout.kept_for_retry(shard), layout.ledger(shard)
    # Under its final name a ledger was left by an earlier version, since the format has taken its own files.
    for unpublished, path in (
        (ready / kept.name, kept),
        (_unpublished_ledger(ready, shard), ledger),
        (ready / ledger.name, ledger),
    ):
        if unpublished.exists():
            make_folder(path.parent)
            publish(unpublished, path)
    ready.rmdir()


def _unpublished_ledger(folder: Path, shard: str) -> Path:
    """The ledger in a folder with the files of a shard, of which one may have the name that the ledger gets."""
    return folder / f"{shard}.ledger"


def complete_commits(layout: OutputLayout, shards: Collection[str] | None = None) -> None:
    """Publish those of these shards that earlier runs had committed when they were killed; None is all."""
    if layout.ready.exists():
        for folder in sorted(layout.ready.iterdir()):
            if shards is None or folder.name in shards:
                publish_ready(layout, folder.name)


def _write(commit: Commit, folder: Path) -> ShardCounts:
    output, shard, retry = commit.output, commit.shard, commit.output.retry
    if retry is None and not output.is_repair:
        samples, notes, retry_number = merge_spool(output, shard), commit.notes, 0
    else:
        before = read_shard_summary(output.layout.ledger(shard))
        notes, retry_number = before.totals.notes, before.retry if retry is None else retry.number
        samples = merge_repair(output, shard) if retry is None else merge_retry(output, shard, retry.retry_filter)
    are_documents = output.dataset.loader is Loader.MMC4
    tally = ShardTally(shard, commit.samples, notes=notes, retry=retry_number, are_documents=are_documents)
    writer = format_of(output.layout).open_writer(output.layout, shard, folder, is_retry=retry is not None)
    with (
        closing(writer),
        LedgerWriter(_unpublished_ledger(folder, shard), shard) as ledger,
        SpoolWriter(folder / output.layout.kept_for_retry(shard).name) as kept,
    ):
        for merged in _select_rows(samples, commit.row_numbers):
            tally.add(merged)
            ledger.write(merged.lines)
            kept.write(*merged.kept_for_retry)
            if isinstance(merged.row, OutputRow):
                writer.write_row(merged.row)
            elif merged.row is not None:
                writer.copy_row(merged.row)
        writer.finish()
        writer.check(tally.own_rows)
        summary = tally.summarize(writer.written_bytes, ledger.lines)
        ledger.finish(summary, _checks(folder, writer.checksums()))
    return summary.totals


def _checks(folder: Path, checksums: Mapping[str, int]) -> dict[str, FileCheck]:
    """The files that are there, as they were written; without rows, there are none."""
    paths = {name: folder / name for name in checksums}
    return {name: FileCheck(path.stat().st_size, checksums[name]) for name, path in paths.items() if path.exists()}


def _select_rows(samples: Iterable[MergedSample], row_numbers: frozenset[int] | None) -> Iterator[MergedSample]:
    """All samples, but without the rows that are not selected."""
    if row_numbers is None:
        yield from samples
        return
    rows = 0
    for merged in samples:
        is_selected = not merged.has_row or rows in row_numbers
        rows += merged.has_row
        yield (
            merged if is_selected else replace(merged, row=None, has_row=False, kept_for_retry=(), is_unselected=True)
        )
