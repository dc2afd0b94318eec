"""Fetch and transcode one image: whatever becomes of it, from wherever its bytes come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from datafetch.engine.image_source import ImageSource
from datafetch.fetch import Reservation
from datafetch.model.image_interfaces import ImageTranscoder
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import Body, Encoded, Failure, FailureKind, Fetched, Outcome, Source
from datafetch.model.sample import Sample
from datafetch.store.spool_format import ImageResult


class ImageFetcher:
    """Fetches and transcodes single images, from any number of tasks of one event loop.

    Args:
        source: image → body or Failure.
        transcode: body → Encoded or Failure.
        compare: Called with the outcome of each image that is requested.

    Attributes:
        transcoding: Number of images that are being transcoded, or wait for that.
    """

    def __init__(
        self, source: ImageSource, transcode: ImageTranscoder, compare: Callable[[Outcome], None] = lambda _: None
    ) -> None:
        self._source = source
        self.transcoding = 0
        self._retries = source.fetch.retries > 0  # an image whose transfer may have been cut is fetched once more
        self._compare = compare
        self._transcode = transcode

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
            return result_for(earlier, sample, image)
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

    def is_valid_for(self, sample: Sample, image: int, line: LedgerLine) -> bool:
        """As ``ImageSource.is_valid_for``."""
        return self._source.is_valid_for(sample, image, line)

    async def find_failed(self, sample: Sample, images: Sequence[int]) -> list[int]:
        """As ``ImageSource.find_failed``."""
        return await self._source.find_failed(sample, images)

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


def result_for(known: ImageResult, sample: Sample, image: int) -> ImageResult:
    """The result of an image, taken from that of another image with the same URL."""
    line = replace(known.line, sample=sample.position, key=sample.key, image=image, attempts=0, fetch_ms=0.0)
    return replace(known, line=line)
