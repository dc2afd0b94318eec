"""UrlIndex: where something is that has a URL, in 16 bytes of memory each."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

_BUCKETS = 64  # each is sorted by itself, which takes three times its memory
_HASH_BITS = 64


class UrlIndex:
    """Maps hashes of URLs to numbers; URLs are added first, and then looked up.

    Hashes are those of this process (``hash``), which nobody outside can foresee. Several URLs may have the same one,
    and a URL may be added several times, so the caller checks what it finds.
    """

    def __init__(self) -> None:
        self._added = [(array("Q"), array("Q")) for _ in range(_BUCKETS)]
        self._sorted: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]] = []

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._added or self._sorted)

    def add(self, url: str, number: int) -> None:
        """Add a URL.

        Args:
            url: The URL.
            number: Where it is: from 0 to 2**64 - 1.
        """
        key = hash(url) % (1 << _HASH_BITS)
        keys, numbers = self._added[key % _BUCKETS]
        keys.append(key)
        numbers.append(number)

    def sort(self) -> None:
        """Make what was added ready to be looked up; nothing can be added any more."""
        while self._added:
            keys, numbers = (np.frombuffer(values, np.uint64) for values in self._added.pop(0))
            order: Any = np.argsort(keys, kind="stable")
            self._sorted.append((keys[order], numbers[order]))

    def find(self, url: str) -> Iterator[int]:
        """The numbers under which a URL may have been added, in that order."""
        key = hash(url) % (1 << _HASH_BITS)
        keys, numbers = self._sorted[key % _BUCKETS]
        position = int(np.searchsorted(keys, np.uint64(key)))
        while position < len(keys) and int(keys[position]) == key:
            yield int(numbers[position])
            position += 1
