"""WorkerStartup: what a worker is told when it is started, and a sample as it is handed to one."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from datafetch.engine.image_access import ImageAccess
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.sample import Sample

LENGTH_BYTES = 8
"""Of the length of a pickled ``WorkerStartup``."""


@dataclass(frozen=True, slots=True)
class WorkerStartup:
    """What a worker is told.

    Attributes:
        worker: Its number, from 1.
        workers: The number of workers.
        access: Where the bytes of images come from; its job has the worker's share of all budgets.
        log_level: Messages below it are not logged.
        first_image: Its images have numbers from here on, by which requests of all workers wait in turn for a host.
    """

    worker: int
    workers: int
    access: ImageAccess
    log_level: int
    first_image: int = 0


class SampleToFetch(NamedTuple):
    """A sample that a worker is to fetch.

    Attributes:
        shard: The number of its shard in this run.
        sample: The sample.
        ended: The lines of those of its images that have an outcome, by their number.
        jpeg_bytes: The size of those of them that arrived.
    """

    shard: int
    sample: Sample
    ended: Mapping[int, LedgerLine] = {}
    jpeg_bytes: int = 0


def pickle_samples(samples: Iterable[SampleToFetch]) -> bytes:
    """Samples as bytes, for a process that this one has started.

    They are pickled as plain values, in a third of the time that dataclasses take.
    """
    plain = [
        (one.shard, (sample.position, sample.key, sample.urls, sample.row, sample.content), one.ended, one.jpeg_bytes)
        for one in samples
        for sample in (one.sample,)
    ]
    return pickle.dumps(plain, protocol=pickle.HIGHEST_PROTOCOL)


def unpickle_samples(pickled: bytes) -> list[SampleToFetch]:
    """The samples that the process has sent which has started this one."""
    plain = pickle.loads(pickled)  # noqa: S301 - from the parent process
    return [SampleToFetch(shard, Sample(*fields), ended, jpeg_bytes) for shard, fields, ended, jpeg_bytes in plain]
