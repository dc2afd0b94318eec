"""IntendedRanks: for which ranks the shards of an output are judged, and how that is known.

Rules: what the state folder says is bounded and typed when it is read, and does without it if it is damaged. Only the
ranks that the arithmetic is done for come from there; the shards themselves are read and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from datafetch.errors import ConfigurationError
from datafetch.model.kinds import Loader
from datafetch.output.reshard.ranks import DEFAULT_BATCH, DEFAULT_WORLD_SIZE, GROUP_OF, RankNumber, Ranks
from datafetch.output.reshard.record import ReshardRecord
from datafetch.store.job_file import JobFile, read_job_file
from datafetch.store.layout import OutputLayout
from datafetch.store.state_file import read_if_sound


class RanksSource(StrEnum):
    """How the number of ranks is known. The strings are those of ``--json``."""

    GIVEN = "given"
    RECORD = "record"
    JOB = "job"
    DEFAULT = "default"
    NOT_RESHARDED = "not_resharded"

    @property
    def text(self) -> str:
        """The same in words, behind the number of ranks."""
        match self:
            case RanksSource.GIVEN:
                return "as given"
            case RanksSource.RECORD:
                return "as it was made"
            case RanksSource.JOB:
                return "as its run was asked for"
            case RanksSource.DEFAULT:
                return "by default, since nothing says for how many it was made"
            case RanksSource.NOT_RESHARDED:
                return "as an example, since the shards of the manifest were kept (--no-reshard)"


@dataclass(frozen=True, slots=True)
class IntendedRanks:
    """The ranks that read an output.

    Attributes:
        ranks: The ranks.
        source: How their number is known.
        are_as_made: Whether the shards were made for exactly these.
    """

    ranks: Ranks
    source: RanksSource
    are_as_made: bool = False

    @property
    def must_fit(self) -> bool:
        """Whether it is a problem if the shards don't fit the ranks; otherwise nobody meant them to."""
        return self.source is not RanksSource.NOT_RESHARDED


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedRanks:
    """What the caller says of the ranks; None is left to the output, and then to the defaults."""

    world_size: int | None = None
    batch: int | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        """Check that the numbers are possible.

        Raises:
            ConfigurationError: One of them is out of range.
        """
        self._ranks(Loader.COYO, DEFAULT_WORLD_SIZE)

    def of_output(self, layout: OutputLayout, loader: Loader) -> IntendedRanks:
        """The ranks that are to read an output: as the caller says, as it was made, or as it was asked for."""
        record = read_if_sound(layout.reshard_record, ReshardRecord)
        if record is not None:
            source = RanksSource.RECORD if self.world_size is None else RanksSource.GIVEN
            ranks = self._ranks(loader, record.world_size, record)
            return IntendedRanks(ranks, source, are_as_made=ranks == record.plan.ranks)
        if self.world_size is not None:
            return IntendedRanks(self._ranks(loader, self.world_size), RanksSource.GIVEN)
        job = read_sound_job(layout)
        if job is None or job.settings is None or "world_size" not in job.settings:
            return IntendedRanks(self._ranks(loader, DEFAULT_WORLD_SIZE), RanksSource.DEFAULT)
        try:
            world_size = msgspec.convert(job.settings["world_size"], RankNumber | None)
        except ValueError:
            return IntendedRanks(self._ranks(loader, DEFAULT_WORLD_SIZE), RanksSource.DEFAULT)
        if world_size is None:
            return IntendedRanks(self._ranks(loader, DEFAULT_WORLD_SIZE), RanksSource.NOT_RESHARDED)
        return IntendedRanks(self._ranks(loader, world_size), RanksSource.JOB)

    def _ranks(self, loader: Loader, world_size: int, record: ReshardRecord | None = None) -> Ranks:
        batch, group = (record.batch, record.group) if record else (DEFAULT_BATCH, GROUP_OF[loader])
        return Ranks(
            world_size if self.world_size is None else self.world_size,
            batch if self.batch is None else self.batch,
            group if self.group is None else self.group,
        )


def read_sound_job(layout: OutputLayout) -> JobFile | None:
    """The job file of an output; None if there is none that can be read."""
    try:
        return read_job_file(layout)
    except ConfigurationError:
        return None
