"""Throughput: the current pace of a run."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from datafetch.model.statistics import Statistics

_WINDOW_S = 15.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a run is.

    Attributes:
        images_per_s: Images that ended in this run, per second.
        received_bytes_per_s: Body bytes received, per second.
    """

    images_per_s: float = 0.0
    received_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Moment:
    elapsed_s: float
    images: int
    received_bytes: int


class Throughput:
    """Computes the pace over the last 15 seconds, which is steady, but follows changes soon."""

    def __init__(self) -> None:
        self._moments: deque[_Moment] = deque([_Moment(0.0, 0, 0)])

    def pace(self, now: Statistics) -> Pace:
        """Add a snapshot, and return the pace up to it, counting only images that ended in this run."""
        newest = _Moment(now.elapsed_s, now.ok + now.failed - now.earlier, now.fetched_bytes)
        self._moments.append(newest)
        while self._moments[1].elapsed_s <= newest.elapsed_s - _WINDOW_S:
            self._moments.popleft()
        oldest = self._moments[0]
        passed_s = newest.elapsed_s - oldest.elapsed_s
        if passed_s <= 0:
            return Pace()
        return Pace(
            (newest.images - oldest.images) / passed_s, (newest.received_bytes - oldest.received_bytes) / passed_s
        )
