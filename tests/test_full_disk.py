"""A disk that fills up, goes read-only or loses its permissions stops a run with one line, and costs nothing."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from runs import PATIENCE_S, Place, Run, ShardSummary, Trial, check_out_of_resources, serve_trial

from datafetch.errors import ResourceError

_PAGE = 4096
_SOME_BYTES = 20_000
_MAX_STRIKES = 40
# A mount namespace of its own: whatever becomes of the test, its mounts are gone with the last process in it.
_NAMESPACE = ("--mount",) if os.geteuid() == 0 else ("--user", "--map-root-user", "--mount")


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """A dataset with its own origin, which counts requests."""
    with serve_trial(tmp_path_factory.mktemp("trial")) as served:
        yield served


@dataclass(frozen=True, slots=True)
class Disk:
    """A small filesystem that only its own processes see.

    Attributes:
        holder: The process that keeps it.
        mounted_at: Where its processes find it.
    """

    holder: int
    mounted_at: Path

    def inside(self, *command: str) -> list[str]:
        """The command that runs another one where the filesystem is."""
        spaces = ("--mount",) if os.geteuid() == 0 else ("--user", "--preserve-credentials", "--mount")
        return ["nsenter", "--target", str(self.holder), *spaces, "--wd=/", *command]

    def mount(self, *options: str) -> None:
        """Run ``mount`` there."""
        subprocess.run(self.inside("mount", *options), check=True, capture_output=True, timeout=PATIENCE_S)

    def remount(self, options: str) -> None:
        """Change what it allows."""
        # With its type and source named, the present options are left out, which a plain user's namespace refuses.
        self.mount("-t", "tmpfs", "-o", f"remount,{options}", "none", str(self.mounted_at))

    def seen_here(self, path: Path) -> Path:
        """The same path as this process reaches it."""
        return Path(f"/proc/{self.holder}/root{path}")


@contextmanager
def hold_disk(mounted_at: Path, options: str) -> Iterator[Disk]:
    """Mount a tmpfs for the time being; skip the test where that is not permitted."""
    mounted_at.mkdir()
    if not all(map(shutil.which, ("unshare", "nsenter", "mount"))):
        pytest.skip("unshare, nsenter or mount is not installed")
    script = 'mount -t tmpfs -o "$1" none "$0" && echo mounted && exec cat'
    with subprocess.Popen(
        [str(shutil.which("unshare")), *_NAMESPACE, "sh", "-c", script, str(mounted_at), options],
        stdin=subprocess.PIPE,  # its end is the holder's
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "mounted\n":
            pytest.skip(f"no filesystem can be mounted here: {holder.stderr.read().strip()}")
        yield Disk(holder.pid, mounted_at)
        holder.communicate()


@dataclass(frozen=True, slots=True)
class Layout:
    """Which folders are on the small disk, and which resource it runs out of.

    Attributes:
        place: Where the run leaves things, given the disk and another folder, in this order.
        option: What is raised: the mount option for space or for files.
        first: What there is of it at first.
        step: By how much it grows each time, at most; drawn in steps of ``unit``.
        unit: A page of space, or a file.
        least_strikes: How often it must have run out.
    """

    place: Callable[[Path, Path], Place]
    option: str
    first: int
    step: int
    unit: int
    least_strikes: int

    def enlarged(self, amount: int, rng: random.Random) -> int:
        """The next larger amount."""
        return amount + rng.randrange(self.unit, self.step + 1, self.unit)


LAYOUTS = {
    "all of it": Layout(lambda disk, _: Place(disk / "root"), "size", _PAGE, 80 * _PAGE, _PAGE, 3),
    "scratch": Layout(lambda disk, other: Place(other / "root", disk / "scratch"), "size", _PAGE, 50 * _PAGE, _PAGE, 2),
    "output": Layout(lambda disk, other: Place(disk / "root", other / "scratch"), "size", _PAGE, 50 * _PAGE, _PAGE, 2),
    "files": Layout(lambda disk, other: Place(disk / "root", other / "scratch"), "nr_inodes", 2, 3, 1, 5),
}
"""The last one runs out of files, some more each time: that strikes everywhere, from the first folder to the report."""


@pytest.mark.timeout(300)  # dozens of runs, each a second on an idle machine
@pytest.mark.parametrize(
    "name", [name if name == "scratch" else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
def test_a_disk_that_is_full_again_and_again_costs_nothing(trial: Trial, tmp_path: Path, name: str) -> None:
    """Each time, the run reports it and stops; with more space it is resumed, and the output is the same."""
    layout = LAYOUTS[name]
    rng = random.Random(name)
    amount, strikes = layout.first, []
    with hold_disk(tmp_path / "disk", f"{layout.option}={amount}") as disk:
        told = layout.place(disk.mounted_at, tmp_path)
        place = layout.place(disk.seen_here(disk.mounted_at), tmp_path)
        books = ShardSummary(trial, place)
        while (complaint := run_until_full(trial, disk, told)) is not None:
            strikes.append(complaint)
            assert len(strikes) < _MAX_STRIKES, strikes
            books.check()
            amount = layout.enlarged(amount, rng)
            disk.remount(f"{layout.option}={amount}")
        books.check()
        trial.check_complete(place)
    assert len(strikes) >= layout.least_strikes
    assert all("No space left on device" in complaint for complaint in strikes), strikes


def run_until_full(trial: Trial, disk: Disk, told: Place) -> str | None:
    """Run the command where the disk is; returns what it said when that was full, None when it is complete."""
    with Run(disk.inside(*trial.command(told))) as run:
        code = run.end()
        if code == 0:
            assert all("are free" in line for line in run.said())
            return None
        return check_out_of_resources(run, code)


def test_a_full_disk_is_told_in_the_same_words_by_all() -> None:
    """Arrow has its own wording and Python has the system's; the operator reads the same message."""
    with pytest.raises(OSError, match="28") as by_arrow, pa.OSFile("/dev/full", "wb") as file:
        file.write(bytes(100_000))
    with pytest.raises(OSError, match="28") as by_python, Path("/dev/full").open("wb", buffering=0) as raw:
        raw.write(bytes(100_000))
    errors = (by_arrow.value, by_python.value)
    told = {str(ResourceError.from_disk_error(error, "write")).partition(";")[0] for error in errors}
    assert told == {"cannot write: No space left on device"}


