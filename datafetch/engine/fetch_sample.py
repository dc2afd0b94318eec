"""Fetch the images of one sample: from URL to spool.

Every image gets exactly one outcome, and the outcome is in the spool before anything else learns of it. Images of a
document are fetched at the same time. As soon as the dataset says that the document can no longer become a row, the
requests that are still in flight are cancelled, and the images without an outcome become ``not_requested``; an image
that has an outcome already is never cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from datafetch.engine.dedup import Deduplicator, LockedUrl
from datafetch.engine.image_counts import ImageCounts
from datafetch.engine.image_source import ImageSource
from datafetch.fetch import BodyBudget, Reservation
from datafetch.model.image_interfaces import ImageTranscoder
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import NOT_REQUESTED, Body, Encoded, Failure, FailureKind, Fetched, Outcome, Source
from datafetch.model.sample import Sample
from datafetch.output.merge import Output
from datafetch.store.spool import Spool
from datafetch.store.spool_format import ImageResult


class SampleFetcher:
    """Fetches and transcodes the images of samples.

    Args:
        output: How records become rows, and where they go.
        source: image → body or Failure.
        transcode: body → Encoded or Failure.
        budget: The memory budget for bodies.
        dedup: The results of the run by URL.
        compare: Called with the outcome of each image that is requested.

    Attributes:
        transcoding: Number of images that are being transcoded, or wait for that.
        budget: The memory budget for bodies.
    """

    def __init__(
        self,
        output: Output,
        *,
        source: ImageSource,
        transcode: ImageTranscoder,
        budget: BodyBudget,
        dedup: Deduplicator,
        compare: Callable[[Outcome], None],
    ) -> None:
        self.transcoding = 0
        self.dedup = dedup
        self._output = output
        self._source = source
        self._retries = source.fetch.retries > 0  # an image whose transfer may have been cut is fetched once more
        self._compare = compare
        self._transcode = transcode
        self.budget = budget

    async def fetch_sample(
        self, spool: Spool, sample: Sample, ended: Mapping[int, LedgerLine], jpeg_bytes: int, counts: ImageCounts
    ) -> None:
        """Fetch those images of a sample that have no outcome from an earlier run, and end the sample.

        Args:
            spool: The spool that the results are appended to.
            sample: The sample.
            ended: The lines of the images that have an outcome, by their number.
            jpeg_bytes: The size of those of them that arrived.
            counts: Counts the images that get an outcome, each when it has it.
        """
        if len(sample.urls) == 1 and not ended:
            await _ImageTask(self, spool, sample, 0, counts).run(sample)
            return
        await _DocumentTask(self, spool, sample, self._output, counts).run(ended, jpeg_bytes)
        await spool.append(sample)

    async def find_failed(self, sample: Sample, images: Sequence[int]) -> list[int]:
        """Those of a sample's images that are known to fail, by an earlier output."""
        return await self._source.find_failed(sample, images)

    async def fetch_image(self, sample: Sample, image: int, memory: Reservation) -> ImageResult:
        """Fetch and transcode one image, whatever the outcome, or take it from an earlier output.

        Args:
            sample: The sample.
            image: 0-based position in its images.
            memory: The reservation that its bytes are counted against, also while its result waits for the spool: local
                files come faster than a disk writes.
        """
        earlier = await self._source.find_earlier(sample, image, memory)
        if isinstance(earlier, ImageResult):
            return _for_image(earlier, sample, image)
        fetched, outcome = await self._fetch_once(sample, image, memory, earlier)
        if isinstance(outcome, Failure) and self._may_have_been_cut(fetched, outcome):
            # Perhaps the transfer was cut and not the file; a response without a length can't tell. Try once more.
            attempts, before = fetched.attempts, outcome
            memory.shrink(0)
            fetched, outcome = await self._fetch_once(sample, image, memory)
            fetched = replace(fetched, attempts=fetched.attempts + attempts)
            if isinstance(outcome, Failure) and outcome.is_as_damaged_as(before):
                outcome = replace(outcome, kind=FailureKind.CORRUPT)
        if fetched.source is not Source.HAVE and not self._source.is_out_of_time:
            self._compare(outcome)
        line = LedgerLine.of(sample, image, fetched, outcome)
        is_to_be_written = isinstance(outcome, Encoded) and fetched.source is not Source.HAVE
        result = ImageResult(line, outcome.jpeg if isinstance(outcome, Encoded) and is_to_be_written else b"")
        memory.shrink(len(result.jpeg))
        return result

    def _may_have_been_cut(self, fetched: Fetched, failure: Failure) -> bool:
        """Whether the bytes of a damaged image may differ the next time; those of members have been checked."""
        is_from_web = fetched.source in (Source.WEB, Source.FALLBACK)
        return self._retries and is_from_web and failure.kind is FailureKind.TRUNCATED

    async def _fetch_once(
        self, sample: Sample, image: int, memory: Reservation, earlier: Body | None = None
    ) -> tuple[Fetched, Outcome]:
        fetched = earlier or await self._source(sample, image, memory)
        self.transcoding += 1
        try:
            return fetched, await self._transcode(fetched)
        finally:
            self.transcoding -= 1


