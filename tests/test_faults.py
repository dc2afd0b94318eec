"""Each system call of a run fails once, wherever it is made from, and the output is the same in the end.

No process of a run calls ``accept``, ``vfork`` or ``clone``: uvloop starts processes with ``fork``, and the channels to
them are pairs and pipes. So nothing fails there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from enum import IntEnum
from pathlib import Path

import psutil
import pytest
from preloaded import PreloadedCommand
from runs import PATIENCE_S, Run, RunFolders, StoredImages, Trial, run_undisturbed, serve_trial
from test_retry_kills import AS_CUT, RESHARDED, FlakyDataset, serve_flaky_dataset

from datafetch.store.layout import OutputLayout


def _parts(**functions: int) -> list[str]:
    """Divide the calls of functions into parts, so that none takes much longer than others."""
    return [f"{name} {part}/{parts}" for name, parts in functions.items() for part in range(parts)]


_CALLS = _parts(open=4, socket=1, fork=1, mmap=1, write=2, fsync=1, rename=1)
_FILE_CALLS = _parts(open=3, write=2, fsync=1, rename=1)
"""Resharding and retries add files to what a run does, and nothing else."""
_STATE_BYTES = 1 << 19
_LOG_BEGINS = 8 + 4096 * 8
_MAX_RUNS = 200  # until one is complete
_MAX_OUTPUTS = 20
_IDLE_S = 8.0  # a run of which no process uses the CPU for so long hangs, see _end
_MAX_HANGING_S = 60.0  # and so does one that has not ended by then, although its loop still runs

_WAITS_FOR_ITS_THREAD = re.compile(
    r'threading\.py", line \d+ in wait\n\s*File "[^"\n]*threading\.py", line \d+ in start\n'
)
# uvloop found no pipe or process and raised that; while it released what it had, the error occurred once more.
_LINES_OF_UVLOOP = re.compile(
    r"^Exception ignored in: '?uvloop\..*\nTraceback \(most recent call last\):\n(?:[ ].*\n)+.*\n?", re.MULTILINE
)


class Phase(IntEnum):
    """The event from which on the library of ``faults.c`` lets calls fail."""

    REQUEST = 0
    NOTHING = 1
    LOCK = 2


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """A dataset with its own origin, which counts requests."""
    with serve_trial(tmp_path_factory.mktemp("trial")) as served:
        yield served


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreloadedCommand]:
    """The command, loaded once, with the library of ``faults.c``, which is built for this machine."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler, cc")
    built = tmp_path_factory.mktemp("shim") / "faults.so"
    source = Path(__file__).with_name("faults.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(source), "-ldl"]
    subprocess.run(command, check=True, timeout=PATIENCE_S)
    with closing(PreloadedCommand(built)) as preloaded:
        yield preloaded


class Faults:
    """Calls that fail, once each, over any number of runs.

    Args:
        folder: A folder for the library's state.
        part: The function that fails, and which part of its calls do: ``open 1/3`` is the second of three.
    """

    def __init__(self, folder: Path, part: str) -> None:
        self.calls, _, number = part.partition(" ")
        self._state = folder / "faults.state"
        self._state.write_bytes(bytes(_STATE_BYTES))
        self._read = 0
        self.environment = {
            "DATAFETCH_FAULTS_STATE": str(self._state),
            "DATAFETCH_FAULTS_CALLS": self.calls,
            "DATAFETCH_FAULTS_PART": number or "0/1",
            "PYTHONFAULTHANDLER": "1",  # for a run that hangs to say where
        }

    def begin(self, phase: Phase = Phase.REQUEST) -> None:
        """Prepare the next run, in which nothing fails before its first request, or before it has opened the lock."""
        with self._state.open("r+b") as state:
            state.write(phase.to_bytes(4, "little"))

    def new(self) -> list[str]:
        """Return the calls that failed since this was last called: process, function, error, argument."""
        lines = self._state.read_bytes()[_LOG_BEGINS:].rstrip(b"\0").decode().splitlines()
        new, self._read = lines[self._read :], len(lines)
        return new


@pytest.fixture(autouse=True)
def _children_without_coverage(without_coverage: None) -> None:
    """Prevent failures of calls that coverage makes for its own files."""


@pytest.mark.slow
@pytest.mark.rotating
@pytest.mark.timeout(1800)  # dozens of runs, each a second on an idle machine, and ten where others are at work
@pytest.mark.parametrize("calls", _CALLS)
def test_each_call_fails_once_in_a_run(trial: Trial, failing: PreloadedCommand, tmp_path: Path, calls: str) -> None:
    """Each run completes, or stops and reports what it lacks; the next run resumes, until one meets no new fault.

    Whichever call failed, the output is the same in the end, byte for byte.
    """
    faults = Faults(tmp_path, calls)

    def complete(number: int) -> list[str]:
        folders = RunFolders(tmp_path / str(number))
        stored_images = StoredImages(trial, folders)
        failed = run_until_complete(trial.command(folders), faults, stored_images.check, failing)
        trial.check_complete(folders)
        return failed

    assert complete_until_nothing_fails(complete)


@pytest.mark.slow
@pytest.mark.rotating
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("calls", _FILE_CALLS)
def test_each_call_fails_once_during_resharding(failing: PreloadedCommand, tmp_path: Path, calls: str) -> None:
    """The output holds its shards as the manifest cut them until it holds those of an undisturbed resharding.

    Its images have been fetched before, since calls that fail while they are have a test above.
    """
    faults = Faults(tmp_path, calls)
    with serve_flaky_dataset(tmp_path, RESHARDED) as dataset:
        cut, resharded = replace(dataset, root=tmp_path / "cut", layout=AS_CUT), dataset
        # The flaky images fail in the first run, so the second one starts over.
        for command in (cut.prepare(), [*cut.prepare(), "--fresh"]):
            run_undisturbed(command, failing)
        shutil.copytree(cut.root, resharded.root)
        run_undisturbed(resharded.prepare(), failing)
        assert cut.files() != resharded.files()

        def complete(number: int) -> list[str]:
            copied = replace(dataset, root=tmp_path / str(number))
            shutil.copytree(cut.root, copied.root)

            def check() -> None:
                files = copied.files()
                assert files == resharded.files() or files.items() <= cut.files().items()

            failed = run_until_complete(copied.prepare(), faults, check, failing, Phase.LOCK)
            assert copied.files() == resharded.files()
            check_tidy(copied, resharded)
            return failed

        assert complete_until_nothing_fails(complete)


@pytest.mark.slow
@pytest.mark.rotating
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("calls", "layout"),
    [
        *(pytest.param(calls, AS_CUT, id=f"{calls}-as cut") for calls in _FILE_CALLS),
        *(pytest.param(calls, RESHARDED, id=f"{calls}-resharded") for calls in _FILE_CALLS),
    ],
)
def test_each_call_fails_once_in_a_retry(
    failing: PreloadedCommand, tmp_path: Path, calls: str, layout: tuple[str, ...]
) -> None:
    """The output is unchanged until it equals that of an undisturbed retry; if it is resharded, in one step."""
    faults = Faults(tmp_path, calls)
    with serve_flaky_dataset(tmp_path, layout) as dataset:
        run_undisturbed(dataset.prepare(), failing)
        undisturbed = replace(dataset, root=tmp_path / "undisturbed")
        shutil.copytree(dataset.root, undisturbed.root)
        run_undisturbed(undisturbed.retry(), failing)
        old, new = dataset.files(), undisturbed.files()
        assert old != new

        def complete(number: int) -> list[str]:
            copied = replace(dataset, root=tmp_path / str(number))
            shutil.copytree(dataset.root, copied.root)
            failed = run_until_complete(
                copied.retry(), faults, lambda: check_old_or_new(copied.files(), old, new, layout), failing
            )
            assert copied.files() == new
            check_tidy(copied, undisturbed)
            return failed

        assert complete_until_nothing_fails(complete)


