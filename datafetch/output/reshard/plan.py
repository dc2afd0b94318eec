"""What is resharded, and how: the sources, the plan, and the new position of each row."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from datafetch.output.reshard.ranks import Ranks

Int64s: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """How shards are resharded.

    Attributes:
        ranks: The ranks that will read the new shards.
        shuffle: The seed of the permutation of the rows; None keeps their order.
    """

    ranks: Ranks
    shuffle: int | None

    def identity_fields(self) -> dict[str, Any]:
        """The fields of ``equal.json`` that describe the plan."""
        return {
            "world_size": self.ranks.world_size,
            "batch": self.ranks.batch,
            "group": self.ranks.group,
            "shuffle": self.shuffle,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A pickle shard to read.

    Attributes:
        path: The file of its rows.
        rows: The number of rows that it must hold.
        positions: The position of each row among all rows of the new set, from 0; negative if the row is left out.
    """

    path: Path
    rows: int
    positions: Int64s

    @property
    def copied_rows(self) -> int:
        """The number of rows that are not left out."""
        return int((self.positions >= 0).sum())


def permutation(rows: int, seed: int | None) -> Int64s:
    """The new position of each row: its own, or with a seed a random one.

    The result for a seed will never change. NumPy guarantees the raw output of a bit generator and the result of a
    stable sort, but not the output of ``Generator.permutation`` (NEP 19).
    """
    if seed is None:
        return np.arange(rows, dtype=np.int64)
    return np.argsort(np.random.PCG64(seed).random_raw(rows), kind="stable")


def fingerprint(path: Path) -> list[str | int]:
    """Identifies a source and its content, for JSON: path, size, and time of the last change in nanoseconds."""
    status = path.stat()
    name = os.fsencode(path.absolute()).decode("utf-8", "backslashreplace")
    return [name, status.st_size, status.st_mtime_ns]
