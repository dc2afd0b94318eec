"""Verdict: the result of verifying an output, as a value, as JSON, and as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from datafetch.model.kinds import Loader
from datafetch.model.wording import counted
from datafetch.output.reshard.ranks import Epoch, Ranks, epoch
from datafetch.verify.intended_ranks import IntendedRanks, RanksSource

_MAX_SHOWN_PROBLEMS = 100
_NOTABLE_LOSS = 0.01  # the share of unused samples from which on a reshard is suggested


@dataclass(frozen=True, slots=True)
class EpochUsage:
    """What all ranks together read of the shards in one epoch."""

    shards: int
    intended: IntendedRanks
    epoch: Epoch

    @classmethod
    def from_row_counts(cls, row_counts: Sequence[int], intended: IntendedRanks) -> EpochUsage:
        """Compute the usage of shards with these numbers of rows."""
        return cls(len(row_counts), intended, epoch(row_counts, intended.ranks))

    @property
    def ranks(self) -> Ranks:
        """The ranks that read the shards."""
        return self.intended.ranks

    @property
    def shards_per_rank(self) -> int:
        """How many shards each rank reads."""
        return self.shards // self.ranks.world_size

    @property
    def samples_per_rank(self) -> int:
        """How many samples each rank reads: as many as the rank with the fewest."""
        return self.epoch.groups * self.ranks.group

    @property
    def lost_share(self) -> float:
        """The share of the samples that no rank reads."""
        return self.epoch.lost_share

    def problems(self) -> Iterator[str]:
        """Yield the problems on which the loader or its sampler would fail; none if the shards need not fit."""
        misfit = self._misfit() if self.intended.must_fit else ""
        if misfit:
            yield f"{misfit}; {self._remedy()}"

    def _misfit(self) -> str:
        """Why the loader or its sampler would fail; empty if they would not."""
        ranks, groups = self.ranks, self.epoch.groups
        if not self.shards_per_rank:
            shards = "1 shard is" if self.shards == 1 else f"{self.shards:,} shards are"
            return f"{shards} fewer than {ranks.world_size:,} ranks, so the loader crashes"
        if not groups:
            return f"the rank with the fewest samples has less than one group of {ranks.group:,}"
        if not self.epoch.is_aligned:
            return (
                f"each rank reads {groups:,} groups of {ranks.group:,}, which is not a multiple of the batch of "
                f"{ranks.batch:,}, so later ranks read the wrong samples"
            )
        return ""

    def _remedy(self) -> str:
        if self.intended.are_as_made:
            return "there were enough when they were made; the command that made them makes the missing ones again"
        ranks, rows = self.ranks, self.epoch.samples
        if rows < ranks.min_rows:
            most = rows // ranks.step
            hint = f"; --world-size {most} is the most that they allow" if most else ""
            if most and self.intended.source is RanksSource.JOB:
                hint += ": run the command that made the output again with that"
            return (
                f"{rows:,} rows are too few for {ranks.world_size:,} ranks, which take at least "
                f"{ranks.min_rows:,}{hint}"
            )
        return f"'datafetch reshard SRC DST --world-size {ranks.world_size}' makes shards that fit"

    def lines(self) -> Iterator[str]:
        """Yield lines that describe the usage to people."""
        ranks, used = self.ranks, self.epoch
        if not self.intended.must_fit and self._misfit():
            yield (
                "made with --no-reshard, so these shards are not cut for a number of ranks; for "
                f"{counted(ranks.world_size, 'rank')}: {self._remedy()}"
            )
            return
        yield (
            f"for {counted(ranks.world_size, 'rank')}, {self.intended.source.text} "
            f"(batch {ranks.batch:,}, group {ranks.group:,}): each rank reads "
            f"{counted(self.samples_per_rank, 'sample')} from {self.shards_per_rank:,} of "
            f"{counted(self.shards, 'shard')}; "
            f"an epoch uses {used.used:,} of {used.samples:,} samples and loses {self.lost_share:.2%}"
        )
        left_over = self.shards % ranks.world_size
        if self.shards_per_rank and left_over:
            yield (
                f"{self.shards:,} shards are not a multiple of {ranks.world_size:,}: "
                f"{left_over:,} with {used.unread:,} samples are never read"
            )
        best = used.samples - used.samples % ranks.min_rows
        if self.shards_per_rank and best - used.used > _NOTABLE_LOSS * used.samples:
            yield f"'datafetch reshard SRC DST --world-size {ranks.world_size}' makes shards that lose almost nothing"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of verifying an output.

    Attributes:
        out: What was verified.
        loader: The loader whose requirements were checked; None for shards of a list's samples.
        shards: The number of complete shards; None for an output without shards.
        samples: The number of rows or records examined.
        images: The number of images that were decoded, or could not be; a file that several records share counts once.
        problems: The first thousand problems, in the order of their locations.
        problem_count: The number of all problems.
        remarks: What is worth knowing without being a problem.
        epoch_usage: What an epoch would read; None for an output without shards.
        is_quick: Whether files were only compared with what was recorded of them.
        output_format: The format of shards of a list's samples; empty for others.
    """

    out: str
    loader: Loader | None
    shards: int | None
    samples: int
    images: int
    problems: tuple[str, ...]
    problem_count: int
    remarks: tuple[str, ...] = ()
    epoch_usage: EpochUsage | None = None
    is_quick: bool = False
    output_format: str = ""

    @property
    def is_sound(self) -> bool:
        """Whether no problem was found."""
        return not self.problem_count

    def summary(self) -> dict[str, object]:
        """Return the verdict as the JSON object that ``--json`` prints."""
        usage = self.epoch_usage
        return {
            "out": self.out,
            "loader": self.loader and self.loader.value,
            "format": self.output_format or None,
            "sound": self.is_sound,
            "quick": self.is_quick,
            "shards": self.shards,
            "samples": self.samples,
            "images": self.images,
            "problems": list(self.problems),
            "problem_count": self.problem_count,
            "remarks": list(self.remarks),
            "world_size": usage and usage.ranks.world_size,
            "world_size_from": usage and usage.intended.source.value,
            "batch": usage and usage.ranks.batch,
            "group": usage and usage.ranks.group,
            "shards_per_rank": usage and usage.shards_per_rank,
            "samples_per_rank": usage and usage.samples_per_rank,
            "used": usage and usage.epoch.used,
            "lost_share": usage and round(usage.lost_share, 6),
        }

    def lines(self) -> Iterator[str]:
        """Yield the verdict as lines for people: what was verified, what an epoch uses, the problems, the result."""
        shards = "" if self.shards is None else f"{counted(self.shards, 'shard')}, "
        images = "as recorded, nothing decoded" if self.is_quick else counted(self.images, "image")
        what = self.output_format if self.loader is None else f"for loader {self.loader.value}"
        yield f"{self.out} {what}: {shards}{counted(self.samples, 'sample')}, {images}"
        if self.is_quick and self.problems:  # what to do comes last, and files that are missing are read by no rank
            yield from self._problem_lines()
            yield from self.remarks
        else:
            yield from self.remarks
            if self.epoch_usage is not None:
                yield from self.epoch_usage.lines()
            yield from self._problem_lines()
        passed = "sizes and checksums are as recorded" if self.is_quick else "all checks passed"
        yield passed if self.is_sound else f"{_problems(self.problem_count)} found"

    def _problem_lines(self) -> Iterator[str]:
        shown = self.problems[:_MAX_SHOWN_PROBLEMS]
        yield from shown
        if self.problem_count > len(shown):
            yield f"and {self.problem_count - len(shown):,} more"


def _problems(count: int) -> str:
    return "1 problem" if count == 1 else f"{count:,} problems"
