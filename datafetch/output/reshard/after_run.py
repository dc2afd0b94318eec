"""Reshard the output of a run for the ranks that will read it, and again when a retry has added rows.

Theory of operation: the rows are numbered in the order of the manifest's samples. Their order in the resharded
files is a permutation that depends on the number of rows and a seed alone. Once these files have replaced the
manifest's shards, ``equal.json`` has the samples that are in them. So the permutation can be inverted to find the
sample of each row (``numbering``), and the rows that a retry or a repair added (in ``added``) can be combined with
them in manifest order and permuted again. The result is byte for byte what a single run would have written that
received all of these images at once.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from datafetch.errors import ConfigurationError, ConservationError
from datafetch.model.fields import invalid
from datafetch.model.wording import counted
from datafetch.output.formats import ROWS_SUFFIX
from datafetch.output.reshard.before_repair import keep_damaged, undo_repair
from datafetch.output.reshard.copy import ProgressMonitor, reshard_rows
from datafetch.output.reshard.numbering import NumberedSamples
from datafetch.output.reshard.plan import Int64s, Plan, Source, permutation
from datafetch.output.reshard.record import ReshardRecord, read_reshard_record
from datafetch.store.layout import OutputLayout
from datafetch.store.packed_bools import pack_bools

_log = logging.getLogger(__name__)


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
        ConfigurationError: The output is resharded already, and there are too few rows for this number of ranks. If a
            repair could not make more, it is undone.
        ResourceError: The disk is full or can't be written; the same call resumes the work.
    """
    before = read_reshard_record(layout)
    lost = frozenset() if before is None else frozenset(before.missing_files(layout))
    if before is not None and before.plan == plan and not lost and not any(layout.added.glob(f"*{ROWS_SUFFIX}")):
        return True
    samples = NumberedSamples.read(layout, shards)
    rows = int(samples.has_row.sum())
    if before is None and rows < plan.ranks.min_rows:
        _log.warning(
            "%s %s too few for %s, which take%s at least %s: the shards stay as the manifest cut them%s",
            counted(rows, "row"),
            "is" if rows == 1 else "are",
            counted(plan.ranks.world_size, "rank"),
            "s" if plan.ranks.world_size == 1 else "",
            f"{plan.ranks.min_rows:,}",
            f"; --world-size {most} is the most that they allow" if (most := rows // plan.ranks.step) else "",
        )
        return True
    if before is not None and lost and rows < plan.ranks.min_rows:
        undo_repair(layout)
        raise invalid(
            plan.ranks,
            f"without those that can't be fetched any more, {rows:,} rows are too few for {{world_size}} "
            f"{plan.ranks.world_size}, which takes {plan.ranks.min_rows:,} at least; nothing was changed: put back a "
            f"copy of the shards that {layout.out} has lost, or run the same command again when their images can be "
            "fetched",
        )
    position_of_sample = np.full(len(samples.has_row), -1, np.int64)
    position_of_sample[samples.has_row] = permutation(rows, plan.shuffle)
    sources = list(_sources(layout, samples, before, lost, position_of_sample))
    if sum(source.copied_rows for source in sources) != rows:
        raise ConservationError(f"{layout.out}: the shards do not hold the {rows:,} rows that their ledgers list")
    keep_damaged(layout, lost)
    packed = {shard: pack_bools(samples.has_row[span]).decode() for shard, span in samples.spans()}
    return reshard_rows(layout, sources, plan=plan, samples=packed, monitor=monitor)


def locate_rows(layout: OutputLayout, shards: Sequence[str]) -> list[Source]:
    """The files that hold the rows of an output, resharded or not; their positions are numbers of samples.

    Args:
        layout: The paths of the output.
        shards: Names of its published shards, in order. Samples are numbered from 0, across all of them.

    Raises:
        ConfigurationError: The record of resharding is damaged or has other shards, or rows that a retry has added are
            missing.
    """
    if not shards:
        return []
    samples, before = NumberedSamples.read(layout, shards), read_reshard_record(layout)
    lost = frozenset() if before is None else frozenset(before.missing_files(layout))
    sources = list(_sources(layout, samples, before, lost, np.arange(len(samples.has_row), dtype=np.int64)))
    if before is not None and sum(source.copied_rows for source in sources) != int(samples.has_row.sum()):
        raise ConfigurationError(f"{layout.out}: the shards do not hold the rows that their ledgers list")
    return sources


def _sources(
    layout: OutputLayout,
    samples: NumberedSamples,
    before: ReshardRecord | None,
    lost: Collection[str],
    position_of_sample: Int64s,
) -> Iterator[Source]:
    """The files that hold the rows, with the new positions; rows that were fetched again are left out, and lost files.

    A repair has fetched the rows of lost files again, or their ledgers don't list them any more; if not, rows will be
    missing.
    """
    folder = layout.out if before is None else layout.added
    is_in_file = samples.are_in(layout, is_resharded=before is not None)
    if before is not None:
        sample_of_row = samples.by_position(before)
        positions = np.where(is_in_file[sample_of_row], -1, position_of_sample[sample_of_row])
        first = 0
        for name, file in before.files.items():
            if name not in lost:
                yield Source(layout.out / f"{name}{ROWS_SUFFIX}", file.rows, positions[first : first + file.rows])
            first += file.rows
    for shard, span in samples.spans():
        positions = position_of_sample[span][is_in_file[span]]
        if len(positions):
            yield Source(folder / f"{shard}{ROWS_SUFFIX}", len(positions), positions)
