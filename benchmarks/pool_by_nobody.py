"""The ceiling: bare processes that have the bodies in their memory already, and are handed numbers."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cpu_clock import CpuClock
from pool_errand import PoolErrand, PoolTally, name_of

from datafetch.transcode import ImageSpec
from datafetch.transcode.worker import Codec

_CHUNK_IMAGES = 4  # handed out one chunk at a time, so that the processes end together

_bodies: list[bytes] = []
"""In a bare process: the pictures."""


def main() -> None:
    """Do the errand; nothing is awaited, and no JPEG comes back."""
    order, result = map(Path, sys.argv[1:])
    errand: PoolErrand = pickle.loads(order.read_bytes())
    transcode = partial(_transcode, errand.codec, errand.spec)
    with multiprocessing.get_context("spawn").Pool(errand.processes, _load, (errand.paths,)) as pool:
        pool.map(transcode, range(errand.in_flight), chunksize=_CHUNK_IMAGES)
        clock = CpuClock()
        outcomes = list(pool.imap_unordered(transcode, range(errand.images), chunksize=_CHUNK_IMAGES))
        result.write_bytes(pickle.dumps(PoolTally(outcomes, clock.stop())))


def _load(paths: Sequence[Path]) -> None:
    _bodies.extend(path.read_bytes() for path in paths)


def _transcode(codec: Codec, spec: ImageSpec, number: int) -> str:
    return name_of(codec(_bodies[number % len(_bodies)], spec))
