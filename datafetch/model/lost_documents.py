"""The documents that were lost: they did not become a row, because images of them failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from datafetch.model.bounds import Count
from datafetch.model.outcome import OK, FailureKind

MAX_COUNTED_IMAGES = 6
"""Documents with more images that arrived are counted like those with this many; the trainer reads no more of one."""


@dataclass(frozen=True, slots=True)
class LostDocuments:
    """How many documents of a shard, or of several, were lost.

    Attributes:
        by_kind: Their number by the kind of their first failure, in the order of their images. An image that was not
            requested is not counted as one, unless there is no other.
        by_arrived: Their number by how many of their images arrived, from 0 to ``MAX_COUNTED_IMAGES``. Others might
            have arrived, had they been requested.
    """

    by_kind: Mapping[str, Count] = field(default_factory=dict)
    by_arrived: tuple[Count, ...] = ()

    @property
    def count(self) -> int:
        """The number of lost documents."""
        return sum(self.by_kind.values())

    def with_images(self, images: int) -> int:
        """The number of lost documents of which at least this many images arrived, at most ``MAX_COUNTED_IMAGES``."""
        return sum(self.by_arrived[images:])

    @classmethod
    def sum(cls, parts: Iterable[LostDocuments | None]) -> LostDocuments | None:
        """Add up the counts of several shards; None if no shard has any."""
        counts = [part for part in parts if part is not None]
        by_kind: Counter[str] = Counter()
        by_arrived: tuple[int, ...] = ()
        for part in counts:
            by_kind.update(part.by_kind)
            by_arrived = tuple(map(sum, zip_longest(by_arrived, part.by_arrived, fillvalue=0)))
        return cls(dict(by_kind), by_arrived) if counts else None


class LostDocumentCounter:
    """Counts lost documents one by one."""

    def __init__(self) -> None:
        self._by_kind: Counter[str] = Counter()
        self._by_arrived = [0] * (MAX_COUNTED_IMAGES + 1)

    def add(self, outcomes: Sequence[str]) -> None:
        """Count a document without a row; it is lost if one of its images failed.

        Args:
            outcomes: The outcomes of its images, in order, as the ledger spells them.
        """
        failures = [outcome for outcome in outcomes if outcome != OK]
        if failures:
            requested = (kind for kind in failures if kind != FailureKind.NOT_REQUESTED)
            self._by_kind[next(requested, FailureKind.NOT_REQUESTED.value)] += 1
            self._by_arrived[min(len(outcomes) - len(failures), MAX_COUNTED_IMAGES)] += 1

    def result(self) -> LostDocuments:
        """What was counted so far."""
        return LostDocuments(dict(self._by_kind), tuple(self._by_arrived))
