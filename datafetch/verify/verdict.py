"""Verdict: what verifying an output came to, as a value, as JSON, and for a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from datafetch.model.kinds import Loader
from datafetch.output.reshard.ranks import Epoch, Ranks, epoch

_MOST_SHOWN = 100
_MUCH = 0.01  # of the samples; so much is worth a reshard


@dataclass(frozen=True, slots=True)
class EpochUsage:
    """What the ranks read of the shards in one epoch."""

    shards: int
    ranks: Ranks
    epoch: Epoch

    @classmethod
    def of(cls, counts: Sequence[int], ranks: Ranks) -> EpochUsage:
        """What they read of shards of so many rows."""
        return cls(len(counts), ranks, epoch(counts, ranks))

    @property
    def shards_per_rank(self) -> int:
        """Shards that each rank takes."""
        return self.shards // self.ranks.world_size

    @property
    def samples_per_rank(self) -> int:
        """Samples that each rank reads: those of the poorest."""
        return self.epoch.groups * self.ranks.group

    @property
    def lost_share(self) -> float:
        """The share of the samples that no rank uses."""
        return self.epoch.lost_share

    def problems(self) -> Iterator[str]:
        """What the loader or its sampler would trip over."""
        ranks, groups = self.ranks, self.epoch.groups
        fix = f"'datafetch reshard' makes equal ones for --world-size {ranks.world_size}"
        if not self.shards_per_rank:
            shards = "1 shard is" if self.shards == 1 else f"{self.shards:,} shards are"
            yield f"{shards} fewer than {ranks.world_size:,} ranks, and the loader crashes; {fix}"
        elif not groups:
            yield f"the poorest rank has not even one group of {ranks.group:,} samples; {fix}"
        elif not self.epoch.is_aligned:
            yield (
                f"each rank reads {groups:,} groups of {ranks.group:,}, which is not a multiple of the batch of "
                f"{ranks.batch:,}, so that later ranks read the wrong samples; {fix}"
            )

    def lines(self) -> Iterator[str]:
        """The arithmetic in words."""
        ranks, seen = self.ranks, self.epoch
        yield (
            f"{ranks.world_size:,} ranks, batch {ranks.batch:,}, group {ranks.group:,}: {self.shards_per_rank:,} "
            f"shards and {self.samples_per_rank:,} samples a rank; an epoch uses {seen.used:,} of {seen.samples:,} "
            f"samples, {self.lost_share:.2%} are lost"
        )
        left_over = self.shards % ranks.world_size
        if self.shards_per_rank and left_over:
            yield (
                f"{self.shards:,} shards are not a multiple of {ranks.world_size:,}: "
                f"{left_over:,} with {seen.unread:,} samples are never read"
            )
        best = seen.samples - seen.samples % ranks.min_rows
        if self.shards_per_rank and best - seen.used > _MUCH * seen.samples:
            yield f"'datafetch reshard SRC DST --world-size {ranks.world_size}' makes shards that lose next to nothing"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verifying an output came to.

    Attributes:
        out: What was verified.
        loader: Whose demands were looked at.
        shards: Whole pairs of files; None where there are no shards.
        samples: Rows or records examined.
        images: Images decoded, or found not to decode; those that share a file count once.
        problems: The first thousand, in the order of their places.
        problem_count: All of them.
        remarks: What is no problem by itself.
        reading: What an epoch would read; None where there are no shards.
    """

    out: str
    loader: Loader
    shards: int | None
    samples: int
    images: int
    problems: tuple[str, ...]
    problem_count: int
    remarks: tuple[str, ...] = ()
    reading: EpochUsage | None = None

    @property
    def is_sound(self) -> bool:
        """Whether the trainer would trip over nothing."""
        return not self.problem_count

    def summary(self) -> dict[str, object]:
        """The verdict as the JSON object that ``--json`` prints."""
        reading = self.reading
        return {
            "out": self.out,
            "loader": self.loader.value,
            "sound": self.is_sound,
            "shards": self.shards,
            "samples": self.samples,
            "images": self.images,
            "problems": list(self.problems),
            "problem_count": self.problem_count,
            "remarks": list(self.remarks),
            "world_size": reading and reading.ranks.world_size,
            "batch": reading and reading.ranks.batch,
            "group": reading and reading.ranks.group,
            "shards_per_rank": reading and reading.shards_per_rank,
            "samples_per_rank": reading and reading.samples_per_rank,
            "used": reading and reading.epoch.used,
            "lost_share": reading and round(reading.lost_share, 6),
        }

    def lines(self) -> Iterator[str]:
        """The verdict for a person: what was looked at, what an epoch uses, the problems, and the last word."""
        shards = "" if self.shards is None else f"{self.shards:,} shards, "
        yield f"{self.out} for the loader {self.loader.value}: {shards}{self.samples:,} samples, {self.images:,} images"
        yield from self.remarks
        if self.reading is not None:
            yield from self.reading.lines()
        shown = self.problems[:_MOST_SHOWN]
        yield from shown
        if self.problem_count > len(shown):
            yield f"and {self.problem_count - len(shown):,} more"
        yield "sound" if self.is_sound else f"not sound: {_problems(self.problem_count)}"


def _problems(count: int) -> str:
    return "1 problem" if count == 1 else f"{count:,} problems"
