"""Runs that are killed repeatedly lose nothing, and produce the same files as an undisturbed run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil
import pytest
from preloaded import PreloadedCommand
from runs import Run, RunFolders, StoredImages, Trial, check_out_of_resources, dying_at_a_step, listed, serve_trial

_MAX_RUNS = 40
_KILLED = -9


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """A dataset on an origin of its own, for its counts."""
    with serve_trial(tmp_path_factory.mktemp("trial")) as served:
        yield served


class Victim(StrEnum):
    """The process to kill, by a part of its command line."""

    PARENT = " prepare coyo "
    CODEC = "datafetch.transcode.pool.forkserver"
    COMMIT = "datafetch.output.commit_process"


@dataclass(frozen=True, slots=True)
class Moment:
    """The process to kill, and the progress of the run at which it is killed.

    Attributes:
        victim: The process to kill.
        sign: Measures the progress of the run.
        growth: The progress since the run began, or since the last kill, at which to kill it.
    """

    victim: Victim
    sign: Callable[[RunFolders], Progress]
    growth: int


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run, as seen from outside."""

    kept_bytes: int = 0
    files: frozenset[tuple[str, int]] = frozenset()

    def since(self, before: Progress) -> int:
        """Return the progress since an earlier one."""
        return self.kept_bytes - before.kept_bytes + len(self.files - before.files)

    def joined_with(self, earlier: Progress) -> Progress:
        """Return the larger size and the files of both, since files that are being written soon disappear."""
        return Progress(max(self.kept_bytes, earlier.kept_bytes), self.files | earlier.files)


def state_files(folders: RunFolders) -> Progress:
    """Return the files of the state folder."""
    return _files(listed(folders.layout.state_folder))


def stored(folders: RunFolders) -> Progress:
    """Return the size of spools and published files."""
    return Progress(kept_bytes=folders.stored_bytes())


def being_written(folders: RunFolders) -> Progress:
    """Return the files of shards that are being written or about to be published."""
    return _files([*listed(folders.layout.unpublished), *folders.layout.ready.glob("**/*")])


def published(folders: RunFolders) -> Progress:
    """Return the published files."""
    return _files([*listed(folders.layout.out), *listed(folders.layout.ledgers)])


def _files(paths: Iterable[Path]) -> Progress:
    found = set()
    for path in paths:
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ino))
    return Progress(files=frozenset(found))


def draw_moments(seed: int) -> list[Moment]:
    """Draw five moments, spread over all stages of a run."""
    rng = random.Random(seed)
    early = [(state_files, rng.randrange(1, 4)), (stored, rng.randrange(1, 90_000))]
    late = [(being_written, rng.randrange(1, 5)), (published, rng.randrange(1, 4))]
    moments = [
        Moment(Victim.PARENT, *rng.choice(early)),
        Moment(Victim.PARENT, *rng.choice(late)),
        Moment(Victim.CODEC, stored, rng.randrange(1, 60_000)),
        Moment(Victim.CODEC, stored, rng.randrange(1, 60_000)),
        Moment(Victim.COMMIT, being_written, rng.randrange(1, 5)),
    ]
    rng.shuffle(moments)
    return moments


def wait_and_kill(run: Run, folders: RunFolders, moment: Moment) -> bool:
    """Kill the victim at its moment; return False if the command ended before."""
    now = before = moment.sign(folders)
    for _ in run.readings():
        now = moment.sign(folders).joined_with(now)
        if now.since(before) >= moment.growth and any(map(_kill, find_victims(run, moment.victim)[:1])):
            return True
    return False


def find_victims(run: Run, victim: Victim) -> list[psutil.Process]:
    """Return the processes that may be killed, in any order."""
    if victim is Victim.PARENT:
        return [psutil.Process(run.process.pid)]
    found = run.family(victim)
    if victim is Victim.CODEC:  # not the server that they are forked from
        numbers = {process.pid for process in found}
        found = [process for process in found if process.ppid() in numbers]
    return found


def _kill(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        process.kill()
        return True
    return False


@pytest.mark.rotating
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_run_killed_at_any_moment_ends_as_if_undisturbed(
    trial: Trial, preloaded: PreloadedCommand, tmp_path: Path, seed: int
) -> None:
    """Whichever process is killed and when, no stored image is requested again, and the files are the same."""
    moments = draw_moments(seed)
    runs = 0
    while moments:
        folders = RunFolders(tmp_path / f"{runs}")
        stored_images = StoredImages(trial, folders)
        code = _KILLED
        while code != 0:
            runs += 1
            assert runs < _MAX_RUNS, f"these moments never occurred: {moments}"
            with Run(trial.command(folders), preloaded=preloaded) as run:
                victim = disturb(run, folders, moments)
                code = run.end()
                check_end(run, code, victim)
            stored_images.check()
        trial.check_complete(folders)


def disturb(run: Run, folders: RunFolders, moments: list[Moment]) -> Victim | None:
    """Kill at the moments that occur in this run, removing them from the list; returns the last victim."""
    victim = None
    while moments and wait_and_kill(run, folders, moments[0]):
        victim = moments.pop(0).victim
        # After the first kill its images are tried one per process; a second kill would then blame one of them.
        if victim is not Victim.CODEC or (moments and moments[0].victim is Victim.CODEC):
            break
    return victim


def check_end(run: Run, code: int, victim: Victim | None) -> None:
    """The exit code follows from the process that was killed; a codec process is simply replaced."""
    if victim is Victim.PARENT:
        assert code == _KILLED
    elif victim is Victim.COMMIT and code != 0:
        check_out_of_resources(run, code)
    else:
        assert code == 0, run.messages()


@pytest.mark.rotating
@pytest.mark.parametrize(
    ("victim", "steps_between"),
    [
        pytest.param(Victim.PARENT, (1, 7), marks=pytest.mark.slow),
        pytest.param(Victim.COMMIT, (2, 6), marks=pytest.mark.slow),
        (Victim.COMMIT, (4, 7)),
    ],
)
def test_a_process_killed_before_any_file_operation_leaves_no_partial_files(
    trial: Trial, preloaded: PreloadedCommand, tmp_path: Path, victim: Victim, steps_between: tuple[int, int]
) -> None:
    """A process is killed before the first file operation, then before a later one, and so on to the last."""
    folders = RunFolders(tmp_path / "root")
    stored_images = StoredImages(trial, folders)
    rng = random.Random(17)
    steps, kills, code = 0, 0, _KILLED
    while code != 0:
        steps += rng.randrange(*steps_between)
        with Run(trial.command(folders), dying_at_a_step(victim, steps, folders.root), preloaded) as run:
            code = run.end()
            kills += code != 0
            check_end(run, code, victim if code else None)
        stored_images.check()
    assert kills >= 5
    trial.check_complete(folders)
