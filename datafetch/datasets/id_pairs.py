"""Id lists of ``shard,index`` pairs: which documents of which shards they select, and what the indices seem to count.

A list does not say whether an index counts all documents of a shard, or only those that became a row.
``IndexKindDetector`` estimates which, so that a wrong ``--ids-index`` does not go unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from datafetch.datasets.readers import INDEX_BITS, IdList, Int64s, pack_pair

_MIN_SHARDS = 5
_MIN_INDICES = 20  # of a shard; with fewer, the largest index may lie far from the end of what they were drawn from
_MIN_DIFFERENCE = 0.1


class IdsIndex(StrEnum):
    """What the index in an id list counts, from 0."""

    DOCUMENT = "document"
    """All documents of a shard, as published."""
    KEPT = "kept"
    """Only the documents that became a row."""


@dataclass(frozen=True, slots=True, eq=False)
class ShardIndices:
    """The selected indices by shard; memory holds 8 bytes for each.

    Attributes:
        ids: The packed pairs.
        shards: The distinct shard numbers in them, ascending.
    """

    ids: IdList
    shards: Int64s

    @classmethod
    def of(cls, ids: IdList) -> ShardIndices:
        """Group the pairs of a list by shard."""
        return cls(ids, np.unique(ids.ids >> INDEX_BITS))

    @property
    def duplicates(self) -> int:
        """The number of lines that repeat an earlier one."""
        return self.ids.duplicates

    def __len__(self) -> int:
        return len(self.ids.ids)

    def __contains__(self, shard: int) -> bool:
        position = int(np.searchsorted(self.shards, shard))
        return position < len(self.shards) and int(self.shards[position]) == shard

    def of_shard(self, shard: int) -> Int64s:
        """The selected indices of one shard, ascending."""
        first, end = np.searchsorted(self.ids.ids, (pack_pair(shard, 0), pack_pair(shard + 1, 0)))
        return self.ids.ids[first:end] & ((1 << INDEX_BITS) - 1)

    def count_found(self, keys: Iterable[str]) -> int:
        """Count the pairs that are among these keys, each ``shard,index``; a key may be repeated."""
        found = np.zeros(len(self), np.bool_)
        packed = np.fromiter((pack_pair(*map(int, key.split(","))) for key in keys), np.int64)
        positions, is_present = self.ids.find(packed)
        found[positions[is_present]] = True
        return int(found.sum())


@dataclass(slots=True)
class IndexKindDetector:
    """Estimates from the shards of a run what the indices of an id list count.

    Of k indices that are drawn at random from n documents, the largest is n·k/(k+1) on average, so it lies near the end
    of the shard. If the indices count only the documents that were kept, the largest lies near the number of those,
    well before the end. The mean over all shards, compared with the expected mean, tells the two apart.

    Attributes:
        out_of_range: The number of indices beyond the end of their shards.
    """

    out_of_range: int = 0
    _shards: int = 0
    _reached: float = 0.0
    _expected: float = 0.0

    def add_shard(self, indices: Int64s, documents: int) -> None:
        """Take a shard into account.

        Args:
            indices: The selected indices of the shard, ascending.
            documents: The number of documents that it has; 0 if an earlier version of datafetch did not count them.
        """
        if not documents:
            return
        self.out_of_range += int(np.sum(indices >= documents))
        if len(indices) >= _MIN_INDICES:
            self._shards += 1
            self._reached += min(1.0, (int(indices[-1]) + 1) / documents)
            self._expected += len(indices) / (len(indices) + 1)

    def remark(self, *, is_of_kept: bool) -> str:
        """Return an observation for the operator; an empty string if the indices look as they were taken.

        Args:
            is_of_kept: Whether the run took them to count kept documents.
        """
        if self._shards < _MIN_SHARDS:
            return ""
        reached, expected = self._reached / self._shards, self._expected / self._shards
        looks_kept = reached < expected - _MIN_DIFFERENCE
        if looks_kept == is_of_kept:
            return ""
        other = IdsIndex.KEPT if looks_kept else IdsIndex.DOCUMENT
        return (
            f"its indices seem to count {'only documents that become rows' if looks_kept else 'all documents'} (the "
            f"largest of a shard lies at {reached:.0%} of its documents on average); if so, give --ids-index {other}"
        )