def check_old_or_new(
    files: Mapping[str, bytes], old: Mapping[str, bytes], new: Mapping[str, bytes], layout: Collection[str]
) -> None:
    """Check that a resharded output is entirely old or new; in others, each shard is, and a count may be missing."""
    if layout == RESHARDED:
        assert files in (old, new)
    else:
        assert {name for name in files if name.endswith(".pkl")} == {name for name in new if name.endswith(".pkl")}
        assert all(content in (old.get(name), new.get(name)) for name, content in files.items())


def check_tidy(dataset: FlakyDataset, undisturbed: FlakyDataset) -> None:
    """Check that the state folder holds what an undisturbed run leaves in it, and nothing else."""
    left, expected = (
        {str(path.relative_to(one.out.parent)) for path in one.out.parent.rglob("*")}
        - {str(OutputLayout(one.out).unpublished.relative_to(one.out.parent))}  # which may be there and empty
        for one in (dataset, undisturbed)
    )
    assert left == expected


def complete_until_nothing_fails(complete: Callable[[int], list[str]]) -> list[str]:
    """Repeat until no new fault occurs, and return the calls that failed."""
    failed: list[str] = []
    for number in range(_MAX_OUTPUTS):
        new = complete(number)
        failed += new
        if not new:
            return failed
    raise AssertionError(f"there were always new faults: {failed}")


