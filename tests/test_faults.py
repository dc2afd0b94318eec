"""Each call of the system fails once, wherever it is made from, and what comes of the run is the same."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import PATIENCE_S, Books, Place, Run, Trial, serve_trial

_STATE_BYTES = 1 << 16
_MOST_RUNS = 20  # until one is complete
_MOST_PLACES = 20


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """A dataset on an origin of its own, for its counts."""
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
        self._log = folder / "faults.log"
        self._log.touch()
        self._state = folder / "faults.state"
        self._state.write_bytes(bytes(_STATE_BYTES))
        self._read = 0
        self.environment = {
            "LD_PRELOAD": str(shim),
            "FAULTS_STATE": str(self._state),
            "FAULTS_LOG": str(self._log),
            "FAULTS_CALLS": calls,
        }

    def begin(self) -> None:
        """Before a run: let nothing fail before its first request."""
        with self._state.open("r+b") as state:
            state.write(bytes(4))

    def new(self) -> list[str]:
        """What failed since this was last asked: process, function, error, what it was called upon."""
        lines = self._log.read_text().splitlines()
        new, self._read = lines[self._read :], len(lines)
        return new


@pytest.mark.slow
@pytest.mark.timeout(600)  # dozens of runs, each a second on an idle machine
@pytest.mark.parametrize("calls", ["open", "socket", "fork", "mmap", "write", "fsync", "rename"])
def test_each_call_fails_once_and_costs_nothing(
    trial: Trial, shim: Path, tmp_path: Path, calls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run after run, until one from the beginning meets no new fault: each is complete, or says what there is none of.

    Whatever it was, the next run goes on from there, and what comes out is the same, byte for byte.
    """
    for variable in ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"):  # or its own files would fail
        monkeypatch.delenv(variable, raising=False)
    faults = Faults(shim, tmp_path, calls)
    failed: list[str] = []
    is_there_more = True
    for number in range(_MOST_PLACES):
        new = complete_with_faults(trial, Place(tmp_path / str(number)), faults)
        failed += new
        is_there_more = bool(new)
        if not is_there_more:
            break
    assert failed
    assert not is_there_more, failed


def complete_with_faults(trial: Trial, place: Place, faults: Faults) -> list[str]:
    """Run until it is complete, and return what failed meanwhile."""
    books = Books(trial, place)
    failed: list[str] = []
    for _ in range(_MOST_RUNS):
        faults.begin()
        with Run(trial.command(place), faults.environment) as run:
            code = _end(run, faults.calls)
            new = faults.new()
            failed += new
            if code not in (0, -signal.SIGKILL):
                assert new, run.said()
                check_stopped(run, code, new)
        books.check()
        if code == 0:
            trial.check_complete(place)
            return failed
    raise AssertionError(f"never complete: {failed}")


def _end(run: Run, calls: str) -> int:
    """Wait for the end of a run, and return its exit code.

    CPython's ``Thread.start`` waits for ever when the new thread finds no memory to say that it has begun with. Such a
    run is killed, and has to be as good for the next one as any other.
    """
    try:
        return run.end()
    except subprocess.TimeoutExpired:
        if calls != "mmap":
            raise
        run.process.kill()
        return run.end()


def check_stopped(run: Run, code: int, failed: list[str]) -> None:
    """The command has stopped with exit 4 and a line that says what to do, and without a traceback."""
    said = run.said()
    assert code == 4, (failed, said)
    assert "Traceback" not in "\n".join(said), (failed, said)
    complaints = [line for line in said if line.startswith("datafetch: ") and "run the same command again" in line]
    assert len(complaints) == 1, (failed, said)  # perhaps before what uvloop has to say of a process it did not start
