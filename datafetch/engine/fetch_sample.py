"""Delivery: one image, or all of a sample, from URL to spool.

Rules: every image gets exactly one outcome, and it is in the spool before anybody is told. What has an outcome is never
called off; what has none is, once its document is lost.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter

from datafetch.engine.dedup import UrlDeduplicator
from datafetch.engine.feed import OpenShard
from datafetch.fetch import BodyBudget, Reservation
from datafetch.model.interfaces import Fetch, ImageTranscoder
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import OK, Encoded, Failure, FailureKind, Fetched, Outcome
from datafetch.model.sample import Sample
from datafetch.output.merge import Output
from datafetch.store.spool_format import ImageResult


class SampleFetcher:
    """Brings images to their ends.

    Args:
        output: How records become rows.
        fetch: url → body or Failure.
        transcode: body → Encoded or Failure.
        budget: What bodies in hand are held against.

    Attributes:
        outcomes: Images that ended, by outcome.
        repeated: Of them, those that arrived as what another had asked for.
    """

    def __init__(
        self, output: Output, *, fetch: Fetch[Reservation], transcode: ImageTranscoder, budget: BodyBudget
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.repeated = 0
        self.dedup = UrlDeduplicator()
        self._output = output
        self._fetch = fetch
        self._transcode = transcode
        self._budget = budget

    async def end_sample(self, shard: OpenShard, sample: Sample) -> None:
        """Bring all images of a sample to their end, as far as an earlier run has not."""
        recovered = shard.spool.recovered
        ended = recovered.images.get(sample.position, {})
        if len(sample.urls) == 1 and not ended:
            await _ImageTask(self, shard, sample, 0).end(sample)
            return
        await _DocumentTask(self, shard, sample, self._output).end(ended, recovered.jpeg_bytes[sample.position])
        await shard.spool.append(sample)

    async def ask(self, sample: Sample, image: int) -> ImageResult:
        """Fetch and transcode one image; whatever comes of it is its outcome."""
        url = sample.urls[image]
        fetched, outcome = await self._deliver(url)
        if isinstance(outcome, Failure) and outcome.kind is FailureKind.TRUNCATED and self._fetch.retries:
            # Perhaps the transfer was cut and not the file; a response without a length can't tell. Ask once more.
            attempts, before = fetched.attempts, outcome
            fetched, outcome = await self._deliver(url)
            fetched = replace(fetched, attempts=fetched.attempts + attempts)
            if isinstance(outcome, Failure) and outcome.is_as_damaged_as(before):
                outcome = replace(outcome, kind=FailureKind.CORRUPT)
        line = LedgerLine.of(sample, image, fetched, outcome)
        return ImageResult(line, outcome.jpeg if isinstance(outcome, Encoded) else b"")

    def count(self, outcome: str, *, is_repeated: bool = False) -> None:
        """Take an image that ended into account."""
        self.outcomes[outcome] += 1
        self.repeated += is_repeated and outcome == OK

    async def _deliver(self, url: str) -> tuple[Fetched, Outcome]:
        with self._budget.reservation() as memory:
            fetched = await self._fetch(url, memory=memory)
            return fetched, await self._transcode(fetched)


class _ImageTask:
    """One image on its way.

    Attributes:
        is_ended: Whether there is an outcome; from then on it must not be called off.
    """

    def __init__(self, fetch_samples: SampleFetcher, shard: OpenShard, sample: Sample, image: int) -> None:
        self.is_ended = False
        self._delivery = fetch_samples
        self._shard = shard
        self._sample = sample
        self._image = image

    async def end(self, *then: Sample) -> ImageResult:
        """Bring it to its end.

        Args:
            then: What the spool is to have right behind it.
        """
        dedup, spool = self._delivery.dedup, self._shard.spool
        url = self._sample.urls[self._image]
        async with dedup.lock_url(url):
            known = await dedup.lookup(url)
            end = await self._delivery.ask(self._sample, self._image) if known is None else self._like(known)
            self.is_ended = True
            self._delivery.count(end.line.outcome, is_repeated=known is not None)
            offset = await spool.append(end, *then)
            dedup.record(end, spool, offset)
        return end

    def _like(self, known: ImageResult) -> ImageResult:
        """The end of an image that came with another's request."""
        sample = self._sample
        line = replace(known.line, sample=sample.position, key=sample.key, image=self._image, attempts=0, fetch_ms=0.0)
        return replace(known, line=line)


