"""Reshard the output of a run for the ranks that will read it, and again when a retry has added rows.

Theory of operation: the rows are numbered in the order of the manifest's samples. Their order in the resharded
files is a permutation that depends on the number of rows and a seed alone. Once these files have replaced the
manifest's shards, ``equal.json`` has the samples that are in them. So the permutation can be inverted to find the
sample of each row, and the rows that a retry added (in ``added``) can be combined with them in manifest order and
permuted again. The result is byte for byte what a single run would have written that received all of these images at
once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from datafetch.errors import ConfigurationError, ConservationError
from datafetch.model.wording import counted
from datafetch.output.formats import ROWS_SUFFIX
from datafetch.output.reshard.copy import ProgressMonitor, reshard_rows
from datafetch.output.reshard.plan import Int64s, Plan, Source, permutation
from datafetch.output.reshard.record import ReshardRecord, read_reshard_record
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger import Bools, pack_bools, read_shard_summary, unpack_bools

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Samples:
    """All samples of an output, in manifest order.

    Attributes:
        shards: Names of the manifest's shards, in order.
        ends: For each shard, the number of samples up to its end.
        has_row: For each sample, whether it has a row.
        is_own: For each sample, whether its row is in the file that the last commit of its shard wrote.
    """

    shards: tuple[str, ...]
    ends: Int64s
    has_row: Bools
    is_own: Bools

    @classmethod
    def read(cls, layout: OutputLayout, shards: Sequence[str]) -> _Samples:
        """Read the ledgers of the shards."""
        summaries = [read_shard_summary(layout.ledger(shard)) for shard in shards]
        return cls(
            tuple(shards),
            np.cumsum([summary.totals.samples for summary in summaries], dtype=np.int64),
            np.concatenate([summary.has_row for summary in summaries]),
            np.concatenate([summary.own_rows for summary in summaries]),
        )

    def spans(self) -> Iterator[tuple[str, slice]]:
        """Each shard with the range of its samples."""
        for shard, start, end in zip(self.shards, (0, *self.ends[:-1]), self.ends, strict=True):
            yield shard, slice(int(start), int(end))


def reshard_output(layout: OutputLayout, shards: Sequence[str], plan: Plan, monitor: ProgressMonitor) -> bool:
    """Reshard an output, unless that is done and no retry has added rows since.

    Args:
        layout: The paths of the output. Every shard of the manifest is published, and the lock is held.
        shards: Names of the manifest's shards, in order.
        plan: How it is resharded.
        monitor: Observes the work, and can stop it.

    Returns:
        True when it is done, or if there are too few rows for it; False if it was stopped. The same call resumes it.

    Raises:
        ConservationError: The shards do not hold the rows that the ledgers list.
        ConfigurationError: The output is resharded already, and there are too few rows for this number of ranks.
        ResourceError: The disk is full or can't be written; the same call resumes the work.
    """
    before = read_reshard_record(layout)
    if before is not None and before.plan == plan and not any(layout.added.glob(f"*{ROWS_SUFFIX}")):
        return True
    samples = _Samples.read(layout, shards)
    rows = int(samples.has_row.sum())
    if before is None and rows < plan.ranks.min_rows:
        _log.warning(
            "%s %s too few for %s, which take%s at least %s: the shards stay as the manifest cut them",
            counted(rows, "row"),
            "is" if rows == 1 else "are",
            counted(plan.ranks.world_size, "rank"),
            "s" if plan.ranks.world_size == 1 else "",
            f"{plan.ranks.min_rows:,}",
        )
        return True
    position_of_sample = np.full(len(samples.has_row), -1, np.int64)
    position_of_sample[samples.has_row] = permutation(rows, plan.shuffle)
    sources = list(_sources(layout, samples, before, position_of_sample))
    if sum(source.copied_rows for source in sources) != rows:
        raise ConservationError(f"{layout.out}: the shards do not hold the {rows:,} rows that their ledgers list")
    packed = {shard: pack_bools(samples.has_row[span]).decode() for shard, span in samples.spans()}
    return reshard_rows(layout, sources, plan=plan, samples=packed, monitor=monitor)


def _sources(
    layout: OutputLayout, samples: _Samples, before: ReshardRecord | None, position_of_sample: Int64s
) -> Iterator[Source]:
    """The files that hold the rows, with the new positions; rows that a retry has replaced are left out."""
    is_in_file = np.copy(samples.is_own)
    folder = layout.out if before is None else layout.added
    for shard, span in samples.spans():
        if not (folder / f"{shard}{ROWS_SUFFIX}").exists():
            is_in_file[span] = False
    if before is not None:
        sample_of_row = _samples_by_position(samples, before)
        positions = np.where(is_in_file[sample_of_row], -1, position_of_sample[sample_of_row])
        first = 0
        for name, file in before.files.items():
            yield Source(layout.out / f"{name}{ROWS_SUFFIX}", file.rows, positions[first : first + file.rows])
            first += file.rows
    for shard, span in samples.spans():
        positions = position_of_sample[span][is_in_file[span]]
        if len(positions):
            yield Source(folder / f"{shard}{ROWS_SUFFIX}", len(positions), positions)


def _samples_by_position(samples: _Samples, before: ReshardRecord) -> Int64s:
    """For each row of the resharded files, in order, the number of its sample: the inverse permutation."""
    try:
        has_row = [unpack_bools(before.samples[shard], span.stop - span.start) for shard, span in samples.spans()]
    except (KeyError, ValueError) as error:
        raise ConfigurationError("equal.json does not list its samples; --fresh starts over") from error
    sample_of_row = np.flatnonzero(np.concatenate(has_row))
    by_position = np.empty(len(sample_of_row), np.int64)
    by_position[permutation(len(sample_of_row), before.plan.shuffle)] = sample_of_row
    return by_position
