"""What several test modules need: pictures, an origin that serves them, and a loop that must not block."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import signal
import subprocess
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import PIL
import pytest
import uvloop
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import settings
from PIL import Image

from datafetch.demo import pictures as painting
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import write_pictures
from datafetch.model.sample import Sample

LOOPBACK = ("127.0.0.0/8",)
_PATIENCE_S = 60.0
_ROOT = Path(__file__).parent.parent
_SLICES = 6  # of the matrix, some 180 tests each
_PICTURES, _PICTURES_SEED = 66, 7

# How long an example takes depends on what else the machine does.
settings.register_profile("datafetch", deadline=None)
settings.load_profile("datafetch")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let scripts/test ask for the set of tests that answers in minutes. Without it every test runs."""
    parser.addoption(
        "--default-set", action="store_true", help="leave out what is marked slow, and all but a slice of the matrix"
    )
    parser.addoption("--matrix-slice", type=int, metavar="N", help="which of six; by default the number of commits")


def pytest_configure() -> None:
    """Let the commands under test be interrupted, also where the tests are started in the background of a script."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:  # as children would inherit it
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Name the slice of the matrix, so that it can be had again."""
    return [f"--matrix-slice {_matrix_slice(config)}"] if config.getoption("--default-set") else []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the default set, deselect what is slow, and all but one slice of the matrix, another one after each commit."""
    if not config.getoption("--default-set"):
        return
    number = _matrix_slice(config) % _SLICES
    taken: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        is_other_slice = item.get_closest_marker("matrix") and zlib.crc32(item.nodeid.encode()) % _SLICES != number
        (left_out if is_other_slice or item.get_closest_marker("slow") else taken).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = taken


def _matrix_slice(config: pytest.Config) -> int:
    chosen: int | None = config.getoption("--matrix-slice")
    if chosen is not None:
        return chosen
    try:
        if _git("rev-parse", "--is-shallow-repository") == "false":
            return int(_git("rev-list", "--count", "HEAD"))
    except (OSError, subprocess.CalledProcessError):
        pass
    return datetime.now(UTC).toordinal()  # no history: another slice each day


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run what depends on the loop itself on both loops, and everything else as the command does."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if item.get_closest_marker("both_loops"):
        loops["asyncio"] = asyncio.new_event_loop
    return loops


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop() -> Iterator[BlockBuster]:
    """Make a blocking call inside the event loop an error, in our code as in the libraries' it calls."""
    with blockbuster_ctx(scanned_modules=["datafetch"]) as blockbuster:
        # Measuring coverage takes a lock for an instant, wherever the code happens to be.
        blockbuster.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", {"lock_data"})
        # uvloop joins threads that have ended, but may not be gone, when nothing else is left on the loop.
        blockbuster.functions["threading.Lock.acquire"].can_block_in("process/event_loop.py", {"_end_the_rest"})
        yield blockbuster


@pytest.fixture
def _pillow_as_in_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable Pillow's own limit on pixels, as forkserver.py does, so that only that of the spec applies."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)


@pytest.fixture(scope="session")
def pictures(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with 66 pictures of all formats and modes, and their names.

    Painted once, and kept for the next runs; what tests add to the folder is theirs alone.
    """
    painted = _painted_pictures(pytestconfig)
    folder = shutil.copytree(painted, tmp_path_factory.mktemp("pictures"), dirs_exist_ok=True)
    return folder, sorted(path.name for path in painted.iterdir())


def _painted_pictures(pytestconfig: pytest.Config) -> Path:
    what = f"{_PICTURES} {_PICTURES_SEED} {PIL.__version__} {np.__version__}"
    painted_by = Path(painting.__file__).read_bytes() + what.encode()
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("pictures") / hashlib.sha256(painted_by).hexdigest()[:16]
    if not folder.exists():
        unfinished = folder.with_name(uuid.uuid4().hex)
        write_pictures(unfinished, _PICTURES, seed=_PICTURES_SEED)
        with suppress(OSError):  # another process was faster
            unfinished.rename(folder)
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


@pytest.fixture(scope="session")
def origin(pictures: tuple[Path, list[str]]) -> Iterator[Origin]:
    """A server of these pictures, with every misbehaviour."""
    with Origin(pictures[0]) as running:
        yield running


@pytest.fixture
def sample() -> Sample:
    """A sample with one image."""
    return Sample(0, "17", ("http://example.org/cat.jpg",), {"id": 17, "text": "a cat", "clip_sim": 0.7})


@pytest.fixture
def without_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Don't measure coverage in the processes that this test starts."""
    for variable in ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"):
        monkeypatch.delenv(variable, raising=False)


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so, and fail when it is not so in time."""
    async with asyncio.timeout(_PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.01)
