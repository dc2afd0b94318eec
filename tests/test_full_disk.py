"""A run on a disk that fills up, becomes read-only or loses its permissions stops with one line and loses nothing."""

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
from runs import PATIENCE_S, Run, RunFolders, StoredImages, Trial, check_out_of_resources, serve_trial

from datafetch.errors import ResourceError

_PAGE = 4096
_SOME_BYTES = 20_000
_MAX_STRIKES = 40
_EXPECTED = (
    "datafetch: estimated disk space: needs ",
    "datafetch: defaults that decide the rows: ",
    "datafetch: spools may take ",
)
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
        holder: The process that keeps it mounted.
        mounted_at: Its path for processes in its mount namespace.
    """

    holder: int
    mounted_at: Path

    def inside(self, *command: str) -> list[str]:
        """Return the command that runs another one in the mount namespace of the filesystem."""
        spaces = ("--mount",) if os.geteuid() == 0 else ("--user", "--preserve-credentials", "--mount")
        return ["nsenter", "--target", str(self.holder), *spaces, "--wd=/", *command]

    def mount(self, *options: str) -> None:
        """Run ``mount`` in the mount namespace of the filesystem."""
        subprocess.run(self.inside("mount", *options), check=True, capture_output=True, timeout=PATIENCE_S)

    def remount(self, options: str) -> None:
        """Change the mount options of the filesystem."""
        # With its type and source named, the present options are left out, which a plain user's namespace refuses.
        self.mount("-t", "tmpfs", "-o", f"remount,{options}", "none", str(self.mounted_at))

    def seen_here(self, path: Path) -> Path:
        """Return the path by which this process reaches a path of the filesystem."""
        return Path(f"/proc/{self.holder}/root{path}")


@contextmanager
def hold_disk(mounted_at: Path, options: str) -> Iterator[Disk]:
    """Mount a tmpfs for the duration of the block; skip the test if mounting is not permitted."""
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
        folders: The folders of the run, given the disk and another folder, in this order.
        option: The mount option that limits the resource: space or files.
        first: The limit at first.
        step: By how much the limit is raised each time, at most; drawn in steps of ``unit``.
        unit: A page of space, or a file.
        least_strikes: How often the disk must have been full at least.
    """

    folders: Callable[[Path, Path], RunFolders]
    option: str
    first: int
    step: int
    unit: int
    least_strikes: int

    def enlarged(self, amount: int, rng: random.Random) -> int:
        """Return the next larger limit, drawn at random."""
        return amount + rng.randrange(self.unit, self.step + 1, self.unit)


LAYOUTS = {
    "all of it": Layout(lambda disk, _: RunFolders(disk / "root"), "size", _PAGE, 80 * _PAGE, _PAGE, 3),
    "scratch": Layout(
        lambda disk, other: RunFolders(other / "root", disk / "scratch"), "size", _PAGE, 50 * _PAGE, _PAGE, 2
    ),
    "output": Layout(
        lambda disk, other: RunFolders(disk / "root", other / "scratch"), "size", _PAGE, 50 * _PAGE, _PAGE, 2
    ),
    "files": Layout(lambda disk, other: RunFolders(disk / "root", other / "scratch"), "nr_inodes", 2, 3, 1, 5),
}
"""The last one runs out of files, some more each time: that strikes everywhere, from the first folder to the report."""