class _DocumentTask:
    """All images of one sample, fetched together until it is plain that it can't become a row."""

    def __init__(self, fetch_samples: SampleFetcher, shard: OpenShard, sample: Sample, output: Output) -> None:
        self._delivery = fetch_samples
        self._shard = shard
        self._sample = sample
        self._output = output
        self._failures: dict[int, Failure] = {}
        self._asked: dict[_ImageTask, asyncio.Task[None]] = {}
        self._jpeg_bytes = 0
        self._is_lost = False

    async def end(self, ended: dict[int, LedgerLine], jpeg_bytes: int) -> None:
        """Bring them to their ends.

        Args:
            ended: Those that an earlier run has brought there.
            jpeg_bytes: What these take together.
        """
        for image, line in ended.items():
            self._note(image, line.failure)
        if ended:
            self._note_bytes(max(ended), jpeg_bytes)
        missing = [image for image in range(len(self._sample.urls)) if image not in ended]
        left: Sequence[int] = missing
        if not self._is_lost:
            left = await self._ask(missing)
        await self._call_off(left)

    async def _ask(self, missing: Sequence[int]) -> list[int]:
        """Ask for images; returns those that have no outcome, because the document was lost meanwhile."""
        images = {image: _ImageTask(self._delivery, self._shard, self._sample, image) for image in missing}
        async with asyncio.TaskGroup() as group:
            for number, image in images.items():
                self._asked[image] = group.create_task(self._end_one(number, image))
        return [number for number, image in images.items() if not image.is_ended]

    async def _end_one(self, number: int, image: _ImageTask) -> None:
        end = await image.end()
        self._note(number, end.line.failure)
        self._note_bytes(number, end.jpeg_bytes)
        if self._is_lost:
            for other, task in self._asked.items():
                if not other.is_ended:
                    task.cancel()

    async def _call_off(self, left: Sequence[int]) -> None:
        """Give those that have no outcome that of an image that the document was lost with.

        One that may pass comes first, so that what happened in which order makes no difference to a retry.
        """
        if not left:
            return
        causes = sorted(self._failures.items(), key=itemgetter(0))
        cause, failure = next((pair for pair in causes if pair[1].may_pass), causes[0])
        called_off = failure.for_sibling(cause)
        ends = [ImageResult(LedgerLine.of(self._sample, image, called_off, called_off), b"") for image in left]
        for end in ends:
            self._delivery.count(end.line.outcome)
        await self._shard.spool.append(*ends)

    def _note(self, image: int, failure: Failure | None) -> None:
        """Take a failure into account, and see whether the document can still become a row."""
        if failure is not None:
            self._failures[image] = failure
            self._is_lost = self._is_lost or self._output.dataset.is_lost(self._sample, self._failures)

    def _note_bytes(self, image: int, jpeg_bytes: int) -> None:
        """Take the size of an image that arrived into account.

        Which images are too many is decided when all are there, in their order (``settled``); that there is one is
        plain as soon as those that arrived are larger than a sample may be, whichever came last.
        """
        most_bytes = self._output.max_sample_bytes
        was_within = self._jpeg_bytes <= most_bytes
        self._jpeg_bytes += jpeg_bytes
        if was_within and self._jpeg_bytes > most_bytes:
            detail = f"the images of the sample are larger than {most_bytes:,} bytes together (--max-sample)"
            self._note(image, Failure(FailureKind.TOO_LARGE, detail))
