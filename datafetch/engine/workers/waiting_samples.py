"""WaitingSamples: samples that wait for the worker that owns their host to have room for them.

Theory of operation. A few samples wait for each worker, so that nearly all go to the owner of their first host. The
owner needs no other worker's permission for a slot there, and only the owner has to look up the host and keep its TLS
session. When the queue is full, or when no more samples will come, a worker that has room but no samples of its own
takes one from the longest queue, so that a worker that is slow or owns many hosts does not hold up the others.
"""

from __future__ import annotations

from collections import deque

from datafetch.engine.workers.worker_process import InHand

_MAX_SAMPLES_PER_WORKER = 64


class WaitingSamples:
    """The samples that wait, by the worker that they wait for.

    Args:
        workers: The number of workers.
    """

    def __init__(self, workers: int) -> None:
        self._by_owner: dict[int, deque[InHand]] = {number: deque() for number in range(1, workers + 1)}
        self._max_samples = workers * _MAX_SAMPLES_PER_WORKER
        self._samples = 0
        self._is_last = False

    def is_full(self) -> bool:
        """Whether as many wait as may."""
        return self._samples >= self._max_samples

    def add(self, owner: int, one: InHand) -> None:
        """Let a sample wait for a worker."""
        self._by_owner[owner].append(one)
        self._samples += 1

    def set_last(self) -> None:
        """Take note that no more will come but those that are given back."""
        self._is_last = True

    def take(self, worker: int) -> InHand | None:
        """The next sample for a worker that has room; None if it is to wait for one of its own."""
        waiting = self._by_owner[worker]
        if not waiting and (self._is_last or self.is_full()):
            waiting = max(self._by_owner.values(), key=len)
        if not waiting:
            return None
        self._samples -= 1
        return waiting.popleft()
