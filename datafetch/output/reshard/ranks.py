"""The arithmetic of shards and ranks: what a trainer reads of them, and with which sizes it loses hardly anything.

Rules: pure functions of counts. The trainer's own rules, from VILA's datasets and samplers: with W ranks, each rank
takes ``shards // W`` shards, in the order of their names, and the remaining shards are never read. A rank takes its
samples in groups. The number of groups of the rank with the fewest samples is the length of the epoch for all ranks,
and unless it is a multiple of the batch, later ranks read samples that are not theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from msgspec import Meta

from datafetch.model.fields import check_types, invalid, require_in_range
from datafetch.model.kinds import Loader
from datafetch.model.options import Option, OptionGroup, option

GROUP_OF: Mapping[Loader, int] = {Loader.COYO: 4, Loader.MMC4: 1}
"""The number of samples that each loader takes together."""

SHUFFLE_OF: Mapping[Loader, int | None] = {Loader.COYO: 0, Loader.MMC4: None}
"""The default seed for shuffling the rows, by loader: pairs are read in the order of the files, documents are not."""

DEFAULT_WORLD_SIZE = 64
DEFAULT_BATCH = 2
WORLD_SIZE = Option(help="Number of ranks that read the shards.", group=OptionGroup.BEHAVIOUR, metavar="N")
BATCH = Option(help="Groups of samples that a rank takes in one step.", group=OptionGroup.BEHAVIOUR, metavar="N")
GROUP = Option(
    help="Samples that the loader takes together.",
    group=OptionGroup.BEHAVIOUR,
    metavar="N",
    unset="4 for pairs, 1 for documents",
)
_MAX_RANKS = 1_000_000  # beyond any cluster
RankNumber: TypeAlias = Annotated[int, Meta(ge=1, le=_MAX_RANKS)]
"""A number of ranks, or of what one rank takes at once."""
_SHARD_ROWS = 12_500  # about 400 MB of pairs, as VILA's splitter makes them
_SHARD_BYTES = 1 << 30  # documents are larger, and the loader holds a shard in memory


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks of a training, and how they read shards.

    Attributes:
        world_size: The number of ranks.
        batch: The number of groups that a rank takes in one step.
        group: The number of samples that the loader takes together: 4 pairs, or 1 document.
    """

    world_size: int = option(DEFAULT_WORLD_SIZE, WORLD_SIZE)
    batch: int = option(DEFAULT_BATCH, BATCH)
    group: int = option(4, GROUP)

    def __post_init__(self) -> None:
        """Check that the numbers are possible.

        Raises:
            ConfigurationError: One of them is out of range.
        """
        check_types(self)
        for field in ("world_size", "batch", "group"):
            require_in_range(self, field, 1, _MAX_RANKS)

    @property
    def step(self) -> int:
        """The number of samples that one rank takes in one step."""
        return self.batch * self.group

    @property
    def min_rows(self) -> int:
        """The smallest number of rows that can be resharded: one step for each rank."""
        return self.world_size * self.step


@dataclass(frozen=True, slots=True)
class Epoch:
    """What the ranks read of a set of shards in one epoch.

    Attributes:
        samples: The number of samples in the set.
        unread: The number of samples in shards that no rank takes.
        groups: The number of groups that every rank reads: that of the rank with the fewest samples.
        used: The number of samples that are read.
        is_aligned: Whether the number of groups is a multiple of the batch, so that every rank reads its own samples.
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
    """What the ranks read in one epoch.

    Args:
        counts: The number of samples in each shard, in the order of their names.
        ranks: The ranks.
    """
    shards_a_rank = len(counts) // ranks.world_size
    taken = [
        sum(counts[rank * shards_a_rank : (rank + 1) * shards_a_rank]) // ranks.group
        for rank in range(ranks.world_size)
    ]
    groups = min(taken)
    if ranks.world_size == 1:  # no later rank reads wrong samples; an incomplete batch is not read
        groups -= groups % ranks.batch
    return Epoch(
        samples=sum(counts),
        unread=sum(counts[ranks.world_size * shards_a_rank :]),
        groups=groups,
        used=groups * ranks.group * ranks.world_size,
        is_aligned=groups % ranks.batch == 0,
    )


def shard_sizes(rows: int, ranks: Ranks, total_bytes: int = 0) -> list[int]:
    """The number of rows of each shard, in order, so that all ranks read the same number and lose hardly any.

    Every shard holds whole steps. The rows that are left over, which are fewer than one step of all ranks, are appended
    to the last shards of all ranks but the last. That rank therefore has the fewest samples, so these rows are not
    read. With a single rank, they are appended to its last shard.

    Args:
        rows: The number of rows.
        ranks: The ranks that will read them.
        total_bytes: The size of all rows, to limit the size of shards.

    Raises:
        ConfigurationError: There are too few rows for this number of ranks.
    """
    steps_a_rank, left_over = divmod(rows, ranks.min_rows)
    if not steps_a_rank:
        raise invalid(
            ranks,
            f"{rows:,} rows are too few for {{world_size}} {ranks.world_size} × {{batch}} {ranks.batch} × {{group}} "
            f"{ranks.group}, which takes {ranks.min_rows:,} at least",
        )
    rank_rows = steps_a_rank * ranks.step
    needed = max(-(-rank_rows // _SHARD_ROWS), -(-total_bytes // (ranks.world_size * _SHARD_BYTES)))
    shards_a_rank = min(steps_a_rank, needed)
    sizes = [ranks.step * part for part in _even_parts(steps_a_rank, shards_a_rank)] * ranks.world_size
    takers = max(1, ranks.world_size - 1)  # the last rank must have the fewest samples
    for rank, extra in enumerate(_even_parts(left_over, takers)):
        sizes[(rank + 1) * shards_a_rank - 1] += extra
    return sizes


def _even_parts(total: int, parts: int) -> list[int]:
    """Divide a number into parts that differ by one at most, larger ones first."""
    quotient, remainder = divmod(total, parts)
    return [quotient + 1] * remainder + [quotient] * (parts - remainder)
