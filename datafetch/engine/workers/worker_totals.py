"""WorkerTotals: what all workers of a run have come to, and how each of them stands."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import replace

from datafetch.engine.first_outcomes import OutcomeComparison
from datafetch.engine.image_counts import ImageCounts
from datafetch.engine.workers.messages import WorkerStatistics
from datafetch.engine.workers.worker_process import WorkerProcess
from datafetch.model.outcome import OK
from datafetch.model.statistics import WorkerState


class WorkerTotals:
    """Adds up what workers report, those that were killed included.

    Attributes:
        images: The images of samples that have ended, and those that workers which were killed have left.
    """

    def __init__(self) -> None:
        self.images = ImageCounts()
        self._by_number: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._kills: Counter[int] = Counter()
        self._requests_of_killed = self._bytes_of_killed = 0
        self._compared_by_killed = OutcomeComparison()

    def add(self, worker: int, images: ImageCounts) -> None:
        """Count images of a worker, by its number."""
        self.images.merge(images)
        self._by_number[worker].update(images.outcomes)

    def add_killed(self, worker: WorkerProcess) -> None:
        """Take note that a worker was killed."""
        self._kills[worker.number] += 1
        if worker.statistics is not None:
            self._requests_of_killed += worker.statistics.requests
            self._bytes_of_killed += worker.statistics.fetched_bytes
            self._compared_by_killed.merge(worker.statistics.compared)

    def sum(self, workers: Collection[WorkerProcess]) -> WorkerStatistics:
        """The statistics of all workers together."""
        parts = [worker.statistics for worker in workers if worker.statistics is not None]
        waiting = [part.waiting for part in parts if part.waiting is not None]
        most = max(waiting, key=lambda one: one.host_images, default=None)
        compared = OutcomeComparison()
        for one in (self._compared_by_killed, *(part.compared for part in parts)):
            compared.merge(one)
        return WorkerStatistics(
            requests=self._requests_of_killed + sum(part.requests for part in parts),
            fetched_bytes=self._bytes_of_killed + sum(part.fetched_bytes for part in parts),
            connections=sum(part.connections for part in parts),
            open_requests=sum(part.open_requests for part in parts),
            peak_open_requests=sum(part.peak_open_requests for part in parts),
            transcoding=sum(part.transcoding for part in parts),
            waiting=None if most is None else replace(most, images=sum(one.images for one in waiting)),
            compared=compared,
            unreached=[url for part in parts for url in part.unreached],
            per_host=max((part.per_host for part in parts), default=0),
            is_within_limits=all(part.is_within_limits for part in parts),
        )

    def state_of(self, worker: WorkerProcess) -> WorkerState:
        """How a worker stands."""
        outcomes = self._by_number[worker.number]
        return WorkerState(
            number=worker.number,
            pid=worker.pid,
            images=outcomes.total(),
            failed=outcomes.total() - outcomes[OK],
            open_requests=0 if worker.statistics is None else worker.statistics.open_requests,
            kills=self._kills[worker.number],
        )
