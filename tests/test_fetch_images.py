"""Iterating over the images of URLs: each exactly once, bounded, and nothing is left behind however it ends."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import LOOPBACK, until

from datafetch import (
    BodyCheck,
    ConfigurationError,
    Encoded,
    Encoding,
    FailureKind,
    FetchedImage,
    FetchPolicy,
    ImageFormat,
    ImageSpec,
    ResizeMode,
    fetch_images,
)
from datafetch.demo.origin import Origin
from datafetch.engine.fetch_images import _ImageStream, _iterate
from datafetch.transcode import Transcoder

POLICY = FetchPolicy(allow_net=LOOPBACK, backoff_s=0.01, connections=16, per_host=16, retries=1)
HEADER = ImageSpec(encode=Encoding.RECEIVED, check=BodyCheck.HEADER)
_numbers = count()
_PATIENCE_S = 100
_MAX_TASKS = 1024  # of SampleTasks, whatever the number of connections


class Web:
    """An origin that gives each test URLs of its own."""

    def __init__(self, origin: Origin, names: Sequence[str], folder: Path) -> None:
        self._origin = origin
        self._names = names
        self._folder = folder
        self._test = next(_numbers)

    def name(self, number: int) -> str:
        """The name of the picture behind a URL."""
        return self._names[number % len(self._names)]

    def content(self, number: int) -> bytes:
        """The picture behind a URL."""
        return (self._folder / self.name(number)).read_bytes()

    def url(self, number: int, behaviour: str = "well") -> str:
        """A new URL for a picture, served with the given behaviour."""
        return self._origin.url(behaviour, self.name(number), f"iterated-{self._test}-{number}")

    def urls(self, images: int) -> list[str]:
        """That many of them."""
        return [self.url(number) for number in range(images)]


@pytest.fixture
def web(own_origin: Origin, small_pictures: tuple[Path, list[str]]) -> Web:
    """A web whose URLs only this test requests."""
    return Web(own_origin, small_pictures[1], small_pictures[0])


@pytest.fixture
async def nothing_left() -> AsyncIterator[Callable[[], bool]]:
    """Tells whether all processes, connections and tasks of the package are gone; they must be at the test's end."""
    children, descriptors = _children(), _descriptors()

    def is_gone() -> bool:
        return not _tasks() and _children() <= children and _descriptors() <= descriptors

    yield is_gone
    await until(is_gone)


def _tasks() -> list[asyncio.Task[object]]:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    return [task for task in tasks if "nothing_left" not in repr(task) and "test_" not in repr(task)]


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def _descriptors() -> int:
    """The number of sockets, pipes and the like."""
    targets = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the folder itself
            targets.append(str(link.readlink()))
    return sum(":" in target for target in targets)


@pytest.mark.both_loops
@pytest.mark.usefixtures("nothing_left")
async def test_every_url_has_one_image(web: Web) -> None:
    """With its index, its key and its bytes; failures are values among the others."""
    behaviours = ["well", "missing", "moved", "html", "truncated"]
    urls = [web.url(number, behaviours[number % len(behaviours)]) for number in range(100)]
    images = {image.index: image async for image in fetch_images(urls, fetch=POLICY, image=HEADER)}
    assert sorted(images) == list(range(100))
    for number, image in images.items():
        assert (image.url, image.key) == (urls[number], str(number))
        if (failure := image.failure) is None:
            assert isinstance(image.outcome, Encoded)
            assert image.content == image.outcome.jpeg == web.content(number)
            assert image.file_format == image.outcome.source_format
        else:
            assert (image.content, image.file_format) == (None, "")
            assert failure.kind is image.outcome.kind  # type: ignore[union-attr]
    outcomes = Counter((number % 5, str(image.failure and image.failure.kind)) for number, image in images.items())
    assert outcomes == {
        (0, "None"): 20,
        (1, "http_status"): 20,
        (2, "None"): 20,
        (3, "not_an_image"): 20,
        (4, "corrupt"): 20,  # the same bytes came twice
    }
    assert "/well/" in images[2].final_url


