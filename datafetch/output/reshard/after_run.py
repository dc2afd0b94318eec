"""The shards of a run made equal for the ranks that will read them, and equal again when a retry brought more.

Rules: rows are numbered as the manifest orders their samples, and their order among equal shards is a function of that
number, of how many there are, and of a seed. So the shards that a retry leads to are those that a run would have
led to that had those images from the start, byte for byte, though the shards of the manifest are long gone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from datafetch.datasets.readers import Int64s
from datafetch.errors import ConfigurationError, ConservationError
from datafetch.output.reshard.copy import Plan, ProgressMonitor, Source, order, rearrange
from datafetch.output.reshard.record import ReshardRecord, read_reshard_record
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger import Bools, pack_bools, read_shard_summary, unpack_bools

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Samples:
    """All samples of an output, in manifest order.

    Attributes:
        shards: Names of the manifest's shards, in order.
        ends: For each of them, the number of the sample behind its last one.
        has_row: For each sample, whether there is a row.
        is_own: For each sample, whether its row lies in the file that its shard's last commit wrote.
    """

    shards: tuple[str, ...]
    ends: Int64s
    has_row: Bools
    is_own: Bools

    @classmethod
    def read(cls, layout: OutputLayout, shards: Sequence[str]) -> _Samples:
        """What the ledgers say."""
        books = [read_shard_summary(layout.ledger(shard)) for shard in shards]
        return cls(
            tuple(shards),
            np.cumsum([book.totals.samples for book in books], dtype=np.int64),
            np.concatenate([book.has_row for book in books]),
            np.concatenate([book.own_rows for book in books]),
        )

    def spans(self) -> Iterator[tuple[str, slice]]:
        """Each shard and its samples."""
        for shard, begin, end in zip(self.shards, (0, *self.ends[:-1]), self.ends, strict=True):
            yield shard, slice(int(begin), int(end))


def make_equal(layout: OutputLayout, shards: Sequence[str], plan: Plan, watch: ProgressMonitor) -> bool:
    """Make an output's shards equal, where they are not, and bring in the rows that a retry has added.

    Args:
        layout: Of the output; every shard of its manifest is published, and its lock is held.
        shards: Names of the manifest's shards, in order.
        plan: For whom.
        watch: Is told how far it is, and may stop it.

    Returns:
        Whether it is done; False if it was stopped. The same call resumes it.

    Raises:
        ConservationError: There are not as many rows as the ledgers say.
        ConfigurationError: There are too few rows for so many ranks, where they lay in equal shards before.
        ResourceError: The disk is full or can't be written; the same call resumes it.
    """
    before = read_reshard_record(layout)
    if before is not None and before.plan == plan and not any(layout.added.glob("*.pkl")):
        return True
    samples = _Samples.read(layout, shards)
    rows = int(samples.has_row.sum())
    if before is None and rows < plan.ranks.least_rows:
        _log.warning(
            "%s rows are too few for %s ranks, which take at least %s: the shards stay as the manifest cut them",
            *(f"{number:,}" for number in (rows, plan.ranks.world_size, plan.ranks.least_rows)),
        )
        return True
    place_of_sample = np.full(len(samples.has_row), -1, np.int64)
    place_of_sample[samples.has_row] = order(rows, plan.shuffle)
    sources = list(_sources(layout, samples, before, place_of_sample))
    if sum(source.taken_rows for source in sources) != rows:
        raise ConservationError(f"{layout.out}: the shards do not hold the {rows:,} rows that their ledgers list")
    packed = {shard: pack_bools(samples.has_row[span]).decode() for shard, span in samples.spans()}
    return rearrange(layout, sources, plan=plan, record={"samples": packed}, watch=watch)


def _sources(
    layout: OutputLayout, samples: _Samples, before: ReshardRecord | None, place_of_sample: Int64s
) -> Iterator[Source]:
    """The files that hold the rows, and where each row goes; rows that a retry has replaced are skipped."""
    is_in_file = np.copy(samples.is_own)
    folder = layout.out if before is None else layout.added
    for shard, span in samples.spans():
        if not (folder / f"{shard}.pkl").exists():
            is_in_file[span] = False
    if before is not None:
        of_row = _samples_by_place(samples, before)
        places = np.where(is_in_file[of_row], -1, place_of_sample[of_row])
        first = 0
        for name, file in before.files.items():
            yield Source(layout.out / f"{name}.pkl", file.rows, places[first : first + file.rows])
            first += file.rows
    for shard, span in samples.spans():
        places = place_of_sample[span][is_in_file[span]]
        if len(places):
            yield Source(folder / f"{shard}.pkl", len(places), places)


def _samples_by_place(samples: _Samples, before: ReshardRecord) -> Int64s:
    """For each row of equal shards, in order, the sample that it was made of."""
    try:
        has_row = [unpack_bools(before.samples[shard], span.stop - span.start) for shard, span in samples.spans()]
    except (KeyError, ValueError) as error:
        raise ConfigurationError("equal.json does not list its samples; --fresh starts over") from error
    of_row = np.flatnonzero(np.concatenate(has_row))
    by_place = np.empty(len(of_row), np.int64)
    by_place[order(len(of_row), before.plan.shuffle)] = of_row
    return by_place
