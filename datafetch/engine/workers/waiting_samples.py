"""WaitingSamples: samples that wait for the worker that owns their host to have room for them.

Theory of operation. A few samples wait for each worker, so that nearly all are given to the owner of their first host,
which need ask nobody for a slot there, and alone needs the host's address and TLS session. When as many wait as may, or
when there are no more, a worker that has room and nothing waiting for it takes from the one for which most wait: an
owner of many hosts, or one that is slow, holds up nobody.
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