@pytest.mark.rotating
@pytest.mark.usefixtures("nothing_left")
async def test_images_are_transcoded_as_the_spec_says(web: Web) -> None:
    """By processes of its own; by default a sound JPEG stays as it is, and all else becomes one."""
    spec = ImageSpec(resize_mode=ResizeMode.BORDER, size_px=32, image_format=ImageFormat.WEBP)
    async for image in fetch_images(web.urls(12), fetch=POLICY, image=spec, processes=1):
        assert isinstance(image.outcome, Encoded)
        assert (image.outcome.width_px, image.outcome.height_px, image.file_format) == (32, 32, "WEBP")
        assert image.content is not None
        assert image.content[8:12] == b"WEBP"
    kept = set()
    async for image in fetch_images(web.urls(12), fetch=POLICY, processes=1):
        assert isinstance(image.outcome, Encoded)
        assert image.file_format == "JPEG"
        if image.outcome.is_original:
            kept.add(web.name(image.index).partition(".")[2])
            assert image.content == web.content(image.index)
    assert kept == {"jpg"}


@pytest.mark.usefixtures("nothing_left")
async def test_urls_may_come_from_anywhere_and_have_keys(web: Web) -> None:
    """A list, a generator, an asynchronous generator; strings and pairs."""

    def pairs() -> Iterator[tuple[str, str]]:
        yield from ((f"key {number}", web.url(number)) for number in range(5))

    async def mixed() -> AsyncIterator[str | tuple[str, str]]:
        for number in range(5):
            await asyncio.sleep(0)
            yield web.url(number) if number % 2 else ("猫", web.url(number))

    keys = {image.index: image.key async for image in fetch_images(pairs(), fetch=POLICY, image=HEADER)}
    assert keys == {number: f"key {number}" for number in range(5)}
    keys = {image.index: image.key async for image in fetch_images(mixed(), fetch=POLICY, image=HEADER)}
    assert keys == {0: "猫", 1: "1", 2: "猫", 3: "3", 4: "猫"}
    assert [image async for image in fetch_images([], fetch=POLICY, image=HEADER)] == []


@pytest.mark.usefixtures("nothing_left")
async def test_what_is_no_url_is_a_failure_and_what_is_no_text_an_error(web: Web) -> None:
    """One bad URL of a million costs itself; a list of something else is a mistake of the caller."""
    urls: Any = ["", "ftp://example.org/cat.jpg", "no url", "http://" + "x" * 70_000, web.url(1)]
    failures = {image.index: image.failure async for image in fetch_images(urls, fetch=POLICY, image=HEADER)}
    assert [failure and failure.kind for _, failure in sorted(failures.items())] == [FailureKind.BAD_URL] * 4 + [None]
    for wrong in (None, 5, b"http://example.org/", ("key", None), ("a", "b", "c")):
        urls = [web.url(0), wrong]
        with pytest.raises(TypeError, match=r"^fetch_images takes URLs as strings, or pairs .*\(number 1 of those"):
            [image async for image in fetch_images(urls, fetch=POLICY, image=HEADER)]
    with pytest.raises(TypeError, match=r"write: fetch_images\(\['http://example.org/'\]\)$"):
        fetch_images("http://example.org/")
    with pytest.raises(ValueError, match=r"^memory_bytes must be from 1 to"):
        fetch_images([], memory_bytes=0)
    with pytest.raises(ValueError, match=r"^processes must be from 1 to"):
        fetch_images([], processes=0)


async def test_an_error_of_the_urls_is_raised(web: Web, nothing_left: Callable[[], bool]) -> None:
    """After it nothing comes any more, and nothing is left."""

    def broken() -> Iterator[str]:
        yield web.url(0)
        raise OSError("the list can't be read")

    images = fetch_images(broken(), fetch=POLICY, image=HEADER)
    with pytest.raises(OSError, match="the list can't be read"):
        async for _ in images:
            pass
    assert [image async for image in images] == []
    await until(nothing_left)


async def test_a_cancellation_of_the_urls_is_no_end_of_them(web: Web, nothing_left: Callable[[], bool]) -> None:
    """Something that an iterator waits for may be cancelled."""

    def cancelled() -> Iterator[str]:
        yield web.url(0)
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="the iterable of URLs was cancelled before its end"):
        async for _ in fetch_images(cancelled(), fetch=POLICY, image=HEADER):
            pass
    await until(nothing_left)


def _endless(web: Web, taken: list[int]) -> Iterator[str]:
    for number in count():
        taken.append(number)
        yield web.url(number)