@pytest.mark.rotating
@pytest.mark.parametrize(
    "name", [name if name == "scratch" else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
def test_a_disk_that_fills_up_repeatedly_loses_nothing(trial: Trial, tmp_path: Path, name: str) -> None:
    """Each time, the run reports it and stops; with more space it is resumed, and the output is the same."""
    layout = LAYOUTS[name]
    rng = random.Random(name)
    amount, strikes = layout.first, []
    with hold_disk(tmp_path / "disk", f"{layout.option}={amount}") as disk:
        inside = layout.folders(disk.mounted_at, tmp_path)
        folders = layout.folders(disk.seen_here(disk.mounted_at), tmp_path)
        stored_images = StoredImages(trial, folders)
        while (complaint := run_until_full(trial, disk, inside)) is not None:
            strikes.append(complaint)
            assert len(strikes) < _MAX_STRIKES, strikes
            stored_images.check()
            amount = layout.enlarged(amount, rng)
            disk.remount(f"{layout.option}={amount}")
        stored_images.check()
        trial.check_complete(folders)
    assert len(strikes) >= layout.least_strikes
    assert all("No space left on device" in complaint for complaint in strikes), strikes


def run_until_full(trial: Trial, disk: Disk, inside: RunFolders) -> str | None:
    """Run the command on the disk; return its message if the disk was full, and None if it completed."""
    with Run(disk.inside(*trial.command(inside))) as run:
        code = run.end()
        if code == 0:
            for line in run.messages():
                assert line.startswith(_EXPECTED), line
            return None
        return check_out_of_resources(run, code)


def test_a_full_disk_is_reported_in_the_same_words_by_every_library() -> None:
    """Arrow has its own wording and Python has the system's; the operator reads the same message."""
    with pytest.raises(OSError, match="28") as by_arrow, pa.OSFile("/dev/full", "wb") as file:
        file.write(bytes(100_000))
    with pytest.raises(OSError, match="28") as by_python, Path("/dev/full").open("wb", buffering=0) as raw:
        raw.write(bytes(100_000))
    errors = (by_arrow.value, by_python.value)
    messages = {str(ResourceError.from_disk_error(error, "write")).partition(";")[0] for error in errors}
    assert messages == {"cannot write: No space left on device"}


@pytest.mark.rotating
@pytest.mark.slow
def test_a_disk_that_becomes_read_only_loses_nothing(trial: Trial, tmp_path: Path) -> None:
    """During a run and before one: the run reports it, stops, and resumes when the disk is writable again."""
    with hold_disk(tmp_path / "disk", "size=16m") as disk:
        inside, folders = RunFolders(disk.mounted_at / "root"), RunFolders(disk.seen_here(disk.mounted_at) / "root")
        out = str(inside.layout.out)
        stored_images = StoredImages(trial, folders)
        with Run(disk.inside(*trial.command(inside))) as run:
            wait_for_bytes(run, folders)
            folders.layout.out.mkdir(exist_ok=True)
            # The kernel refuses this for a whole filesystem while a spool is open for writing; the output suffices.
            disk.mount("--bind", out, out)
            disk.mount("-o", "remount,bind,ro", out)
            assert "Read-only file system" in check_out_of_resources(run, run.end())
        stored_images.check()
        subprocess.run(disk.inside("umount", out), check=True, capture_output=True, timeout=PATIENCE_S)
        disk.remount("ro")
        with Run(disk.inside(*trial.command(inside))) as run:
            assert "Read-only file system" in check_out_of_resources(run, run.end())
        stored_images.check()
        disk.remount("rw")
        assert run_until_full(trial, disk, inside) is None
        stored_images.check()
        trial.check_complete(folders)


@pytest.mark.rotating
@pytest.mark.slow  # a disk that becomes read-only fails at the same places
def test_a_folder_that_loses_its_permissions_loses_nothing(trial: Trial, tmp_path: Path) -> None:
    """During a run and before one: the run reports it, stops, and resumes when it has permission again."""
    folders = RunFolders(tmp_path / "root")
    command = [*_without_privileges(), *trial.command(folders)]
    stored_images = StoredImages(trial, folders)
    with Run(command) as run:
        wait_for_bytes(run, folders)
        for folder in (folders.layout.out, folders.layout.ledgers):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o555)
        folders.layout.state_folder.chmod(0o555)
        assert "Permission denied" in check_out_of_resources(run, run.end())
    stored_images.check()
    with Run(command) as run:
        assert "Permission denied" in check_out_of_resources(run, run.end())
    stored_images.check()
    for folder in (folders.layout.out, folders.layout.ledgers, folders.layout.state_folder):
        folder.chmod(0o755)
    with Run(command) as run:
        assert run.end() == 0, run.messages()
    stored_images.check()
    trial.check_complete(folders)


def wait_for_bytes(run: Run, folders: RunFolders) -> None:
    """Wait until the run has stored some images."""
    assert any(folders.stored_bytes() >= _SOME_BYTES for _ in run.readings()), run.messages()


def _without_privileges() -> list[str]:
    """Return the prefix of a command that gives up root's right to write anywhere; empty if it has no such right."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed, and root may write everything")
    dropped = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}"]
