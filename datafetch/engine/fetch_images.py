"""fetch_images(): the images behind URLs, as they come, for programs that want images and not files.

Theory of operation. One task works in the background: it opens a fetcher and a transcoder, and runs as many tasks as a
run would (``SampleTasks``). Each of these takes the next URL, fetches and transcodes its image, and waits with it until
the caller has taken the image and asks for another. Until then it holds the image's bytes against the budget and its
place among those in flight, so a caller who is slow to ask slows the requests down, and nothing piles up.

Rules: the background task, and with it all processes and connections, ends with the iterator: when it is used up, when
it is closed, when it is no longer referred to (Python closes it then, in a task of its own), and when its loop ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import TypeAlias

from datafetch.engine.fetch_image import ImageFetcher
from datafetch.engine.image_source import ImageSource
from datafetch.engine.opened_meanwhile import opened_meanwhile
from datafetch.engine.sample_tasks import SampleTasks
from datafetch.fetch import MAX_BYTES, BodyBudget, Fetcher, FetchPolicy
from datafetch.model.observers import root_error
from datafetch.model.outcome import Encoded, Failure, Outcome
from datafetch.model.sample import Sample
from datafetch.model.untrusted import short_repr
from datafetch.transcode import MAX_PROCESSES, Encoding, ImageSpec, Transcoder

_MIB = 1024 * 1024
_KEYED = 2  # a key and a URL

UrlOrPair: TypeAlias = str | tuple[str, str]
"""A URL, or a key of the caller's own and a URL."""


@dataclass(frozen=True, slots=True, repr=False)
class FetchedImage:
    """One image of ``fetch_images``, or why there is none.

    Attributes:
        index: 0-based position of its URL among those that were given.
        key: The key that was given with the URL; the index as text, if there was none.
        url: The URL, as it was given.
        final_url: The URL at the end of redirects, if a response arrived.
        outcome: ``Encoded`` with the image, its size and its hash, or ``Failure`` with the kind and the reason.
        file_format: The format of the image as it is now, by Pillow's name: ``JPEG``, ``PNG`` …; empty for a failure.
    """

    index: int
    key: str
    url: str
    final_url: str
    outcome: Outcome
    file_format: str

    def __repr__(self) -> str:
        return f"FetchedImage({self.index}, {short_repr(self.url)}, {self.outcome!r})"

    @property
    def content(self) -> bytes | None:
        """The image as a file; None if there is none."""
        return self.outcome.jpeg if isinstance(self.outcome, Encoded) else None

    @property
    def failure(self) -> Failure | None:
        """Why there is no image; None if there is one."""
        return self.outcome if isinstance(self.outcome, Failure) else None


def fetch_images(
    urls: Iterable[UrlOrPair] | AsyncIterable[UrlOrPair],
    *,
    fetch: FetchPolicy | None = None,
    image: ImageSpec | None = None,
    processes: int | None = None,
    memory_bytes: int = 256 * _MIB,
) -> AsyncGenerator[FetchedImage, None]:
    """Fetch the images behind URLs, and iterate over them: ``async for image in …``.

    Images come as they arrive, in whatever order; ``FetchedImage.index`` says which one it is. Each URL has exactly one
    ``FetchedImage``. The same URL twice is requested twice.

    Breaking out of the loop ends all requests and processes soon, and closing the iterator (``contextlib.aclosing``)
    before the next statement.

    Args:
        urls: URLs, or pairs of a key and a URL, from any iterable, also an asynchronous or an endless one. They are
            taken as they are needed. One that is not asynchronous is iterated on the event loop, so it must not wait.
        fetch: How images are fetched.
        image: What an image becomes; None keeps a sound JPEG that needs no change as it came, and encodes everything
            else as JPEG (``Encoding.ORIGINAL``).
        processes: The number of codec processes; None for one for each CPU. There are none if only headers are checked
            (``BodyCheck.HEADER``).
        memory_bytes: The budget for images from their first byte until the next one is asked for; one of them may go
            beyond it.

    Raises:
        ConfigurationError: The policy or the spec can't be used on this machine.
        ValueError: A number is out of its bounds.
        ResourceError: While iterating: this machine has no descriptors or no memory left, or no name server that
            answers, no network, or no proxy.
        TypeError: An item is neither a string nor a pair of strings; raised while iterating.
    """
    if isinstance(urls, str | bytes):
        raise TypeError(f"fetch_images takes a list or another iterable of URLs; write: fetch_images([{urls!r}])")
    if not 1 <= memory_bytes <= MAX_BYTES:
        raise ValueError(f"memory_bytes must be from 1 to {MAX_BYTES:,}, not {memory_bytes}")
    if processes is not None and not 1 <= processes <= MAX_PROCESSES:
        raise ValueError(f"processes must be from 1 to {MAX_PROCESSES:,}, not {processes}")
    spec = image or ImageSpec(encode=Encoding.ORIGINAL)
    stream = _ImageStream(urls, fetch or FetchPolicy(), spec, memory_bytes)
    return _iterate(stream, Transcoder(spec, processes=processes))