class _ImageTask:
    """Fetches one image.

    Attributes:
        has_outcome: Whether the image has its outcome; from then on the task must not be cancelled.
    """

    def __init__(self, fetcher: SampleFetcher, spool: Spool, sample: Sample, image: int, counts: ImageCounts) -> None:
        self.has_outcome = False
        self._counts = counts
        self._fetcher = fetcher
        self._spool = spool
        self._sample = sample
        self._image = image

    async def run(self, *then: Sample) -> ImageResult:
        """Fetch the image, or reuse the result of its URL, and append the result to the spool.

        Args:
            then: What to append together with the result, right behind it.
        """
        url = self._sample.urls[self._image]
        async with self._fetcher.dedup.lock(url) as locked:
            with self._fetcher.budget.reservation() as memory:
                return await self._run(locked, memory, then)

    async def _run(self, locked: LockedUrl, memory: Reservation, then: tuple[Sample, ...]) -> ImageResult:
        spool = self._spool
        known = await locked.lookup()
        if known is None:
            result = await self._fetcher.fetch_image(self._sample, self._image, memory)
        else:
            await memory.grow(known.jpeg_bytes)
            result = _for_image(known, self._sample, self._image)
        self.has_outcome = True
        self._counts.add(result.line, is_repeated=known is not None)
        offset = await spool.append(result, *then)
        locked.record(result, spool, offset)
        return result


def _for_image(known: ImageResult, sample: Sample, image: int) -> ImageResult:
    """The result of an image, taken from that of another image with the same URL."""
    line = replace(known.line, sample=sample.position, key=sample.key, image=image, attempts=0, fetch_ms=0.0)
    return replace(known, line=line)


class _DocumentTask:
    """Fetches all images of one sample at the same time, until it is certain that it can't become a row."""

    def __init__(
        self, fetcher: SampleFetcher, spool: Spool, sample: Sample, output: Output, counts: ImageCounts
    ) -> None:
        self._fetcher = fetcher
        self._counts = counts
        self._spool = spool
        self._sample = sample
        self._output = output
        self._failed: set[int] = set()
        self._tasks: dict[_ImageTask, asyncio.Task[None]] = {}
        self._jpeg_bytes = 0
        self._is_lost = False

    async def run(self, ended: Mapping[int, LedgerLine], jpeg_bytes: int) -> None:
        """Give every image its outcome.

        Args:
            ended: Images that have one from an earlier run.
            jpeg_bytes: The size of those of them that arrived.
        """
        for image, line in ended.items():
            if line.failure is not None:
                self._add_failure(image)
        if ended:
            self._add_size(max(ended), jpeg_bytes)
        missing = [image for image in range(len(self._sample.urls)) if image not in ended]
        if not self._is_lost:
            # First, so that nothing is requested of a document that is lost by what an earlier output knows of it.
            failed = await self._fetcher.find_failed(self._sample, missing)
            left = await self._fetch(failed)
            missing = [*left, *(image for image in missing if image not in failed)]
        if not self._is_lost:
            missing = await self._fetch(missing)
        await self._skip(missing)

    async def _fetch(self, images: Sequence[int]) -> list[int]:
        """Fetch images, and return those that have no outcome because the document was lost before they had one."""
        tasks = {image: _ImageTask(self._fetcher, self._spool, self._sample, image, self._counts) for image in images}
        async with asyncio.TaskGroup() as group:
            for image, task in tasks.items():
                self._tasks[task] = group.create_task(self._run(image, task))
        return [image for image, task in tasks.items() if not task.has_outcome]

    async def _run(self, image: int, task: _ImageTask) -> None:
        result = await task.run()
        if result.line.failure is not None:
            self._add_failure(image)
        self._add_size(image, result.jpeg_bytes)
        if self._is_lost:
            for other, running in self._tasks.items():
                if not other.has_outcome:
                    running.cancel()

    async def _skip(self, images: Sequence[int]) -> None:
        """Give images that have no outcome the one that says so."""
        results = [
            ImageResult(LedgerLine.of(self._sample, image, NOT_REQUESTED, NOT_REQUESTED), b"") for image in images
        ]
        for result in results:
            self._counts.add(result.line)
        if results:
            await self._spool.append(*results)

    def _add_failure(self, image: int) -> None:
        """Record that an image failed, and ask the dataset whether the sample can still become a row."""
        self._failed.add(image)
        self._is_lost = self._is_lost or self._output.dataset.is_lost(self._sample, self._failed)

    def _add_size(self, image: int, jpeg_bytes: int) -> None:
        """Add the size of an image that arrived to that of its sample.

        Which images exceed ``--max-sample`` is decided in the commit, in the order of the images. That there is one is
        certain as soon as those that arrived are larger than the limit together, whichever came last.
        """
        max_bytes = self._output.max_sample_bytes
        was_within = self._jpeg_bytes <= max_bytes
        self._jpeg_bytes += jpeg_bytes
        if was_within and self._jpeg_bytes > max_bytes:
            self._add_failure(image)
