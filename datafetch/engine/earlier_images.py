"""EarlierImages: the images of earlier outputs that a job can take instead of requesting them.

An image of the same URL is taken as it is if its pixels were made by the same settings; otherwise it is transcoded from
its original bytes, if these were kept. What failed for good is taken, too. A failure that may pass is not: a run is
expected to request what is missing.

Rules: a result is taken only if this job would have the same one. So nothing is taken that needed a permission, or
failed for the lack of one, if the permissions have changed; nor what the codec refused under other settings; nor what
was decided about an image by the other images of its document.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from datafetch.datasets import dataset_of_output
from datafetch.engine.job import PIXEL_FIELDS, Job
from datafetch.engine.permissions import Permitted, read_permitted
from datafetch.engine.set_aside import EarlierOutput, earlier_outputs
from datafetch.fetch import Reservation
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import Body, FailureKind, Permission, Source
from datafetch.output.stored import StoredResults
from datafetch.store.job_file import Identity
from datafetch.store.layout import OutputLayout
from datafetch.store.spool_format import ImageResult
from datafetch.transcode import Encoding

_log = logging.getLogger(__name__)
_NEED_PERMISSION = frozenset(permission.failure_kind for permission in Permission)
_BY_FETCHING = frozenset({Permission.INSECURE, Permission.OPT_OUT, Permission.ALLOW_NET, Permission.MAX_BODY})


def have_same_pixels(before: Identity, now: Identity) -> bool:
    """Whether two jobs make the same of an image."""
    return all(before.get(name) == now.get(name) for name in PIXEL_FIELDS)


def may_be_reused(before: Identity, now: Identity) -> bool:
    """Whether images of one job may be of use for another: as they are, or because some were kept as received."""
    return have_same_pixels(before, now) or before.get("encode") != Encoding.RECIPE


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which results of an earlier output are taken.

    Attributes:
        same_pixels: Whether images were made by the same settings.
        same_permissions: Whether the same was permitted.
    """

    same_pixels: bool
    same_permissions: bool

    def accepts(self, line: LedgerLine) -> bool:
        """Whether the result of a line is taken."""
        failure = line.failure
        if line.source is not Source.WEB or line.is_skipped or (line.permitted and not self.same_permissions):
            return False
        if failure is None:
            return self.same_pixels or line.is_original
        if failure.may_pass or (failure.kind in _NEED_PERMISSION and not self.same_permissions):
            return False
        if not failure.sha256 or failure.kind is FailureKind.NOT_AN_IMAGE:
            return True
        return self.same_pixels and failure.kind is not FailureKind.TOO_LARGE  # with the others of its sample


class _Stored(Protocol):
    def find(self, url: str) -> ImageResult | Body | None: ...

    def has_failed(self, url: str) -> bool: ...


class _OneOutput:
    """The images of one earlier output."""

    def __init__(self, earlier: EarlierOutput, identity: Identity, permitted: Permitted) -> None:
        before = earlier.job.identity
        self._choice = _Choice(
            have_same_pixels(before, identity),
            read_permitted(earlier.layout) == permitted,
        )
        loader = dataset_of_output(earlier.job.dataset, before).loader
        self.results = StoredResults(earlier.layout, earlier.job.shards, loader, earlier.spool_folders)

    def find(self, url: str) -> ImageResult | Body | None:
        result = self.results.find(url, self._choice.accepts)
        if result is None or self._choice.same_pixels or result.line.failure is not None:
            return result
        line = result.line
        permitted = tuple(permission for permission in line.permitted if permission in _BY_FETCHING)
        return Body(result.jpeg, final_url=line.final_url, attempts=0, permitted=permitted)

    def has_failed(self, url: str) -> bool:
        def accepts(line: LedgerLine) -> bool:
            return line.failure is not None and self._choice.accepts(line)

        return self.results.find(url, accepts) is not None


class EarlierImages:
    """The images of the earlier outputs of a job, for any number of tasks of one event loop.

    One thread reads them, one at a time. Besides the tasks' own reservations, one image is in memory.
    """

    def __init__(self, outputs: Sequence[_Stored], reader: ThreadPoolExecutor) -> None:
        self._outputs = outputs
        self._reader = reader
        self._reading = asyncio.Lock()

    async def find(self, url: str, memory: Reservation) -> ImageResult | Body | None:
        """What an earlier output has of a URL.

        Args:
            url: The URL, as published.
            memory: The reservation that the bytes are counted against.

        Returns:
            The result, with the line of the image that it was; or the original bytes, to be transcoded; or None.
        """
        async with self._reading:
            found = await asyncio.get_running_loop().run_in_executor(self._reader, self._find, url)
            content = b"" if found is None else found.content if isinstance(found, Body) else found.jpeg
            if content:
                await memory.grow(len(content))
        return found

    async def find_failed(self, urls: Sequence[str]) -> list[bool]:
        """For each URL, whether an earlier output has a failure of it that is taken."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._find_failed, urls)

    def _find_failed(self, urls: Sequence[str]) -> list[bool]:
        return [any(output.has_failed(url) for output in self._outputs) for url in urls]

    def _find(self, url: str) -> ImageResult | Body | None:
        return next((found for output in self._outputs if (found := output.find(url)) is not None), None)


@asynccontextmanager
async def open_earlier_images(
    layout: OutputLayout, identity: Identity, job: Job
) -> AsyncIterator[EarlierImages | None]:
    """Open the earlier outputs of a job, whose lock is held; None if there are none."""
    if not await asyncio.to_thread(layout.previous.is_dir):
        yield None
        return
    reader = ThreadPoolExecutor(1, thread_name_prefix="earlier")
    try:
        outputs = await asyncio.get_running_loop().run_in_executor(reader, _open, layout, identity, job)
        yield EarlierImages(outputs, reader)
    finally:
        reader.shutdown(wait=False, cancel_futures=True)


def _open(layout: OutputLayout, identity: Identity, job: Job) -> list[_OneOutput]:
    outputs = [_OneOutput(earlier, identity, Permitted.of(job)) for earlier in earlier_outputs(layout)]
    count = sum(len(output.results) for output in outputs)
    _log.info(
        "the earlier output has outcomes of %s images; what this run can use is not requested, and all of it goes when "
        "this run is complete",
        f"{count:,}",
    )
    return outputs