async def _iterate(stream: _ImageStream, transcoder: Transcoder) -> AsyncGenerator[FetchedImage, None]:
    working = asyncio.create_task(stream.run(transcoder))
    working.add_done_callback(lambda _: stream.wake())
    try:
        while (waiting := await stream.take(working)) is not None:
            yield waiting.image
            if not waiting.taken.done():  # or the work has ended with an error, which is raised now
                waiting.taken.set_result(None)
    finally:
        await _end(working)


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end; a cancellation that comes meanwhile is raised only then."""
    if not task.cancelling():  # as the end of the event loop does
        task.cancel()
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            is_cancelled = True
    if not task.cancelled():
        task.exception()  # marks it as retrieved: what ended the iteration says more, or has raised it
    if is_cancelled:
        raise asyncio.CancelledError


@dataclass(frozen=True, slots=True)
class _WaitingImage:
    """An image, and whom to tell when it has been taken and the next one is asked for."""

    image: FetchedImage
    taken: asyncio.Future[None]


class _ImageStream:
    """The images behind URLs, each of which waits until it is taken."""

    def __init__(
        self,
        urls: Iterable[UrlOrPair] | AsyncIterable[UrlOrPair],
        policy: FetchPolicy,
        spec: ImageSpec,
        memory_bytes: int,
    ) -> None:
        self._urls = _numbered(urls)
        self._pulling = asyncio.Lock()
        self._policy = policy
        self._spec = spec
        self._budget = BodyBudget(memory_bytes)
        self._waiting: deque[_WaitingImage] = deque()
        self._changed = asyncio.Event()

    async def run(self, transcoder: Transcoder) -> None:
        """Fetch all images.

        Raises:
            Exception: What the iterable of URLs, the fetcher or the transcoder has raised.
        """
        try:
            async with (
                Fetcher(self._policy, budget=self._budget) as fetch,
                opened_meanwhile(transcoder) as transcode,
            ):
                source = ImageSource(fetch)
                images = ImageFetcher(source, transcode)

                async def process(sample: Sample) -> None:
                    await self._process(images, sample)

                await SampleTasks(self._pull, process, source).run()
        except BaseExceptionGroup as errors:
            error = root_error(errors)
            raise error from error.__cause__
        finally:
            await self._urls.aclose()

    async def take(self, working: asyncio.Task[None]) -> _WaitingImage | None:
        """Wait for the next image; None if there are no more.

        Raises:
            Exception: What has ended the work.
        """
        while not self._waiting:
            if working.done():
                working.result()
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()

    def wake(self) -> None:
        """Have ``take`` look again."""
        self._changed.set()

    async def _pull(self) -> Sample | None:
        async with self._pulling:  # no two tasks may ask an iterator at once
            try:
                return await anext(self._urls, None)
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                # A group takes a task that ends so for one that was told to, and URLs would be missing without a word.
                raise RuntimeError(
                    "the iterable of URLs was cancelled before its end; let it end, or raise what says why"
                ) from error

    async def _process(self, images: ImageFetcher, sample: Sample) -> None:
        with self._budget.reservation() as memory:
            result = await images.fetch_image(sample, 0, memory)
            line = result.line
            outcome = line.to_outcome(result.jpeg)
            written = line.format if line.is_original else self._spec.image_format.name_in_pillow
            file_format = written if isinstance(outcome, Encoded) else ""
            (url,) = sample.urls
            image = FetchedImage(sample.position, sample.key, url, line.final_url, outcome, file_format)
            waiting = _WaitingImage(image, asyncio.get_running_loop().create_future())
            self._waiting.append(waiting)
            self.wake()
            await waiting.taken


async def _numbered(urls: Iterable[UrlOrPair] | AsyncIterable[UrlOrPair]) -> AsyncGenerator[Sample, None]:
    """Turn URLs into samples.

    Raises:
        TypeError: One is no URL.
    """
    numbers = count()
    if isinstance(urls, AsyncIterable):
        async for one in urls:
            yield _to_sample(next(numbers), one)
    else:
        for one in urls:
            yield _to_sample(next(numbers), one)


def _to_sample(number: int, one: object) -> Sample:
    match one:
        case str(url):
            return Sample(number, str(number), (url,), {})
        case (str(key), str(url)):
            return Sample(number, key, (url,), {})
    raise TypeError(
        f"fetch_images takes URLs as strings, or pairs of a key and a URL, both strings, not {short_repr(one)} "
        f"(number {number:,} of those that were given)"
    )