@pytest.mark.both_loops
async def test_breaking_out_ends_everything(web: Web, nothing_left: Callable[[], bool]) -> None:
    """Soon after the loop, by itself; the URLs may be endless."""
    images: list[FetchedImage] = []
    async for image in fetch_images(_endless(web, []), fetch=POLICY, image=HEADER):
        images.append(image)
        if len(images) == 5:
            break
    await until(nothing_left)
    assert all(image.failure is None for image in images)


@pytest.mark.rotating
@pytest.mark.usefixtures("nothing_left")
async def test_closing_ends_processes_and_tasks_at_once(web: Web) -> None:
    """With ``aclosing``, before the next statement: also where a server keeps its answers to itself."""
    urls = [web.url(0), *(web.url(number, "headless") for number in range(1, 20))]
    before = _children()
    async with aclosing(fetch_images(urls, fetch=POLICY, processes=1)) as images:
        assert (await anext(images)).index == 0
    assert not _tasks()
    assert _children() <= before


async def test_cancelling_ends_everything(web: Web, nothing_left: Callable[[], bool]) -> None:
    """Whether the loop waits for an image or the caller is at work on one."""
    arrived = asyncio.Event()

    async def consume(urls: list[str], *, waits_outside: bool) -> None:
        async for _ in fetch_images(urls, fetch=POLICY, image=HEADER):
            arrived.set()
            if waits_outside:
                await asyncio.Event().wait()

    for waits_outside in (False, True):
        arrived.clear()
        urls = [web.url(0), *(web.url(number, "headless") for number in range(1, 5))]
        task = asyncio.create_task(consume(urls, waits_outside=waits_outside))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        await until(nothing_left)


async def test_an_exception_in_the_loop_ends_everything(web: Web, nothing_left: Callable[[], bool]) -> None:
    """It is raised as it is, not in a group."""
    with pytest.raises(ZeroDivisionError):
        [image.index // 0 async for image in fetch_images(_endless(web, []), fetch=POLICY, image=HEADER)]
    await until(nothing_left)


async def test_what_is_in_flight_is_bounded(web: Web) -> None:
    """A caller who is slower than the web: URLs are taken by the task, and images wait within the budget."""
    largest = max(len(web.content(number)) for number in range(66))
    pulled: list[int] = []
    urls = (url for url, _ in zip(_endless(web, pulled), range(2000), strict=False))
    stream = _ImageStream(urls, POLICY, HEADER, memory_bytes := 3 * largest)
    taken = 0
    async for image in _iterate(stream, Transcoder(HEADER)):
        taken += 1
        await asyncio.sleep(0)
        assert image.failure is None
        assert len(pulled) <= taken + _MAX_TASKS
        assert stream._budget.held_bytes <= memory_bytes + largest
        assert sum(len(one.image.content or b"") for one in stream._waiting) <= memory_bytes + largest
    assert taken == 2000


async def test_a_budget_for_less_than_one_image_is_enough(web: Web) -> None:
    """One image at a time goes beyond it."""
    images = [image async for image in fetch_images(web.urls(30), fetch=POLICY, image=HEADER, memory_bytes=1)]
    assert [image.failure for image in images] == [None] * 30


async def test_several_iterate_at_once(web: Web) -> None:
    """On one loop, each with its own fetcher."""

    async def hashes(urls: list[str]) -> set[str]:
        images = fetch_images(urls, fetch=POLICY, image=HEADER)
        return {hashlib.sha256(image.content or b"").hexdigest() async for image in images}

    expected = {hashlib.sha256(web.content(number)).hexdigest() for number in range(30)}
    assert await asyncio.gather(*(hashes(web.urls(30)) for _ in range(3))) == [expected] * 3


def test_a_program_that_breaks_out_and_ends_leaves_nothing(web: Web) -> None:
    """Neither processes nor a warning: the loop closes the iterator, as it does for any."""
    code = f"""
import asyncio, sys
from datafetch import FetchPolicy, fetch_images

async def main():
    policy = FetchPolicy(allow_net={LOOPBACK!r}, connections=8)
    async for image in fetch_images({web.urls(20)!r}, fetch=policy, processes=1):
        print(image.failure, flush=True)
        break

asyncio.run(main())
"""
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=_PATIENCE_S,
    )
    assert (finished.stdout, finished.stderr) == ("None\n", "")


async def test_a_spec_that_needs_what_is_not_there_is_refused() -> None:
    """Values are checked when they are made."""
    with pytest.raises(ConfigurationError, match="must be given together"):
        fetch_images([], image=ImageSpec(size_px=5))
