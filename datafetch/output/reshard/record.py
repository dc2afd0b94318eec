"""The record of the equal shards that an output holds: how they were made, and of which samples.

Rules: ``equal.json`` exists if and only if the output holds equal shards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

from msgspec import Meta

from datafetch.errors import ConfigurationError, ManifestError, raise_if_exhausted
from datafetch.model.bounds import Count, PlainName
from datafetch.model.report import EqualShards
from datafetch.output.formats import COUNT_SUFFIX, ROWS_SUFFIX, read_count
from datafetch.output.reshard.plan import Plan
from datafetch.output.reshard.ranks import RankNumber, Ranks, epoch
from datafetch.store.layout import OutputLayout
from datafetch.store.state_file import read_state_file


class EqualFile(NamedTuple):
    """One of them: the number of its rows, and the size of the file that holds them."""

    rows: Count
    size_bytes: Count


@dataclass(frozen=True, slots=True)
class ReshardRecord:
    """The equal shards of an output. Field names are those of the file, which has further ones.

    Attributes:
        world_size: Ranks that they were made for.
        batch: Groups that a rank takes in one step.
        group: Samples that the loader takes together.
        shuffle: Seed of the order of their rows; None where rows kept theirs.
        files: By name, in order.
        samples: Shard of the manifest → which of its samples have a row in them, packed (``ledger.pack_bools``); of
            shards that a run has made.
        made_from: The source's shards (``plan.fingerprint``); of shards that ``reshard`` has made.
    """

    world_size: RankNumber
    batch: RankNumber
    group: RankNumber
    shuffle: Count | None
    files: Annotated[dict[PlainName, EqualFile], Meta(min_length=1)]
    samples: dict[PlainName, str] = field(default_factory=dict)
    made_from: list[list[str | int]] = field(default_factory=list)

    @property
    def plan(self) -> Plan:
        """What they were made for."""
        return Plan(Ranks(self.world_size, self.batch, self.group), self.shuffle)

    @property
    def rows(self) -> int:
        """The number of rows in all of them."""
        return sum(file.rows for file in self.files.values())

    def for_ranks(self) -> EqualShards:
        """What each rank reads of them, for the report."""
        ranks = self.plan.ranks
        seen = epoch([file.rows for file in self.files.values()], ranks)
        return EqualShards(ranks.world_size, seen.groups * ranks.group, seen.used)

    def refuse_missing(self, layout: OutputLayout) -> None:
        """Check that all of them exist, and the ledgers of all of their samples.

        A lost equal shard can't be made again, because its name does not tell which samples it had. A shard of the
        manifest without a ledger would be fetched again, and would overwrite the equal shard of the same name.

        Raises:
            ConfigurationError: A shard or a ledger is missing, or a shard has a different size than when it was made.
        """
        for shard in self.samples:
            if not layout.ledger(shard).is_file():
                raise ConfigurationError(
                    f"{layout.ledger(shard)} is missing, and the rows of its samples are in equal shards, which "
                    "can't be made again one by one; put it back, or start over with --fresh (again, if one was "
                    "interrupted)"
                )
        for name, file in self.files.items():
            rows, count = layout.out / f"{name}{ROWS_SUFFIX}", layout.out / f"{name}{COUNT_SUFFIX}"
            if not _is_whole(rows, count, file):
                raise ConfigurationError(
                    f"{rows} or its {COUNT_SUFFIX} is missing, or has changed since it was made; put them back, or "
                    "start over with --fresh (again, if one was interrupted)"
                )


def _is_whole(rows: Path, count: Path, file: EqualFile) -> bool:
    try:
        return rows.stat().st_size == file.size_bytes and read_count(count) == file.rows
    except (OSError, ManifestError) as error:
        raise_if_exhausted(error)
        return False


def read_reshard_record(layout: OutputLayout) -> ReshardRecord | None:
    """The equal shards of an output; None if there are none.

    Raises:
        ConfigurationError: The file that tells of them is damaged.
    """
    return read_state_file(
        layout.equal, ReshardRecord, ConfigurationError(f"{layout.equal} is damaged; --fresh starts over")
    )
