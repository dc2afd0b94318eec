"""Which tests run, in which order; and fixtures of several test modules: pictures, and an origin that serves them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import PIL
import pytest
import trustme
import uvloop
from blockbuster import blockbuster_ctx
from hypothesis import settings
from in_process import THREADS
from PIL import Image
from preloaded import COVERAGE_VARIABLES, PreloadedCommand

import datafetch
from datafetch.demo import pictures as painting
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import KINDS, encode, paint, write_pictures
from datafetch.model.sample import Sample

LOOPBACK = ("127.0.0.0/8",)
_PATIENCE_S = 60.0
_ROOT = Path(__file__).parent.parent
_SLICES = {"matrix": 6, "rotating": 4}  # tests with these marks are dealt into so many slices, of which one runs
_SLOW_FACTOR = 2  # into so many times as many, if they are slow
_MEASURED = 0  # the slice in which coverage is measured
_LONGEST = "test_recipe_demo.py"  # all of the recipe, built many times, for minutes
_PICTURES, _PICTURES_SEED = 66, 7

# The duration of an example depends on the load of the machine.
settings.register_profile("datafetch", deadline=None)
settings.register_profile("default set", deadline=None, max_examples=40)  # of 100, where a test names no other number
settings.load_profile("datafetch")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options by which scripts/test selects a set of tests that takes minutes; without them every test runs."""
    parser.addoption(
        "--default-set", action="store_true", help="leave out what is slow, and all but a slice of matrix and rotating"
    )
    parser.addoption("--rotate", action="store_true", help="leave out all but a slice of what is slow and also rotates")
    parser.addoption("--slice", type=int, metavar="N", help="the slice to run; by default the number of commits")
    parser.addoption(
        "--unless-named", action="store_true", help="run what a path, -k, -m or --lf names instead, whatever its marks"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Decide which tests to select, and check that there are files for those that are named.

    The processes of xdist decide nothing: there may be a commit before they begin. Commands under test can be
    interrupted, even if the tests are started in the background of a script.
    """
    option = config.option
    if hasattr(config, "workerinput"):
        option.default_set, option.slice = config.workerinput["selection"]
    else:
        is_by_path = config.args_source is pytest.Config.ArgsSource.ARGS
        for name in config.args if is_by_path else ():  # xdist would only say that no tests ran
            if not (config.invocation_params.dir / name.partition("::")[0]).exists():
                raise pytest.UsageError(f"file or directory not found: {name}")
        is_of_failed = config.getoption("lf", False) and config.cache.get("cache/lastfailed", {})
        if option.unless_named and (is_by_path or option.keyword or option.markexpr or is_of_failed):
            option.default_set = False
        if option.slice is None:
            option.slice = _number_of_commits()
    if option.default_set:
        settings.load_profile("default set")
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:  # which child processes would inherit
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process of xdist what was decided."""
    node.workerinput["selection"] = node.config.option.default_set, node.config.option.slice


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Print the slice, so that it can be run again."""
    is_sliced = config.getoption("--default-set") or config.getoption("--rotate")
    return [f"--slice {config.getoption('--slice')}"] if is_sliced else []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what the chosen set of tests leaves out, and measure coverage in a part of the others.

    Of the cases of a test that rotates every n-th is taken, beginning with one that its name decides: so other tests
    don't change which of them run, of n or more cases some always do, and in n consecutive slices all do.

    Coverage makes a test two to three times as expensive, so it is measured in what the default set runs, always the
    same slice of it, which always runs, and of slow tests that don't rotate in what they do in their own process; if
    they are marked ``measured``, also in the processes that they start.
    """
    is_default_set = config.getoption("--default-set")
    if not (is_default_set or config.getoption("--rotate")):
        return
    taken = _select(items, config.getoption("--slice"), is_default_set=is_default_set)
    has_coverage = config.pluginmanager.has_plugin("pytest_cov")
    measured = set(_select(items, _MEASURED, is_default_set=True) if has_coverage else items)
    for item in taken:
        if item not in measured and any(map(item.get_closest_marker, _SLICES)):
            item.add_marker("no_cover")
    config.hook.pytest_deselected(items=list(set(items) - set(taken)))
    items[:] = _spread(taken, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def _spread(items: Sequence[pytest.Item], processes: int) -> list[pytest.Item]:
    """Reorder tests so that each process begins with its share of the modules with slow ones.

    Each process is given one of equal parts, runs it in order, and when it is done takes over tests from the end of
    another's, but never the last two of it. So none has a test of a minute left when the others have nothing to do.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    modules = sorted(slow, key=lambda path: (path.name != _LONGEST, path.name))
    others = deque(item for item in items if item.path not in slow)
    spread: list[pytest.Item] = []
    for process in range(processes):
        end = len(spread) + (len(items) - len(spread)) // (processes - process)
        mine = modules[process::processes]
        spread += sorted((item for item in items if item.path in mine), key=lambda item: mine.index(item.path))
        while others and len(spread) < end:
            spread.append(others.popleft())
    return spread + list(others)


def _select(items: Sequence[pytest.Item], chosen: int, *, is_default_set: bool) -> list[pytest.Item]:
    """The tests of a set, of those that rotate one slice; any number chooses one."""
    counts: Counter[tuple[str, int]] = Counter()
    selected = []
    for item in items:
        slices = _slices_of(item, is_default_set=is_default_set)
        dealt = item.nodeid.partition("[")[0], slices
        may_be_measured = not is_default_set and item.get_closest_marker("slow") is None
        numbers = (chosen, _MEASURED) if may_be_measured else (chosen,)
        if slices and (crc32(dealt[0].encode()) + counts[dealt]) % slices in [number % slices for number in numbers]:
            selected.append(item)
        counts[dealt] += 1
    return selected


def _slices_of(item: pytest.Item, *, is_default_set: bool) -> int:
    """The number of slices that tests like this one are dealt into: 1 if all of them run, 0 if none does."""
    marks = {mark for mark in _SLICES if item.get_closest_marker(mark)}
    is_slow = item.get_closest_marker("slow") is not None
    if is_default_set:
        return 0 if is_slow else max((_SLICES[mark] for mark in marks), default=1)
    if is_slow:
        return max((_SLICES[mark] * _SLOW_FACTOR for mark in marks), default=1)
    return max(map(_SLICES.__getitem__, marks)) if "rotating" in marks else 1


def _number_of_commits() -> int:
    try:
        if _git("rev-parse", "--is-shallow-repository") == "false":
            return int(_git("rev-list", "--count", "HEAD"))
    except (OSError, subprocess.CalledProcessError):
        pass
    return datetime.now(UTC).toordinal()  # without history, a number that changes daily


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run tests that depend on the loop on both loops, and all others on the loop that the command uses."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if item.get_closest_marker("both_loops"):
        loops["asyncio"] = asyncio.new_event_loop
    return loops


@pytest.fixture(scope="session", autouse=True)
def _one_trusted_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust a single authority in place of this machine's, in child processes too; it has signed nothing.

    No test needs the machine's own, and reading those takes 28 ms of CPU for each context, reading one 0.6 ms.
    """
    path = tmp_path_factory.mktemp("trusted") / "authority.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop() -> Iterator[None]:
    """Make a blocking call inside the event loop an error, in datafetch's code and in libraries that it calls."""
    with blockbuster_ctx(scanned_modules=["datafetch"]) as blockbuster:
        # Coverage takes a lock for an instant, anywhere in the code.
        blockbuster.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", {"lock_data"})
        # When nothing else is left on the loop, uvloop joins threads that are about to end.
        blockbuster.functions["threading.Lock.acquire"].can_block_in("process/event_loop.py", {"_end_remaining"})
        yield


@pytest.fixture
def _pillow_as_in_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable Pillow's own limit on pixels, as forkserver.py does, so that only that of the spec applies."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)


@pytest.fixture(scope="session")
def pictures(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with 66 pictures of all formats and modes, and their names.

    The pictures are painted once and kept for later runs; files that tests add to the folder are not.
    """
    painted = _painted_pictures(pytestconfig)
    folder = shutil.copytree(painted, tmp_path_factory.mktemp("pictures"), dirs_exist_ok=True)
    return folder, sorted(path.name for path in painted.iterdir())


def _painted_pictures(pytestconfig: pytest.Config) -> Path:
    versions = f"{_PICTURES} {_PICTURES_SEED} {PIL.__version__} {np.__version__}"
    painted_by = Path(painting.__file__).read_bytes() + versions.encode()
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("pictures") / hashlib.sha256(painted_by).hexdigest()[:16]
    if not folder.exists():
        unfinished = folder.with_name(uuid.uuid4().hex)
        write_pictures(unfinished, _PICTURES, seed=_PICTURES_SEED)
        with suppress(OSError):  # another process has created the folder
            unfinished.rename(folder)
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


@pytest.fixture(scope="session")
def small_pictures(pictures: tuple[Path, list[str]]) -> tuple[Path, list[str]]:
    """The same folder with as many small pictures of all formats and modes, and the names of these.

    Transcoding takes ten milliseconds for a picture of usual size, so jobs that are not about pixels have these.
    """
    folder = pictures[0]
    names = []
    for number in range(_PICTURES):
        kind = KINDS[number % len(KINDS)]
        name = f"small-{number:05d}{kind.suffix}"
        (folder / name).write_bytes(encode(paint((64 + number, 48), number), kind))
        names.append(name)
    return folder, names


@pytest.fixture(scope="session")
def origin(pictures: tuple[Path, list[str]]) -> Iterator[Origin]:
    """A server of these pictures, with every misbehaviour."""
    with Origin(pictures[0]) as running:
        yield running


@pytest.fixture(scope="module")
def own_origin(small_pictures: tuple[Path, list[str]]) -> Iterator[Origin]:
    """A server that only one module uses, for its counts of requests; each of its tests has URLs of its own."""
    with Origin(small_pictures[0]) as running:
        yield running


@pytest.fixture(scope="session")
def preloaded() -> Iterator[PreloadedCommand]:
    """The command, loaded once; for tests that run it so often that loading it would take most of their time."""
    with closing(PreloadedCommand()) as command:
        yield command


@pytest.fixture
def sample() -> Sample:
    """A sample with one image."""
    return Sample(0, "17", ("http://example.org/cat.jpg",), {"id": 17, "text": "a cat", "clip_sim": 0.7})


@pytest.fixture(autouse=True)
def _unmeasured_processes(request: pytest.FixtureRequest) -> None:
    """Don't measure coverage in processes that are started by slow tests, or by those that aren't measured either."""
    marks = {mark.name for mark in request.node.iter_markers()}
    if "no_cover" in marks or ("slow" in marks and "measured" not in marks):
        request.getfixturevalue("without_coverage")


@pytest.fixture
def without_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Don't measure coverage in processes that this test starts."""
    for variable in COVERAGE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def _commands_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands that the test calls with ``main()`` use threads to transcode and commit; in_process.py says why."""
    for function in (datafetch.run, datafetch.retry):
        monkeypatch.setattr(function, "__kwdefaults__", {**(function.__kwdefaults__ or {}), "backends": THREADS})


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until a condition holds; raise TimeoutError if it does not hold in time."""
    async with asyncio.timeout(_PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 - the condition depends on another process
            await asyncio.sleep(0.01)