def run_until_complete(
    command: Sequence[str],
    faults: Faults,
    check: Callable[[], None],
    failing: PreloadedCommand,
    first_phase: Phase = Phase.REQUEST,
) -> list[str]:
    """Run a command until it is complete, checking the files after each run, and return the calls that failed."""
    failed: list[str] = []
    for number in range(_MAX_RUNS):
        faults.begin(Phase.LOCK if number else first_phase)
        with Run(command, faults.environment, failing) as run:
            code = _end(run, faults.calls)
            new = faults.new()
            failed += new
            if code not in (0, None):
                assert new, run.messages()
                check_stopped(run, code, new)
        check()
        if code == 0:
            return failed
    raise AssertionError(f"never complete: {failed}")


def _end(run: Run, calls: str) -> int | None:
    """Wait for the end of a run, and return its exit code; None for one hang that is a bug of CPython.

    ``Thread.start`` waits forever if the new thread finds no memory to report that it has started. Such a run is
    aborted, and the next one must be able to resume it. For any other hang, the error contains the stacks.
    """
    if calls == "mmap" and _is_hanging(run):
        run.abort()
        stacks = "\n".join(run.messages())
        assert _WAITS_FOR_ITS_THREAD.search(stacks), stacks
        return None
    try:
        return run.end()
    except subprocess.TimeoutExpired:
        run.abort()
        raise AssertionError("\n".join(run.messages())) from None


def _is_hanging(run: Run) -> bool:
    """Wait until a run has ended, or none of its processes has used the CPU for a while; return whether it is that."""
    used_s, since_s = -1.0, time.monotonic()
    end_s = since_s + _MAX_HANGING_S
    while time.monotonic() < min(since_s + _IDLE_S, end_s):
        try:
            run.process.wait(_IDLE_S / 16)
        except subprocess.TimeoutExpired:
            now_s = 0.0
            for process in run.family():
                with suppress(psutil.NoSuchProcess):
                    now_s += sum(process.cpu_times())
            if now_s != used_s:
                used_s, since_s = now_s, time.monotonic()
        else:
            return False
    return True


def check_stopped(run: Run, code: int, failed: list[str]) -> None:
    """Check that the command stopped with exit code 4 and a line that says what to do, without a traceback."""
    messages = _LINES_OF_UVLOOP.sub("", "\n".join(run.messages())).splitlines()
    assert code == 4, (failed, messages)
    assert "Traceback" not in "\n".join(messages), (failed, messages)
    complaints = [line for line in messages if line.startswith("datafetch: ") and "run the same command again" in line]
    assert len(complaints) == 1, (failed, messages)  # uvloop may print about a process that it did not start after it
