"""What the ledgers and spools of an output add up to.

Rules: nothing is locked or written, and files may appear and vanish while they are read. A shard that has a ledger is
counted by it alone, even if its spool still exists, so that no image counts twice. Spools may contain anything.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datafetch.errors import ConfigurationError, raise_if_exhausted
from datafetch.model.outcome import OK, FailureKind
from datafetch.model.regular_file import open_regular
from datafetch.model.sample import Sample
from datafetch.monitor.host_failures import FailingHosts
from datafetch.output.formats import format_of
from datafetch.store.layout import OutputLayout, folders_of_spools
from datafetch.store.ledger_format import not_a_ledger
from datafetch.store.ledger_reader import read_columns, without_skipped
from datafetch.store.shard_summary import read_shard_counts
from datafetch.store.spool_format import SpoolRecord, read_marker, scan_records

_BATCH_LINES = 16_384  # of a spool, in memory


@dataclass(slots=True)
class OutputCounts:
    """The counts of one shard, or the sums of several.

    Attributes:
        shards_published: The number of shards that have a ledger, and whose files are in place.
        shards_open: The number of other shards that have a spool.
        samples: The number of samples that ended, including those of open shards.
        rows: The number of samples of published shards that became a row.
        dropped: The number of samples of published shards that did not.
        outcomes: The number of images that ended, by outcome.
        statuses: The number of those that failed for their HTTP status, by status.
        fetched_bytes: The size of the bodies of these images.
        written_bytes: The size of the files of published shards, as their ledgers have it.
        spooled_bytes: The size of the spools of open shards.
        hosts: The failures by host.
        damaged_ledgers: The shards whose ledger is damaged, so that nothing of them is counted.
    """

    shards_published: int = 0
    shards_open: int = 0
    samples: int = 0
    rows: int = 0
    dropped: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    fetched_bytes: int = 0
    written_bytes: int = 0
    spooled_bytes: int = 0
    hosts: FailingHosts = field(default_factory=FailingHosts)
    damaged_ledgers: list[str] = field(default_factory=list)

    def add(self, other: OutputCounts) -> None:
        """Add the counts of other shards."""
        self.shards_published += other.shards_published
        self.shards_open += other.shards_open
        self.samples += other.samples
        self.rows += other.rows
        self.dropped += other.dropped
        self.outcomes.update(other.outcomes)
        self.statuses.update(other.statuses)
        self.fetched_bytes += other.fetched_bytes
        self.written_bytes += other.written_bytes
        self.spooled_bytes += other.spooled_bytes
        self.hosts.merge(other.hosts)


def count_output(layout: OutputLayout, shards: Collection[str], spool_folders: Iterable[Path]) -> OutputCounts:
    """Count what all shards of a job have come to.

    Args:
        layout: The paths of the output.
        shards: The names of the job's shards; files of others are ignored.
        spool_folders: The folders of its jobs' spools.

    Raises:
        ResourceError: This machine has run out of descriptors or memory.
    """
    # Spools before ledgers: a shard that is published in between is seen twice and counted once. In the reverse order
    # it might not be seen at all.
    spools = _count_spools(frozenset(shards), spool_folders)
    ledgers = {path.stem for path in list_folder(layout.ledgers) if path.suffix == ".parquet"}
    total = OutputCounts()
    for shard in shards:
        try:
            counts = _count_ledger(layout, shard) if shard in ledgers else None
        except ConfigurationError:
            total.damaged_ledgers.append(shard)
            continue
        counts = counts or spools.get(shard)
        if counts is not None:
            total.add(counts)
    return total


def list_folder(folder: Path) -> list[Path]:
    """The paths in a folder, sorted; none if there is no such folder."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _count_spools(shards: frozenset[str], folders: Iterable[Path]) -> dict[str, OutputCounts]:
    """The counts of open shards, of which each may have several spools in one of the folders."""
    by_shard: dict[str, OutputCounts] = {}
    for folder in sorted(folders):
        in_folder: dict[str, OutputCounts] = {}
        for path in chain.from_iterable(map(list_folder, folders_of_spools(folder))):
            if path.suffix == ".spool" and path.stem in shards and path.is_file():
                counts = _count_spool(path)
                if counts is not None:
                    in_folder.setdefault(path.stem, OutputCounts()).add(counts)
        by_shard |= in_folder
    for counts in by_shard.values():
        counts.shards_open = 1
    return by_shard


