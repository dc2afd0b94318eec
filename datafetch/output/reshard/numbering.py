"""Which sample the row at each position of a resharded output belongs to, and so which samples a lost file takes along.

Theory of operation: the rows are numbered in the order of the manifest's samples, and their order in the resharded
files is a permutation that depends on the number of rows and a seed alone. ``equal.json`` has the samples that had a
row then. So the permutation can be inverted to find the sample of each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from datafetch.errors import ConfigurationError
from datafetch.output.formats import ROWS_SUFFIX
from datafetch.output.formats.output_format import size_bytes
from datafetch.output.reshard.plan import Int64s, permutation
from datafetch.output.reshard.record import ReshardRecord
from datafetch.store.layout import OutputLayout
from datafetch.store.packed_bools import Bools, unpack_bools
from datafetch.store.shard_summary import read_shard_summary


@dataclass(frozen=True, slots=True, eq=False)
class NumberedSamples:
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
    def read(cls, layout: OutputLayout, shards: Sequence[str]) -> NumberedSamples:
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

    def are_in(self, layout: OutputLayout, *, is_resharded: bool) -> Bools:
        """For each sample, whether its row is in a file of its shard that is still there.

        Raises:
            OSError: It can't be told.
        """
        folder = layout.added if is_resharded else layout.out
        found = np.copy(self.is_own)
        for shard, span in self.spans():
            if not size_bytes(folder / f"{shard}{ROWS_SUFFIX}"):
                found[span] = False
        return found

    def by_position(self, before: ReshardRecord) -> Int64s:
        """For each row of the resharded files, in order, the number of its sample: the inverse permutation.

        Raises:
            ConfigurationError: The record does not list the samples, or has another number of rows.
        """
        try:
            had_row = [unpack_bools(before.samples[shard], span.stop - span.start) for shard, span in self.spans()]
        except (KeyError, ValueError) as error:
            raise ConfigurationError(
                "equal.json of the state folder is damaged: it does not list its samples; --fresh starts over"
            ) from error
        sample_of_row = np.flatnonzero(np.concatenate(had_row))
        if len(sample_of_row) != before.rows:
            raise ConfigurationError(
                "equal.json of the state folder is damaged: it lists another number of samples; --fresh starts over"
            )
        by_position = np.empty(len(sample_of_row), np.int64)
        by_position[permutation(len(sample_of_row), before.plan.shuffle)] = sample_of_row
        return by_position


def find_lost_rows(layout: OutputLayout, shards: Sequence[str], record: ReshardRecord) -> Mapping[str, Bools]:
    """The samples whose row was in a resharded file that is missing or has changed, and is nowhere else.

    Args:
        layout: The paths of the output, whose lock is held.
        shards: Names of the manifest's shards that have a ledger, in order.
        record: How the output was resharded.

    Returns:
        Shard of the manifest → for each of its samples, whether its row is lost; only shards that have one.
    """
    missing = frozenset(record.missing_files(layout))
    if not missing:
        return {}
    samples = NumberedSamples.read(layout, shards)
    sample_of_row = samples.by_position(record)
    is_lost = np.zeros(len(samples.has_row), np.bool_)
    first = 0
    for name, file in record.files.items():
        if name in missing:
            is_lost[sample_of_row[first : first + file.rows]] = True
        first += file.rows
    is_lost &= samples.has_row & ~samples.are_in(layout, is_resharded=True)
    return {shard: is_lost[span] for shard, span in samples.spans() if is_lost[span].any()}
