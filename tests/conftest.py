"""What several test modules need: pictures, an origin that serves them, and a loop that must not block."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop
from blockbuster import BlockBuster, blockbuster_ctx
from PIL import Image

from datafetch.demo.origin import Origin
from datafetch.demo.pictures import write_pictures
from datafetch.model import Sample

LOOPBACK = ("127.0.0.0/8",)
_PATIENCE_S = 20.0
_ON_BOTH_LOOPS = ("test_fetcher", "test_misbehaviours", "test_pool", "test_requester", "test_resolver", "test_rubbish")


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run tests of the rooms that live close to the loop on both loops, and everything else as the command does."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if item.path.stem in _ON_BOTH_LOOPS:
        loops["asyncio"] = asyncio.new_event_loop
    return loops


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop() -> Iterator[BlockBuster]:
    """Make a blocking call inside the event loop an error, in our code as in the libraries' it calls."""
    with blockbuster_ctx(scanned_modules=["datafetch"]) as blockbuster:
        # Measuring coverage takes a lock for an instant, wherever the code happens to be.
        blockbuster.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", {"lock_data"})
        yield blockbuster


@pytest.fixture
def _as_in_the_codecs_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pillow's own limit, as forkserver.py has it: the spec's is the one that refuses."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with 66 pictures of all formats and modes, and their names."""
    folder = tmp_path_factory.mktemp("pictures")
    return folder, write_pictures(folder, 66, seed=7)


@pytest.fixture(scope="session")
def origin(pictures: tuple[Path, list[str]]) -> Iterator[Origin]:
    """A server of these pictures, with every misbehaviour."""
    with Origin(pictures[0]) as running:
        yield running


@pytest.fixture
def sample() -> Sample:
    """A sample with one image."""
    return Sample(0, "17", ("http://example.org/cat.jpg",), {"id": 17, "text": "a cat", "clip_sim": 0.7})


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so, and fail when it is not so in time."""
    async with asyncio.timeout(_PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.01)
