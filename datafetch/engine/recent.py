"""Where the newest of many things are: numbers by keys, in so many bytes and never more.

Rules: a table of buckets, as a processor's cache has them. A key has one bucket; when that is full, the oldest of it
makes room. So nothing grows, nothing is cleaned up, and what was put there last is found for sure.
"""

from __future__ import annotations

import numpy as np

_WAYS = 8  # of so many keys in a bucket's reach, all are found; with half as many keys as places, hardly one is lost
_BITS = 64


class RecentUrlIndex:
    """Numbers by keys, 17 bytes each.

    Args:
        places: How many there is room for; a power of two, 8 at least.
    """

    def __init__(self, places: int) -> None:
        self._buckets = places // _WAYS
        self._keys = np.zeros((self._buckets, _WAYS), np.uint64)
        self._values = np.zeros((self._buckets, _WAYS), np.uint64)
        self._oldest = np.zeros(self._buckets, np.uint8)

    def put(self, key: int, value: int) -> None:
        """Note a number.

        Args:
            key: A hash of 64 bits, signed or not.
            value: From 1 to 2**64 - 1.
        """
        key %= 1 << _BITS
        bucket = key % self._buckets
        way = self._find(bucket, key)
        if way is None:
            way = int(self._oldest[bucket])
            self._oldest[bucket] = (way + 1) % _WAYS
        self._keys[bucket, way] = key
        self._values[bucket, way] = value

    def get(self, key: int) -> int | None:
        """The number that was noted last for a key; None where there is none, or it has made room."""
        key %= 1 << _BITS
        bucket = key % self._buckets
        way = self._find(bucket, key)
        return None if way is None else int(self._values[bucket, way])

    def _find(self, bucket: int, key: int) -> int | None:
        for way, other in enumerate(self._keys[bucket].tolist()):
            if other == key and self._values[bucket, way]:  # all zeros is an empty place
                return way
        return None