def test_a_disk_that_turns_read_only_costs_nothing(trial: Trial, tmp_path: Path) -> None:
    """During and before a run: it reports it, stops, and is resumed when the disk is writable again."""
    with hold_disk(tmp_path / "disk", "size=16m") as disk:
        told, place = Place(disk.mounted_at / "root"), Place(disk.seen_here(disk.mounted_at) / "root")
        out = str(told.layout.out)
        books = ShardSummary(trial, place)
        with Run(disk.inside(*trial.command(told))) as run:
            wait_for_bytes(run, place)
            place.layout.out.mkdir(exist_ok=True)
            # The kernel refuses this for a whole filesystem while a spool is open for writing; the output suffices.
            disk.mount("--bind", out, out)
            disk.mount("-o", "remount,bind,ro", out)
            assert "Read-only file system" in check_out_of_resources(run, run.end())
        books.check()
        subprocess.run(disk.inside("umount", out), check=True, capture_output=True, timeout=PATIENCE_S)
        disk.remount("ro")
        with Run(disk.inside(*trial.command(told))) as run:
            assert "Read-only file system" in check_out_of_resources(run, run.end())
        books.check()
        disk.remount("rw")
        assert run_until_full(trial, disk, told) is None
        books.check()
        trial.check_complete(place)


def test_permission_that_is_lost_costs_nothing(trial: Trial, tmp_path: Path) -> None:
    """During and before a run: it reports it, stops, and is resumed when it has permission again."""
    place = Place(tmp_path / "root")
    command = [*_without_privileges(), *trial.command(place)]
    books = ShardSummary(trial, place)
    with Run(command) as run:
        wait_for_bytes(run, place)
        for folder in (place.layout.out, place.layout.ledgers):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o555)
        place.layout.state_folder.chmod(0o555)
        assert "Permission denied" in check_out_of_resources(run, run.end())
    books.check()
    with Run(command) as run:
        assert "Permission denied" in check_out_of_resources(run, run.end())
    books.check()
    for folder in (place.layout.out, place.layout.ledgers, place.layout.state_folder):
        folder.chmod(0o755)
    with Run(command) as run:
        assert run.end() == 0, run.said()
    books.check()
    trial.check_complete(place)


def wait_for_bytes(run: Run, place: Place) -> None:
    """Return when the run has stored some images."""
    assert any(place.bytes_kept() >= _SOME_BYTES for _ in run.readings()), run.said()


def _without_privileges() -> list[str]:
    """The front of a command that does without root's right to write what nobody may; empty where that is not had."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed, and root may write everything")
    dropped = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}"]
