"""Check the conservation law for a shard: no sample and no image is lost or counted twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from datafetch.errors import ConservationError
from datafetch.model.kinds import CounterName
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.lost_documents import LostDocumentCounter
from datafetch.model.outcome import FailureKind
from datafetch.output.merge import MergedSample
from datafetch.store.shard_summary import ShardSummary


class ShardTally:
    """Counts the samples and images of a shard.

    Args:
        shard: The shard's name.
        samples: The number of samples that the shard must have.
        notes: What was counted while the manifest was scanned, by ``CounterName``.
        retry: The number of the retry that is committed; 0 if it is not one.
        are_documents: Whether the samples are documents, of which the lost ones are counted.

    Attributes:
        own_rows: The number of rows that the commit writes.
    """

    def __init__(
        self, shard: str, samples: int, *, notes: Mapping[str, int], retry: int, are_documents: bool = False
    ) -> None:
        self.own_rows = 0
        self._shard = shard
        self._expected_samples = samples
        self._retry = retry
        self._has_row: list[bool] = []
        self._is_own: list[bool] = []
        self._lines = 0
        self._notes: Counter[str] = Counter(
            {name: count for name, count in notes.items() if name != CounterName.SKIPPED}  # which is counted here
        )
        self._lost = LostDocumentCounter() if are_documents else None
        self._outcomes: Counter[str] = Counter()

    def add(self, merged: MergedSample) -> None:
        """Count the next sample.

        Raises:
            ConservationError: It is not the next sample of the shard.
        """
        position = len(self._has_row)
        if merged.position != position:
            raise ConservationError(f"shard {self._shard}: sample {position} is missing or there twice")
        self._has_row.append(merged.has_row)
        self._is_own.append(merged.row is not None)
        self.own_rows += merged.row is not None
        self._lines += len(merged.lines)
        self._outcomes.update(line.outcome for line in merged.lines)
        if merged.counted_as is not None:
            self._notes[merged.counted_as.value] += 1
        if self._lost is not None and not merged.has_row and not merged.is_unselected:
            self._lost.add([line.outcome for line in merged.lines])

    def summarize(self, written_bytes: int, ledger_lines: int) -> ShardSummary:
        """The summary of the shard, once all samples have been added.

        Args:
            written_bytes: The size of the shard's files.
            ledger_lines: The number of lines that were written to the ledger.

        Raises:
            ConservationError: Samples or images were lost or counted twice.
        """
        shard, expected = self._shard, self._expected_samples
        totals = ShardCounts(
            len(self._has_row),
            sum(self._has_row),
            dict(self._outcomes),
            written_bytes,
            self._all_notes(),
            None if self._lost is None else self._lost.result(),
        )
        if totals.samples != expected:
            raise ConservationError(
                f"shard {shard}: {totals.samples} of the manifest's {expected} samples were processed"
            )
        if not totals.images == totals.ok + totals.failed == self._lines == ledger_lines:
            raise ConservationError(
                f"shard {shard}: {totals.images} images were processed, {totals.ok} arrived, {totals.failed} failed, "
                f"{ledger_lines} lines in the ledger"
            )
        return ShardSummary(totals, np.array(self._has_row, np.bool_), np.array(self._is_own, np.bool_), self._retry)

    def _all_notes(self) -> dict[str, int]:
        """The counts besides samples and images: of the manifest's scan, and of what is counted here."""
        notes = {**self._notes, CounterName.SKIPPED: self._outcomes[FailureKind.NOT_REQUESTED]}
        return {str(name): count for name, count in notes.items() if count}
