"""Coordinator: hands out the samples of a feed to worker processes, and publishes complete shards.

Theory of operation. The coordinator reads the manifest and knows, for each sample that it has handed out, which worker
has it in hand. A worker fetches samples, with a loop, connections and codec processes of its own, and appends the
results to spools of its own, one for each shard; then it reports that they have ended. When all samples of a shard have
ended, the shard is committed from all of its spools together. So no image passes through the coordinator, and what it
does for one is to hand it out, and to count it.

A sample goes to the worker that owns the host of its first URL, unless that has too many (``waiting_samples``). The
owner need not ask another worker for a slot at the host, or what became of the URL.

When a worker is killed, its spools hold everything that it had finished, reported or not. They are read, so that these
samples count as ended, and what else it had in hand is handed out again, together with what the spools have of it.
Another process takes its number, its spools, and the hosts that it owned; ``mesh`` says how the others find it.

Rules: a worker that was killed is replaced. A worker that exits by itself has hit a bug, and one that reports that it
can't go on lacks something on this machine: both stop the run.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from datafetch import errors
from datafetch.engine.feed import Feed, NextSample, OpenShard
from datafetch.engine.first_outcomes import FirstOutcomes
from datafetch.engine.image_access import ImageAccess
from datafetch.engine.image_counts import FetchCounts, ImageCounts
from datafetch.engine.publish import Publisher
from datafetch.engine.reach import Reach
from datafetch.engine.workers.budgets import share_of
from datafetch.engine.workers.messages import (
    Ended,
    Failed,
    Finished,
    FromWorker,
    Limit,
    Listens,
    Logged,
    PeerListens,
    Ready,
    Stop,
    TriedUrls,
    TryUrls,
    Wants,
    WorkerStatistics,
)
from datafetch.engine.workers.owner import owner_of_url
from datafetch.engine.workers.relayed_log import RelayedLog
from datafetch.engine.workers.startup import WorkerStartup
from datafetch.engine.workers.waiting_samples import WaitingSamples
from datafetch.engine.workers.worker_process import InHand, WorkerProcess
from datafetch.engine.workers.worker_totals import WorkerTotals
from datafetch.errors import ResourceError
from datafetch.fetch.policy import MIN_RATE_BYTES_PER_S
from datafetch.fetch.receive_rate import ReceiveRate
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import OK, Source
from datafetch.model.sample import Sample
from datafetch.model.statistics import Statistics
from datafetch.process.child import signal_name
from datafetch.store.spool import FoundResults, find_results

_MAX_FRUITLESS_STARTS = 3  # of a worker that is killed before it has fetched anything, as if memory were too small
_RUN_OF_MEMBERS = 64  # of an archive, for the same worker
_ANSWER_TIMEOUT_S = 120.0
_WATCH_INTERVAL_S = 0.5
_ERRORS = {
    error.__name__: error
    for error in (errors.ConfigurationError, errors.ConservationError, errors.ManifestError, errors.ResourceError)
}

_log = logging.getLogger(__name__)


class Coordinator:
    """Fetches, transcodes and publishes everything that a feed hands out, in worker processes.

    Args:
        feed: Where the samples come from.
        access: Where the bytes of images come from, with the job of all workers together.
        workers: The number of workers.
        publisher: Publishes shards.
        reader_rate: The part of the cap on the rate with which the manifest is read over the network meanwhile; None
            if it is not, or there is no cap.
    """

    def __init__(
        self,
        feed: Feed,
        access: ImageAccess,
        workers: int,
        publisher: Publisher,
        *,
        reader_rate: ReceiveRate | None = None,
    ) -> None:
        self._feed = feed
        self._access = access
        self._number_of_workers = workers
        self._reader_rate = reader_rate
        self._rate_parts = workers + (reader_rate is not None)
        self._publisher = publisher
        self._workers: dict[int, WorkerProcess] = {}
        self._shard_numbers: dict[OpenShard, int] = {}
        self._last_shard = 0
        self._outstanding = 0
        self._stopping = asyncio.Event()
        self._all_ended = asyncio.Event()
        self._waiting = WaitingSamples(workers)
        self._has_place = asyncio.Event()
        self._unflushed: set[WorkerProcess] = set()
        self._totals = WorkerTotals()
        self._peak_open_requests = 0
        self._answers: asyncio.Future[int | None] | None = None
        self._asked: WorkerProcess | None = None
        self._first_outcomes: FirstOutcomes | None = None
        self._log = RelayedLog()
        self._loop = asyncio.get_running_loop()
        self._next_watch_s = 0.0
        self._started_s = time.monotonic()

    async def run(self) -> None:
        """Work until all shards are published.

        Raises:
            DatafetchError: What stopped the run. The results of images that have ended are in the spools.
            ConservationError: The manifest yielded fewer samples than it had counted.
        """
        try:
            async with asyncio.TaskGroup() as group:
                await self._hand_out_all(group)
                await self._until_all_ended()
                self._stopping.set()
                for worker in self._workers.values():
                    worker.send(Stop())
        finally:
            await asyncio.gather(self._feed.close(), *(worker.end() for worker in self._workers.values()))
        self._feed.refuse_open_shards()
        self._watch()
        if self._first_outcomes is not None:
            self._first_outcomes.end()

    def counts(self) -> FetchCounts:
        """What was done."""
        now = self._totals.sum(self._workers.values())
        return FetchCounts(
            images=self._totals.images,
            requests=now.requests,
            fetched_bytes=now.fetched_bytes,
            connections=now.connections,
            peak_open_requests=self._peak_open_requests,
            failed_alike=None if self._first_outcomes is None else self._first_outcomes.failed_alike,
            networks=() if self._first_outcomes is None else self._first_outcomes.networks,
        )

    def reach(self) -> Reach:
        """How much of the web is reached."""
        per_host = self._access.job.fetch.per_host
        parts = [worker.statistics for worker in self._workers.values()]
        urls = [url for part in parts if part is not None for url in part.unreached]
        return Reach.of(
            self._totals.images.outcomes,
            tuple(url.decode("utf-8", "surrogatepass") for url in urls),
            is_within_limits=all(
                part is not None and part.is_within_limits and part.per_host == per_host for part in parts
            ),
        )

    def limit_to(self, per_host: int, max_rate_bytes_per_s: int | None) -> None:
        """Set other limits than the job has, also for workers that take the place of others."""
        job = self._access.job
        rate = None if job.fetch.max_rate_bytes_per_s is None else max_rate_bytes_per_s
        rate = None if rate is None else max(rate, MIN_RATE_BYTES_PER_S * self._rate_parts)
        fetch = replace(job.fetch, per_host=per_host, max_rate_bytes_per_s=rate)
        self._access = replace(self._access, job=replace(job, fetch=fetch))
        part = None if rate is None else rate // self._rate_parts
        if self._reader_rate is not None and part is not None:
            self._reader_rate.limit_to(part)
        for worker in self._workers.values():
            worker.send(Limit(per_host, part))

    async def count_answered(self, urls: Sequence[str]) -> int | None:
        """Request URLs, and count those that a server answers; None if no worker can request them."""
        worker = self._asked = next(
            (one for one in self._workers.values() if one.is_ready and one.returncode is None), None
        )
        if worker is None:
            return None
        self._answers = self._loop.create_future()
        worker.send(TryUrls([url.encode("utf-8", "surrogatepass") for url in urls]))
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                return await self._answers
        except TimeoutError:
            return None

    def statistics(self) -> Statistics:
        """A snapshot of the run."""
        now = self._totals.sum(self._workers.values())
        outcomes = self._totals.images.outcomes + self._feed.ended_before
        return Statistics(
            expected_images=self._feed.expected_images(),
            ok=outcomes[OK],
            failed=outcomes.total() - outcomes[OK],
            earlier=self._feed.ended_before.total(),
            shards=self._feed.shards,
            shards_published=len(self._feed.published),
            fetched_bytes=now.fetched_bytes,
            connections=now.connections,
            open_requests=now.open_requests,
            elapsed_s=time.monotonic() - self._started_s,
            waiting=now.waiting,
            transcoding=now.transcoding,
            workers=tuple(map(self._totals.state_of, self._workers.values())),
        )

    async def _hand_out_all(self, group: asyncio.TaskGroup) -> None:
        while (next_sample := await self._feed.pull()) is not None:
            if next_sample.sample is None:
                group.create_task(self._publish(next_sample.shard))
                continue
            if not self._workers:
                await self._start_workers(group)
            self._outstanding += 1
            ended, jpeg_bytes = next_sample.shard.spool.recovered.of_sample(next_sample.sample)
            await self._hand_out(InHand(next_sample, next_sample.sample, ended, jpeg_bytes))

    async def _hand_out(self, one: InHand) -> None:
        """Let a sample wait for a worker, as soon as not too many do."""
        while self._waiting.is_full():
            self._has_place.clear()
            await self._has_place.wait()
        owner = self._owner_of(one.sample)
        self._waiting.add(owner, one)
        for worker in self._workers.values() if self._waiting.is_full() else (self._workers[owner],):
            self._serve(worker)

    def _owner_of(self, sample: Sample) -> int:
        """The number of the worker that a sample is for."""
        if self._access.archives.locations:  # neighbours in an archive are read together
            return sample.position // _RUN_OF_MEMBERS % self._number_of_workers + 1
        return owner_of_url(sample.urls[0], self._number_of_workers) if sample.urls else 1

    def _serve(self, worker: WorkerProcess) -> None:
        """Give a worker as many samples as it has room for."""
        while worker.room > 0 and (one := self._waiting.take(worker.number)) is not None:
            shard = one.next_sample.shard
            worker.hand_out(self._number_of(shard), shard.shard.name, one)
            if not self._unflushed:
                self._loop.call_soon(self._flush)
            self._unflushed.add(worker)
            self._has_place.set()

    def _flush(self) -> None:
        for worker in self._unflushed:
            worker.flush()
        self._unflushed.clear()

    def _number_of(self, shard: OpenShard) -> int:
        number = self._shard_numbers.get(shard)
        if number is None:
            number = self._last_shard = self._last_shard + 1
            self._shard_numbers[shard] = number
        return number

    async def _until_all_ended(self) -> None:
        self._waiting.set_last()
        for worker in self._workers.values():
            self._serve(worker)
        while self._outstanding:
            self._all_ended.clear()
            await self._all_ended.wait()

    async def _start_workers(self, group: asyncio.TaskGroup) -> None:
        for number in range(1, self._number_of_workers + 1):
            self._workers[number] = await self._start(number)
        for worker in self._workers.values():
            group.create_task(self._keep(worker, group))

    async def _start(self, number: int) -> WorkerProcess:
        job = share_of(self._access.job, number, self._number_of_workers, rate_parts=self._rate_parts)
        access = replace(self._access, job=job)
        level = logging.getLogger("datafetch").getEffectiveLevel()
        ended = self._totals.images.outcomes.total()
        first_image = ended - ended % self._number_of_workers  # as if this process had been there before
        return await WorkerProcess.start(WorkerStartup(number, self._number_of_workers, access, level, first_image))

    async def _keep(self, worker: WorkerProcess, group: asyncio.TaskGroup) -> None:
        """Listen to a worker until it has finished, and replace it when it is killed."""
        fruitless = 0
        while not await self._listen(worker, group) and not self._stopping.is_set():
            fruitless = fruitless + 1 if worker.got_nowhere else 0
            if fruitless == _MAX_FRUITLESS_STARTS:
                raise ResourceError(
                    f"a worker process was killed ({signal_name(-(worker.returncode or 0))}) {fruitless} times before "
                    "it had fetched anything, perhaps for its memory; reduce --workers, --processes or --memory, and "
                    "run the same command again"
                )
            _log.warning(
                "worker %d (process %d) was killed (%s%s): another one takes its place; what it had stored is kept, "
                "and what it had not is requested again",
                worker.number,
                worker.pid,
                signal_name(-(worker.returncode or 0)),
                ", perhaps for its memory" if worker.returncode == -signal.SIGKILL else "",
            )
            self._totals.add_killed(worker)
            left = await self._take_back(worker, group)
            worker = self._workers[worker.number] = await self._start(worker.number)
            if self._stopping.is_set():  # since then, the others have ended all samples
                worker.send(Stop())
            group.create_task(self._hand_out_again(left))

    async def _listen(self, worker: WorkerProcess, group: asyncio.TaskGroup) -> bool:
        """Listen to a worker until it has ended; return whether it had finished.

        Raises:
            DatafetchError: The worker has said that it can't go on.
            RuntimeError: It has ended by a fault of its own.
        """
        while messages := await worker.receive():
            for message in messages:
                if isinstance(message, TriedUrls):
                    self._take_answers(worker, message.answers)
                else:
                    self._take(worker, message, group)
        worker.room = 0
        self._take_answers(worker, None)
        await worker.end()
        self._let_end()
        if not worker.has_finished and (worker.returncode or 0) >= 0:
            raise RuntimeError(f"a worker process ended with status {worker.returncode}; its traceback is above")
        return worker.has_finished

    def _take_answers(self, worker: WorkerProcess, answers: int | None) -> None:
        """Pass on how many URLs a worker has got answers to; None if it could not request them, or has ended."""
        if self._answers is not None and self._asked is worker and not self._answers.done():
            self._answers.set_result(answers)

    def _take(self, worker: WorkerProcess, message: FromWorker, group: asyncio.TaskGroup) -> None:
        match message:
            case Ended():
                self._take_ended(worker, message, group)
            case Wants():
                worker.room += message.samples
                self._serve(worker)
            case WorkerStatistics():
                worker.statistics = message
                if self._loop.time() >= self._next_watch_s:
                    self._watch()
            case Logged():
                self._log.log(worker.number, message)
            case Listens():
                worker.address = message.address
                self._introduce(worker)
            case Ready():
                worker.is_ready = True
                self._begin_to_watch(message)
            case Failed():
                raise _ERRORS.get(message.kind, ResourceError)(message.text)
            case Finished():
                worker.has_finished = True
                self._let_end()

    def _let_end(self) -> None:
        """Let the workers end once all have finished, or are gone: until then they serve each other."""
        if all(worker.has_finished or worker.returncode is not None for worker in self._workers.values()):
            for worker in self._workers.values():
                worker.close()

    def _take_ended(self, worker: WorkerProcess, message: Ended, group: asyncio.TaskGroup) -> None:
        images = ImageCounts(Counter(message.outcomes), message.repeated, message.adopted)
        self._totals.add(worker.number, images)
        worker.has_ended_any = True
        for key in message.samples:
            self._end(worker.in_hand.pop(key).next_sample, group)

    def _introduce(self, worker: WorkerProcess) -> None:
        """Tell a worker where all others listen, and tell them where it does."""
        for other in self._workers.values():
            if other is not worker and other.address:
                other.send(PeerListens(worker.number, worker.address))
                worker.send(PeerListens(other.number, other.address))

    def _end(self, next_sample: NextSample, group: asyncio.TaskGroup) -> None:
        """Count a sample as ended, and publish its shard if it was the last."""
        self._outstanding -= 1
        if not self._outstanding:
            self._all_ended.set()
        if self._feed.mark_ended(next_sample):
            group.create_task(self._publish(next_sample.shard))

    async def _publish(self, shard: OpenShard) -> None:
        totals = await self._publisher.commit(shard)
        number = self._shard_numbers.pop(shard, None)
        if number is not None:
            for worker in self._workers.values():
                worker.close_shard(number)
        await self._feed.close_published(shard, totals)

    async def _take_back(self, worker: WorkerProcess, group: asyncio.TaskGroup) -> list[InHand]:
        """Read what a worker that was killed had finished, and return what else it had in hand."""
        by_shard: dict[OpenShard, dict[int, InHand]] = {}
        for one in worker.in_hand.values():
            by_shard.setdefault(one.next_sample.shard, {})[one.sample.position] = one
        worker.in_hand.clear()
        left: list[InHand] = []
        for shard, in_hand in by_shard.items():
            path = self._access.output.layout.worker_spool(shard.shard.name, worker.number)
            found = await find_results(path, in_hand.keys())
            for position, one in in_hand.items():
                results = found.get(position, FoundResults())
                new = {image: line for image, line in results.lines.items() if image not in one.ended}
                self._totals.add(worker.number, _count_found(new.values()))
                now = one.with_results(new, sum(results.jpeg_bytes[image] for image in new))
                if results.has_ended and len(now.ended) == len(now.sample.urls):
                    self._end(now.next_sample, group)
                else:
                    left.append(now)
        return left

    async def _hand_out_again(self, left: Sequence[InHand]) -> None:
        for one in left:
            await self._hand_out(one)

    def _begin_to_watch(self, ready: Ready) -> None:
        if self._first_outcomes is None:
            output = self._access.output
            self._first_outcomes = FirstOutcomes(
                ready.unused_proxy,
                ready.used_proxies,
                is_retry=output.retry is not None,
                has_others=lambda: (
                    output.is_repair or self._totals.images.adopted > 0 or self._feed.ended_before[OK] > 0
                ),
            )

    def _watch(self) -> None:
        """Look at what all workers have reported, a few times a second however many there are."""
        self._next_watch_s = self._loop.time() + _WATCH_INTERVAL_S
        now = self._totals.sum(self._workers.values())
        self._peak_open_requests = max(self._peak_open_requests, now.peak_open_requests)
        if self._first_outcomes is not None:
            self._first_outcomes.replace(now.compared)


def _count_found(lines: Iterable[LedgerLine]) -> ImageCounts:
    """Count images that a worker which was killed had not reported."""
    counts = ImageCounts()
    for line in lines:
        counts.add(line, is_repeated=line.source is Source.WEB and not line.attempts)
    return counts
