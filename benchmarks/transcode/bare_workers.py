"""The ceiling: bare processes that have the bodies in memory, and take numbers from a shared counter.

Nothing is awaited, no JPEG is returned, and the parent sleeps. A ``multiprocessing`` pool that handed out the numbers
would take so much CPU time that some of the machineries would be faster than this ceiling.
"""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections.abc import Sequence
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from benchmarks.cpu_clock import CpuClock
from benchmarks.transcode.subprocess_pool import Codec, PoolTally, PoolWorkload, name_of
from datafetch.transcode import ImageSpec

_CHUNK_IMAGES = 4  # taken one chunk at a time, so that the processes end together


class _Bare:
    """What a bare process works on."""

    taken: Synchronized[int]
    bodies: Sequence[bytes]


def main() -> None:
    """Transcode the workload."""
    request, result = map(Path, sys.argv[1:])
    workload: PoolWorkload = pickle.loads(request.read_bytes())
    context = multiprocessing.get_context("spawn")
    taken = context.Value("q", 0)
    with context.Pool(workload.processes, _load, (workload.paths, taken)) as pool:
        work = (workload.codec, workload.spec)
        pool.starmap(_transcode, [(*work, workload.in_flight)] * workload.processes, chunksize=1)
        taken.value = 0
        clock = CpuClock()
        outcomes = pool.starmap(_transcode, [(*work, workload.images)] * workload.processes, chunksize=1)
        result.write_bytes(pickle.dumps(PoolTally([name for names in outcomes for name in names], clock.stop())))


def _load(paths: Sequence[Path], taken: Synchronized[int]) -> None:
    _Bare.taken = taken
    _Bare.bodies = [path.read_bytes() for path in paths]


def _transcode(codec: Codec, spec: ImageSpec, images: int) -> list[str]:
    """Take numbers until all are taken, and return the outcomes of those that this process took."""
    outcomes: list[str] = []
    while True:
        with _Bare.taken.get_lock():
            start = _Bare.taken.value
            _Bare.taken.value += _CHUNK_IMAGES
        if start >= images:
            return outcomes
        outcomes += [
            name_of(codec(_Bare.bodies[number % len(_Bare.bodies)], spec))
            for number in range(start, min(start + _CHUNK_IMAGES, images))
        ]
