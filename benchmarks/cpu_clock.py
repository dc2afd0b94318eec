"""CpuClock: the CPU time that this process, its descendants and the rest of the machine take between two moments.

Rules: nothing is sampled: the kernel's counters are read at the start and at the end. A process that ended in between
is counted if its parent waited for it.
"""

from __future__ import annotations

import os
import resource
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil

from benchmarks.meter import busy_s


@dataclass(frozen=True, slots=True)
class CpuSpent:
    """What was spent.

    Attributes:
        elapsed_s: Wall-clock time.
        own_s: CPU seconds of all threads of this process.
        children_s: CPU seconds of all descendants of this process.
        others_share: The share of the machine's CPU time that other processes took, 0 to 1.
    """

    elapsed_s: float
    own_s: float
    children_s: float
    others_share: float


class CpuClock:
    """A clock that runs from its creation."""

    def __init__(self) -> None:
        self._busy_s = busy_s()
        self._children_s = _children_s()
        self._own_s = time.process_time()
        self._started_s = time.perf_counter()

    def stop(self) -> CpuSpent:
        """Read the clock."""
        elapsed_s = time.perf_counter() - self._started_s
        own_s = time.process_time() - self._own_s
        children_s = _children_s() - self._children_s
        others_s = busy_s() - self._busy_s - own_s - children_s
        return CpuSpent(elapsed_s, own_s, children_s, max(0.0, others_s) / elapsed_s / (os.cpu_count() or 1))


def _children_s() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent_s = ended.ru_utime + ended.ru_stime
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent_s += times.user + times.system + times.children_user + times.children_system
    return spent_s
