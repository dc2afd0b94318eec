"""Each call of the system fails once, wherever it is made from, and what comes of the run is the same.

No process of a run calls ``accept``, ``vfork`` or ``clone``: uvloop starts processes with ``fork``, and the channels to
them are pairs and pipes. So nothing fails there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import IntEnum
from pathlib import Path

import pytest
from runs import PATIENCE_S, Place, Run, ShardSummary, Trial, serve_trial
from test_retry_kills import AS_CUT, RESHARDED, Healing, serve_healing

from datafetch.store.layout import OutputLayout

_CALLS = ("open", "socket", "fork", "mmap", "write", "fsync", "rename")
_FILE_CALLS = [
    "open",
    "write",
    "fsync",
    "rename",
]  # resharding adds files to what a run does, and nothing else
_STATE_BYTES = 1 << 19
_LOG_BEGINS = 8 + 4096 * 8
_MAX_RUNS = 200  # until one is complete
_MAX_PLACES = 20
_MMAP_PATIENCE_S = 40.0  # some of these runs hang, see _end

_WAITS_FOR_ITS_THREAD = re.compile(
    r'threading\.py", line \d+ in wait\n\s*File "[^"\n]*threading\.py", line \d+ in start\n'
)
# It had no pipe or no process, raises that, and then lets go of what it had begun, with the same error at hand.
_SAID_BY_UVLOOP = re.compile(
    r"^Exception ignored in: '?uvloop\..*\nTraceback \(most recent call last\):\n(?:[ ].*\n)+.*\n?", re.MULTILINE
)


class Phase(IntEnum):
    """What the library of ``faults.c`` waits for."""

    REQUEST = 0
    NOTHING = 1
    LOCK = 2


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """A dataset with its own origin, which counts requests."""
    with serve_trial(tmp_path_factory.mktemp("trial")) as served:
        yield served


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that lets calls fail, built for this machine."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler, cc")
    built = tmp_path_factory.mktemp("shim") / "faults.so"
    source = Path(__file__).with_name("faults.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(source), "-ldl"]
    subprocess.run(command, check=True, timeout=PATIENCE_S)
    return built


class Faults:
    """Calls that fail, once each, over any number of runs.

    Args:
        shim: The library that does it.
        folder: For what it keeps.
        calls: Which functions fail.
    """

    def __init__(self, shim: Path, folder: Path, calls: str) -> None:
        self.calls = calls
        self._state = folder / "faults.state"
        self._state.write_bytes(bytes(_STATE_BYTES))
        self._read = 0
        self.environment = {
            "LD_PRELOAD": str(shim),
            "DATAFETCH_FAULTS_STATE": str(self._state),
            "DATAFETCH_FAULTS_CALLS": calls,
            "PYTHONFAULTHANDLER": "1",  # for a run that hangs to say where
        }

    def begin(self, phase: Phase = Phase.REQUEST) -> None:
        """Before a run: let nothing fail before its first request, or before it has opened the lock."""
        with self._state.open("r+b") as state:
            state.write(phase.to_bytes(4, "little"))

    def new(self) -> list[str]:
        """What failed since this was last asked: process, function, error, what it was called upon."""
        lines = self._state.read_bytes()[_LOG_BEGINS:].rstrip(b"\0").decode().splitlines()
        new, self._read = lines[self._read :], len(lines)
        return new


@pytest.fixture(autouse=True)
def _children_without_coverage(without_coverage: None) -> None:
    """Let no call fail that coverage makes for its own files."""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # dozens of runs, each a second on an idle machine, and ten where others are at work
@pytest.mark.parametrize("calls", _CALLS)
def test_each_call_fails_once_and_costs_nothing(trial: Trial, shim: Path, tmp_path: Path, calls: str) -> None:
    """Run after run, until one from the beginning meets no new fault: each is complete, or says what there is none of.

    Whatever it was, the next run goes on from there, and what comes out is the same, byte for byte.
    """
    faults = Faults(shim, tmp_path, calls)

    def complete(number: int) -> list[str]:
        place = Place(tmp_path / str(number))
        books = ShardSummary(trial, place)
        failed = run_until_complete(trial.command(place), faults, books.check)
        trial.check_complete(place)
        return failed

    assert complete_until_nothing_fails(complete)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("calls", _FILE_CALLS)
def test_each_call_fails_once_during_resharding(shim: Path, tmp_path: Path, calls: str) -> None:
    """The output holds shards as the manifest cut them until it holds resharded ones, as of an undisturbed run."""
    faults = Faults(shim, tmp_path, calls)
    with serve_healing(tmp_path, RESHARDED) as healing:
        cut, resharded = replace(healing, root=tmp_path / "cut", layout=AS_CUT), healing
        for command in (cut.prepare(), [*cut.prepare(), "--fresh"], resharded.prepare()):  # once for the faults to heal
            subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
        assert cut.files() != resharded.files()

        def complete(number: int) -> list[str]:
            place = replace(healing, root=tmp_path / str(number))

            def check() -> None:
                files = place.files()
                assert files == resharded.files() or files.items() <= cut.files().items()

            failed = run_until_complete(place.prepare(), faults, check)
            assert place.files() == resharded.files()
            check_tidy(place, resharded)
            return failed

        assert complete_until_nothing_fails(complete)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("calls", "layout"),
    [
        *(pytest.param(calls, AS_CUT, id=f"{calls}-as cut") for calls in _FILE_CALLS),
        *(pytest.param(calls, RESHARDED, id=f"{calls}-resharded") for calls in _FILE_CALLS),
    ],
)
def test_each_call_fails_once_in_a_retry(shim: Path, tmp_path: Path, calls: str, layout: tuple[str, ...]) -> None:
    """The output holds what it held, until it holds what an undisturbed retry makes; resharded ones all at once."""
    faults = Faults(shim, tmp_path, calls)
    with serve_healing(tmp_path, layout) as healing:
        subprocess.run(healing.prepare(), check=True, capture_output=True, timeout=PATIENCE_S)
        undisturbed = replace(healing, root=tmp_path / "undisturbed")
        shutil.copytree(healing.root, undisturbed.root)
        subprocess.run(undisturbed.retry(), check=True, capture_output=True, timeout=PATIENCE_S)
        old, new = healing.files(), undisturbed.files()
        assert old != new

        def complete(number: int) -> list[str]:
            place = replace(healing, root=tmp_path / str(number))
            shutil.copytree(healing.root, place.root)
            failed = run_until_complete(
                place.retry(), faults, lambda: check_old_or_new(place.files(), old, new, layout)
            )
            assert place.files() == new
            check_tidy(place, undisturbed)
            return failed

        assert complete_until_nothing_fails(complete)


def check_old_or_new(
    files: Mapping[str, bytes], old: Mapping[str, bytes], new: Mapping[str, bytes], layout: Collection[str]
) -> None:
    """All shards of a resharded output are old, or all are new; of others each is, and a count may be yet to come."""
    if layout == RESHARDED:
        assert files in (old, new)
    else:
        assert {name for name in files if name.endswith(".pkl")} == {name for name in new if name.endswith(".pkl")}
        assert all(content in (old.get(name), new.get(name)) for name, content in files.items())


def check_tidy(place: Healing, undisturbed: Healing) -> None:
    """The state folder holds what an undisturbed run leaves in it, and nothing else."""
    left, expected = (
        {str(path.relative_to(one.out.parent)) for path in one.out.parent.rglob("*")}
        - {str(OutputLayout(one.out).unpublished.relative_to(one.out.parent))}  # an empty one is as good as none
        for one in (place, undisturbed)
    )
    assert left == expected


def complete_until_nothing_fails(complete: Callable[[int], list[str]]) -> list[str]:
    """Repeat until no new fault occurs, and return the calls that failed."""
    failed: list[str] = []
    for number in range(_MAX_PLACES):
        new = complete(number)
        failed += new
        if not new:
            return failed
    raise AssertionError(f"always something new: {failed}")


def run_until_complete(command: Sequence[str], faults: Faults, check: Callable[[], None]) -> list[str]:
    """Run a command until it is complete, checking the files after each run, and return the calls that failed."""
    failed: list[str] = []
    for number in range(_MAX_RUNS):
        faults.begin(Phase.LOCK if number else Phase.REQUEST)
        with Run(command, faults.environment) as run:
            code = _end(run, faults.calls)
            new = faults.new()
            failed += new
            if code not in (0, None):
                assert new, run.said()
                check_stopped(run, code, new)
        check()
        if code == 0:
            return failed
    raise AssertionError(f"never complete: {failed}")


def _end(run: Run, calls: str) -> int | None:
    """Wait for the end of a run, and return its exit code; None for one hang that is CPython's.

    ``Thread.start`` waits for ever when the new thread finds no memory to say that it has begun with. Such a run is
    ended, and has to be as good for the next one as any other. Of any other hang, the stacks are in the error.
    """
    try:
        return run.end(_MMAP_PATIENCE_S if calls == "mmap" else PATIENCE_S)
    except subprocess.TimeoutExpired:
        run.abort()
        stacks = "\n".join(run.said())
        assert calls == "mmap", stacks
        assert _WAITS_FOR_ITS_THREAD.search(stacks), stacks
        return None


def check_stopped(run: Run, code: int, failed: list[str]) -> None:
    """Check that the command stopped with exit code 4 and a line that says what to do, without a traceback."""
    said = _SAID_BY_UVLOOP.sub("", "\n".join(run.said())).splitlines()
    assert code == 4, (failed, said)
    assert "Traceback" not in "\n".join(said), (failed, said)
    complaints = [line for line in said if line.startswith("datafetch: ") and "run the same command again" in line]
    assert len(complaints) == 1, (failed, said)  # perhaps before what uvloop has to say of a process it did not start
