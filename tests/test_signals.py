"""Ctrl-C and SIGTERM, once or several times, at any moment of any command."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
from runs import PATIENCE_S, Run, RunFolders, Trial, listed, serve_trial

from datafetch.store.layout import OutputLayout
from datafetch.store.lock import Lock

INTERRUPTED = "datafetch: interrupted"
STOPPING = "datafetch: stopping, one moment; another signal or Ctrl-C stops it at once (nothing fetched is lost)"
_MAX_GAP_S = 0.5
_WORLD = ("--world-size", "8")


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """Serve a dataset from an origin of its own."""
    with serve_trial(tmp_path_factory.mktemp("trial")) as served:
        yield served


def has_handlers(run: Run) -> bool:
    """Return whether the command has installed its own signal handlers."""
    lines = Path(f"/proc/{run.process.pid}/status").read_text().splitlines()
    caught = next(line for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & 1 << signal.SIGTERM - 1)


def wait_until(run: Run, is_so: Callable[[], bool]) -> bool:
    """Wait until a condition holds; return False if the command ends before."""
    return any(is_so() for _ in run.readings())


def fork_server(run: Run) -> psutil.Process:
    """Return the process from which codec processes are forked."""
    return next(
        process for process in run.family("datafetch.transcode.pool.forkserver") if process.ppid() == run.process.pid
    )


def is_free(layout: OutputLayout) -> bool:
    """Check that no process holds the lock of the output."""
    if layout.state_folder.exists():
        lock = Lock(layout.lock, layout.out)
        lock.acquire()
        lock.release()
    return True


# Both signals occur in either; which is the first and which the last differs.
@pytest.mark.rotating
@pytest.mark.parametrize("signal_number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_the_second_signal_is_answered_and_the_third_ends_it_at_once(
    trial: Trial, tmp_path: Path, signal_number: signal.Signals
) -> None:
    """While a run is stopping, the second signal prints a line and the third exits with 130; the next run resumes."""
    folders = RunFolders(tmp_path)
    with Run(trial.command(folders)) as run:
        assert wait_until(run, lambda: folders.stored_bytes() > 10_000)
        fork_server(run).suspend()  # so that stopping waits for it
        other = signal.SIGTERM if signal_number == signal.SIGINT else signal.SIGINT
        run.process.send_signal(other)
        run.process.send_signal(signal_number)
        assert wait_until(run, lambda: STOPPING in run.messages()), run.messages()
        run.process.send_signal(signal_number)
        assert run.end() == 130
        assert run.messages()[-2:] == [STOPPING, "datafetch: stopped at once (nothing fetched is lost)"]
        assert is_free(folders.layout)
    subprocess.run(trial.command(folders), check=True, capture_output=True, timeout=PATIENCE_S)
    trial.check_complete(folders)


@pytest.mark.rotating
def test_sigterm_stops_a_run_that_ignores_ctrl_c(trial: Trial, tmp_path: Path) -> None:
    """A command that a script started in the background ignores Ctrl-C."""
    folders = RunFolders(tmp_path)
    command = [sys.executable, "-c", _IGNORING, *trial.command(folders)]
    with Run(command) as run:
        assert wait_until(run, lambda: folders.stored_bytes() > 0)
        run.process.send_signal(signal.SIGINT)
        before = folders.stored_bytes()
        assert wait_until(run, lambda: folders.stored_bytes() > before), "it was stopped by what it ignores"
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 130
        assert run.messages()[-1].startswith(INTERRUPTED)
        assert is_free(folders.layout)


_IGNORING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_command_that_is_still_loading_exits_at_once(trial: Trial, tmp_path: Path) -> None:
    """Nothing has been started, and nothing is left behind."""
    with Run(trial.command(RunFolders(tmp_path))) as run:
        assert wait_until(run, lambda: has_handlers(run))
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 130
        assert run.messages() == ["datafetch: interrupted before it began"]
    assert not listed(tmp_path)


@pytest.mark.rotating
@pytest.mark.slow
@pytest.mark.parametrize("is_ended", [False, True], ids=["continues", "SIGTERM"])
def test_a_stopped_fork_server_does_not_hang_a_run(trial: Trial, tmp_path: Path, is_ended: bool) -> None:
    """Its workers are killed and it reports nothing, so it is replaced; SIGTERM does not wait for it."""
    folders = RunFolders(tmp_path)
    with Run(trial.command(folders)) as run:
        assert wait_until(run, lambda: folders.stored_bytes() > 10_000)
        server = fork_server(run)
        server.suspend()
        for process in server.children():
            process.kill()
        if is_ended:
            run.process.send_signal(signal.SIGTERM)
        assert run.end() == (130 if is_ended else 0)
        assert is_free(folders.layout)
    if not is_ended:
        trial.check_complete(folders)


@dataclass(frozen=True, slots=True)
class Scene:
    """A command in one of its phases.

    Attributes:
        command: The arguments after ``datafetch``.
        output: The output whose lock it holds.
        is_reached: Whether the phase is reached.
    """

    command: Sequence[str]
    output: OutputLayout
    is_reached: Callable[[Run], bool]


def _prepare(trial: Trial, folder: Path, is_reached: Callable[[RunFolders], bool], *options: str) -> Scene:
    folders = RunFolders(folder / "root")
    command = [word for word in trial.command(folders)[3:] if word != "--no-reshard"]
    return Scene([*command, *options], folders.layout, lambda _: is_reached(folders))


def _complete(trial: Trial, folder: Path) -> RunFolders:
    """Copy the output of a complete run, which is made once."""
    first = RunFolders(trial.source.folder.parent / "complete")
    if not first.root.exists():
        subprocess.run(trial.command(first), check=True, capture_output=True, timeout=PATIENCE_S)
    return RunFolders(Path(shutil.copytree(first.root, folder / "root")))


def _retry(trial: Trial, folder: Path) -> Scene:
    folders = _complete(trial, folder)
    return Scene(["retry", str(folders.layout.out), "--all"], folders.layout, lambda _: folders.layout.retry.exists())


def _verify(trial: Trial, folder: Path) -> Scene:
    folders = _complete(trial, folder)
    command = [
        "verify",
        str(folders.layout.out),
        "--processes",
        "1",
        "--world-size",
        "1",
        "--batch",
        "1",
        "--group",
        "1",
    ]
    return Scene(command, folders.layout, lambda run: bool(run.family("datafetch.transcode.pool.forkserver")))


def _status(trial: Trial, folder: Path) -> Scene:
    folders = _complete(trial, folder)
    return Scene(["status", str(folders.layout.out)], folders.layout, lambda _: True)


def _reshard(trial: Trial, folder: Path) -> Scene:
    layout = OutputLayout(folder / "resharded")
    source = _complete(trial, folder).layout.out
    return Scene(["reshard", str(source), str(layout.out), *_WORLD], layout, lambda _: layout.state_folder.exists())


def _demo(folder: Path, sign: str) -> Scene:
    command = ["demo", "--images", "90", "--out", str(folder / "demo")]
    return Scene(command, OutputLayout(folder / "none"), lambda _: any((folder / "demo").glob(sign)))


SCENES: Mapping[str, Callable[[Trial, Path], Scene]] = {
    "loading": lambda trial, folder: _prepare(trial, folder, lambda _: True),
    "beginning": lambda trial, folder: _prepare(trial, folder, lambda folders: folders.layout.lock.exists()),
    "fetching": lambda trial, folder: _prepare(trial, folder, lambda folders: folders.stored_bytes() > 0),
    "committing": lambda trial, folder: _prepare(
        trial, folder, lambda folders: bool(listed(folders.layout.unpublished))
    ),
    "resharding": lambda trial, folder: _prepare(
        trial,
        folder,
        lambda folders: folders.layout.resharding.exists() or folders.layout.reshard_record.exists(),
        *_WORLD,
    ),
    "retry": _retry,
    "verify": _verify,
    "status": _status,
    "reshard": _reshard,
    "demo: painting": lambda _, folder: _demo(folder, "pictures/*"),
    "demo: fetching": lambda _, folder: _demo(folder, "playground/data/**/*.spool"),
}


@pytest.mark.rotating
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("scene", SCENES)
def test_signals_at_any_moment_of_any_command(trial: Trial, tmp_path: Path, scene: str, number: signal.Signals) -> None:
    """Several commands at once, to create load, get one to three signals with gaps of 0 to 500 ms.

    Each ends in time, with 130 and a line that says so, or with 0 if it was complete already. It leaves no process and
    no lock, and prints no traceback.
    """
    rng = random.Random(f"{scene} {number}")
    scenes = [SCENES[scene](trial, _folder(tmp_path, attempt)) for attempt in range(_ATTEMPTS)]
    gaps_s = [[rng.uniform(0, _MAX_GAP_S) for _ in range(rng.randrange(1, 4))] for _ in scenes]
    gaps_s[0][0] = 0
    with ThreadPoolExecutor(_ATTEMPTS) as together:
        list(together.map(partial(_disturb, number=number), scenes, gaps_s))


def _disturb(scene: Scene, gaps_s: Sequence[float], number: signal.Signals) -> None:
    with Run([sys.executable, "-m", "datafetch", *scene.command]) as run:
        if wait_until(run, lambda: has_handlers(run) and scene.is_reached(run)):
            _send(run, number, gaps_s)
        code = run.end()
        stderr_lines = run.messages()
        assert "Traceback" not in "\n".join(stderr_lines), stderr_lines
        assert code in (0, 130), stderr_lines
        ends = (INTERRUPTED, "datafetch: stopped at once (nothing fetched is lost)")
        assert code == 0 or any(line.startswith(ends) for line in stderr_lines), stderr_lines
        assert is_free(scene.output)


_ATTEMPTS = 4


def _folder(tmp_path: Path, attempt: int) -> Path:
    folder = tmp_path / str(attempt)
    folder.mkdir()
    return folder


def _send(run: Run, number: signal.Signals, gaps_s: Sequence[float]) -> None:
    for gap_s in gaps_s:
        time.sleep(gap_s)  # simulates a person's speed; everything else in this file waits for conditions
        run.process.send_signal(number)
