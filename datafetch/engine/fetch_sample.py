"""Fetch the images of one sample: from URL to spool.

Every image gets exactly one outcome, and the outcome is in the spool before anything else learns of it. Images of a
document are fetched at the same time. As soon as the dataset says that the document can no longer become a row, the
requests that are still in flight are cancelled, and the images without an outcome become ``not_requested``; an image
that has an outcome already is never cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from datafetch.engine.dedup import Deduplicator, LockedUrl
from datafetch.engine.fetch_image import ImageFetcher, result_for
from datafetch.engine.image_counts import ImageCounts
from datafetch.engine.image_source import ImageSource
from datafetch.fetch import BodyBudget, Reservation
from datafetch.model.image_interfaces import ImageTranscoder
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import NOT_REQUESTED, Outcome
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
        images: What fetches and transcodes each of their images.
        budget: The memory budget for bodies.
        dedup: The results of the run by URL.
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
        self.images = ImageFetcher(source, transcode, compare)
        self.budget = budget
        self.dedup = dedup
        self._output = output

    @property
    def transcoding(self) -> int:
        """Number of images that are being transcoded, or wait for that."""
        return self.images.transcoding

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
        images, sample, image = self._fetcher.images, self._sample, self._image
        is_repeated = known is not None and images.is_valid_for(sample, image, known.line)
        if known is not None and is_repeated:
            await memory.grow(known.jpeg_bytes)
            result = result_for(known, sample, image)
        else:
            result = await images.fetch_image(sample, image, memory)
        self.has_outcome = True
        self._counts.add(result.line, is_repeated=is_repeated)
        offset = await spool.append(result, *then)
        locked.record(result, spool, offset)
        return result


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
            failed = await self._fetcher.images.find_failed(self._sample, missing)
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
