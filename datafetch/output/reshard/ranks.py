"""The arithmetic of shards and ranks: what a trainer's loader makes of a folder, and shards that lose it nothing.

Rules: pure functions of counts. The loader's own rules (VILA's datasets and samplers): with W ranks each takes
``shards // W`` of the shards, in the order of their names, and the rest is never read; a rank's samples are taken in
groups; the poorest rank's number of groups is the length of all; and unless that is a multiple of the batch, later
ranks read the wrong samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from msgspec import Meta

from datafetch.errors import ConfigurationError, refuse_outside
from datafetch.model.kinds import Loader

GROUP_OF: Mapping[Loader, int] = {Loader.COYO: 4, Loader.MMC4: 1}
"""Samples that each loader of shards takes together."""

SHUFFLE_OF: Mapping[Loader, int | None] = {Loader.COYO: 0, Loader.MMC4: None}
"""The seed of the order that its rows are given: pairs are read as they lie, so they are to lie shuffled."""

_MOST_RANKS = 1_000_000  # beyond any cluster
RankNumber: TypeAlias = Annotated[int, Meta(ge=1, le=_MOST_RANKS)]
"""Ranks, or what one of them takes at once."""
_SHARD_ROWS = 12_500  # as VILA's splitter cuts them, about: 400 MB of pairs
_SHARD_BYTES = 1 << 30  # documents are larger, and the loader holds a shard in memory


@dataclass(frozen=True, slots=True)
class Ranks:
    """Who reads the shards, and how.

    Attributes:
        world_size: Ranks.
        batch: Groups that a rank takes in one step.
        group: Samples that the loader takes together: 4 of pairs, 1 of documents.
    """

    world_size: int = 64
    batch: int = 2
    group: int = 4

    def __post_init__(self) -> None:
        """Refuse what no trainer can have."""
        for option, value in (("--world-size", self.world_size), ("--batch", self.batch), ("--group", self.group)):
            refuse_outside(option, value, 1, _MOST_RANKS)

    @property
    def step(self) -> int:
        """Samples that one rank takes in one step."""
        return self.batch * self.group

    @property
    def least_rows(self) -> int:
        """Fewer rows can't be shared out."""
        return self.world_size * self.step


@dataclass(frozen=True, slots=True)
class Epoch:
    """What the ranks read of a folder in one epoch.

    Attributes:
        samples: All that there are.
        unread: Of them, in shards that no rank takes.
        groups: That every rank reads: those of the poorest.
        used: Samples that are read in the end.
        is_aligned: Whether every rank reads its own samples, for its groups are a multiple of the batch.
    """

    samples: int
    unread: int
    groups: int
    used: int
    is_aligned: bool

    @property
    def lost_share(self) -> float:
        """The share of the samples that the epoch does not use."""
        return 1 - self.used / self.samples if self.samples else 0.0


def epoch(counts: Sequence[int], ranks: Ranks) -> Epoch:
    """What the loader reads of shards of so many samples, in the order of their names."""
    shards_a_rank = len(counts) // ranks.world_size
    taken = [
        sum(counts[rank * shards_a_rank : (rank + 1) * shards_a_rank]) // ranks.group
        for rank in range(ranks.world_size)
    ]
    groups = min(taken)
    if ranks.world_size == 1:  # there is no later rank to read wrong samples; what makes no whole batch is not read
        groups -= groups % ranks.batch
    return Epoch(
        samples=sum(counts),
        unread=sum(counts[ranks.world_size * shards_a_rank :]),
        groups=groups,
        used=groups * ranks.group * ranks.world_size,
        is_aligned=groups % ranks.batch == 0,
    )


def equal_sizes(rows: int, ranks: Ranks, total_bytes: int = 0) -> list[int]:
    """How many rows each shard gets, in order, so that all ranks have the same and hardly any is left over.

    Every shard holds whole steps. Fewer rows than one step of all ranks are left over; they go behind those of all
    ranks but the last, which stays the poorest and so keeps them from being read. With one rank they go behind its own.

    Args:
        rows: How many there are.
        ranks: Who will read them.
        total_bytes: Of all rows, to keep shards from getting huge.

    Raises:
        ConfigurationError: There are too few for so many ranks.
    """
    steps_a_rank, left_over = divmod(rows, ranks.least_rows)
    if not steps_a_rank:
        raise ConfigurationError(
            f"{rows:,} rows are too few for --world-size {ranks.world_size} × --batch {ranks.batch} × --group "
            f"{ranks.group}, which takes {ranks.least_rows:,} at least"
        )
    rank_rows = steps_a_rank * ranks.step
    wanted = max(-(-rank_rows // _SHARD_ROWS), -(-total_bytes // (ranks.world_size * _SHARD_BYTES)))
    shards_a_rank = min(steps_a_rank, wanted)
    sizes = [ranks.step * part for part in _even_parts(steps_a_rank, shards_a_rank)] * ranks.world_size
    takers = max(1, ranks.world_size - 1)  # the last rank stays the poorest
    for rank, extra in enumerate(_even_parts(left_over, takers)):
        sizes[(rank + 1) * shards_a_rank - 1] += extra
    return sizes


def _even_parts(total: int, parts: int) -> list[int]:
    """So many parts that differ by one at most, larger ones first."""
    quotient, remainder = divmod(total, parts)
    return [quotient + 1] * remainder + [quotient] * (parts - remainder)