def _count_spool(path: Path) -> OutputCounts | None:
    """Count the records of a spool that a run may be writing or deleting; None if it is gone, or is not a spool."""
    counts = OutputCounts(shards_open=1)
    try:
        with open_regular(path) as file:
            marker = read_marker(file)
            counts.spooled_bytes = os.fstat(file.fileno()).st_size
            _count_records(counts, scan_records(file, marker))
    except (OSError, ConfigurationError) as error:
        raise_if_exhausted(error)
        return None
    except (ValueError, TypeError, KeyError, struct.error):
        pass  # a damaged record, as no checksums are verified; the records before it count
    return counts


def _count_records(counts: OutputCounts, records: Iterable[SpoolRecord]) -> None:
    urls: list[str] = []
    outcomes: list[str] = []
    for record in records:
        if isinstance(record, Sample):
            counts.samples += 1
            continue
        line = record.line
        counts.outcomes[str(line.outcome)] += 1
        if line.outcome == FailureKind.HTTP_STATUS and line.status is not None:
            counts.statuses[line.status] += 1
        counts.fetched_bytes += line.body_bytes
        if line.outcome != OK and not line.is_skipped:
            urls.append(line.url)
            outcomes.append(line.outcome)
        if len(urls) == _BATCH_LINES:
            counts.hosts.count(pa.array(urls, pa.string()), pa.array(outcomes, pa.string()))
            urls, outcomes = [], []
    counts.hosts.count(pa.array(urls, pa.string()), pa.array(outcomes, pa.string()))


def _count_ledger(layout: OutputLayout, shard: str) -> OutputCounts | None:
    """Count a published shard; None if its ledger has just been deleted, or its files are not those of the ledger."""
    path = layout.ledger(shard)
    try:
        recorded = read_shard_counts(path)
        if not is_in_place(layout, shard):
            return None
        counts = OutputCounts(
            shards_published=1,
            samples=recorded.samples,
            rows=recorded.rows,
            dropped=recorded.samples - recorded.rows,
            outcomes=Counter(recorded.outcomes),
            written_bytes=recorded.written_bytes,
        )
        for batch in read_columns(path, ("url", "outcome", "status", "body_bytes", "detail", "is_skipped")):
            body_bytes: Any = pc.sum(batch["body_bytes"])
            counts.fetched_bytes += body_bytes.as_py() or 0
            counts.statuses.update(_count_statuses(batch))
            requested = without_skipped(batch)
            counts.hosts.count(requested["url"], requested["outcome"])
    except (ConfigurationError, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) or isinstance(error.__cause__, FileNotFoundError):
            return None
        raise_if_exhausted(error)
        raise not_a_ledger(path) from error
    return counts


def _count_statuses(batch: pa.RecordBatch) -> dict[int, int]:
    refused: Any = pc.drop_null(batch["status"].filter(pc.equal(batch["outcome"], FailureKind.HTTP_STATUS.value)))
    return {one["values"]: one["counts"] for one in pc.value_counts(refused).to_pylist()}


def is_in_place(layout: OutputLayout, shard: str) -> bool:
    """Whether the files of a shard that has a ledger are in the output, are being moved there, or were resharded.

    Raises:
        ConfigurationError: The file in place of the ledger is something else, or there is none any more.
    """
    if layout.reshard_record.exists():  # resharded files may have the same names
        return True
    output_format = format_of(layout)
    if output_format.is_intact(layout, shard):
        return True
    if output_format.allows_other_files:
        return False
    moving = (layout.resharded, layout.replaced, layout.retry, layout.ready / shard)
    return any(path.exists() for path in moving)
