"""Lists of ``shard,index``: which documents of which shards are wanted, and what the indices seem to count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from datafetch.datasets.readers import INDEX_BITS, IdList, Int64s, pack_pair

_TELLING_SHARDS = 5
_TELLING_INDICES = 20  # of a shard: from so many on, the largest lies near the end of what they were drawn from
_TELLING_DIFFERENCE = 0.1


class IdsIndex(StrEnum):
    """What the index in an id list counts."""

    DOCUMENT = "document"
    """The documents of a shard, as published."""
    KEPT = "kept"
    """Those of them that became a row."""


@dataclass(frozen=True, slots=True, eq=False)
class ShardIndices:
    """The wanted indices by shard; 8 bytes each."""

    ids: IdList
    shards: Int64s

    @classmethod
    def of(cls, ids: IdList) -> ShardIndices:
        """Those of a list."""
        return cls(ids, np.unique(ids.ids >> INDEX_BITS))

    @property
    def duplicates(self) -> int:
        """Lines that repeated an earlier one."""
        return self.ids.duplicates

    def __len__(self) -> int:
        return len(self.ids.ids)

    def __contains__(self, shard: int) -> bool:
        place = int(np.searchsorted(self.shards, shard))
        return place < len(self.shards) and int(self.shards[place]) == shard

    def of_shard(self, shard: int) -> Int64s:
        """Those of one shard, ascending."""
        first, end = np.searchsorted(self.ids.ids, (pack_pair(shard, 0), pack_pair(shard + 1, 0)))
        return self.ids.ids[first:end] & ((1 << INDEX_BITS) - 1)

    def count(self, keys: Iterable[str]) -> int:
        """How many of them are among these keys, each ``shard,index``; a key may come several times."""
        found = np.zeros(len(self), np.bool_)
        packed = np.fromiter((pack_pair(*map(int, key.split(","))) for key in keys), np.int64)
        places, present = self.ids.find(packed)
        found[places[present]] = True
        return int(found.sum())


@dataclass(slots=True)
class IndexKindDetector:
    """Which of the two meanings the indices look like, by the shards that were seen.

    Indices drawn at random from all documents of a shard reach nearly to its end: of k among n the largest lies, on
    average, at n·k/(k+1). Indices among the documents that were kept end where those end.
    """

    out_of_range: int = 0
    _shards: int = 0
    _reached: float = 0.0
    _expected: float = 0.0

    def see(self, indices: Int64s, documents: int) -> None:
        """Take a shard into account, of so many documents."""
        if not documents:  # an earlier version did not count them
            return
        self.out_of_range += int(np.sum(indices >= documents))
        if len(indices) >= _TELLING_INDICES:
            self._shards += 1
            self._reached += min(1.0, (int(indices[-1]) + 1) / documents)
            self._expected += len(indices) / (len(indices) + 1)

    def remark(self, *, is_of_kept: bool) -> str:
        """What the operator should know; nothing where all is as it should be."""
        if self._shards < _TELLING_SHARDS:
            return ""
        reached, expected = self._reached / self._shards, self._expected / self._shards
        looks_kept = reached < expected - _TELLING_DIFFERENCE
        if looks_kept == is_of_kept:
            return ""
        other = IdsIndex.KEPT if looks_kept else IdsIndex.DOCUMENT
        return (
            f"the largest index of a shard lies at {reached:.0%} of its documents on average, which looks like "
            f"positions among {'the kept documents' if looks_kept else 'all documents'} (--ids-index {other})"
        )
