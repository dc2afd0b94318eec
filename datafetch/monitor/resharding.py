"""For whom an output was resharded, and whether all of its shards are there.

Rules: nothing is locked or written.
"""

from __future__ import annotations

from dataclasses import dataclass

from datafetch.errors import ConfigurationError, ResourceError
from datafetch.model.report import ReshardedEpoch
from datafetch.output.reshard.record import read_reshard_record
from datafetch.store.layout import OutputLayout


@dataclass(frozen=True, slots=True)
class Resharding:
    """How an output was resharded, and what it lacks since.

    Attributes:
        epoch: What each rank reads; None if it is not resharded, or its record is damaged.
        missing_shards: The shards that are missing, or have changed since they were made.
        problem: What is wrong with the record, or that the shards can't be read; mostly empty.
    """

    epoch: ReshardedEpoch | None = None
    missing_shards: tuple[str, ...] = ()
    problem: str = ""

    @property
    def is_damaged(self) -> bool:
        """Whether the output lacks something."""
        return bool(self.missing_shards or self.problem)


def read_resharding(layout: OutputLayout) -> Resharding:
    """Read how an output was resharded, and look for its shards."""
    try:
        record = read_reshard_record(layout)
    except ConfigurationError:
        return Resharding(problem=f"{layout.reshard_record.name} is damaged")
    if record is None:
        return Resharding()
    is_being_replaced = layout.resharded.exists() or layout.replaced.exists()  # which the next run completes
    try:
        return Resharding(record.for_ranks(), () if is_being_replaced else tuple(record.missing_files(layout)))
    except ResourceError:
        return Resharding(record.for_ranks(), problem="its shards can't be read")
