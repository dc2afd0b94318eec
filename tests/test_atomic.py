"""A file gets its name only when it is complete, on the same filesystem or another."""

import errno
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from threading import Event

import pytest
from test_commit import spool
from test_spool import make_outcome

from datafetch.output.commit import commit_shard
from datafetch.store import atomic
from datafetch.store.atomic import exchange, make_folder, publish, sync, write_atomically
from datafetch.store.layout import OutputLayout

OTHER_FILESYSTEM = Path("/dev/shm")  # noqa: S108 - a tmpfs wherever Linux runs


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another filesystem."""
    if not OTHER_FILESYSTEM.is_dir() or OTHER_FILESYSTEM.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other filesystem to write to")
    folder = Path(mkdtemp(dir=OTHER_FILESYSTEM))
    yield folder
    shutil.rmtree(folder)


def test_a_file_is_published_across_filesystems(tmp_path: Path, elsewhere: Path) -> None:
    """It exists under its final name alone, and replaces an older file."""
    for content in (b"first", b"second"):
        (tmp_path / "made").write_bytes(content)
        publish(tmp_path / "made", elsewhere / "shard.pkl")
        assert [path.name for path in elsewhere.iterdir()] == ["shard.pkl"]
        assert (elsewhere / "shard.pkl").read_bytes() == content
        assert not (tmp_path / "made").exists()


def test_a_shard_is_committed_to_another_filesystem(tmp_path: Path, elsewhere: Path) -> None:
    """If the output is a link to it, the state folder stays, and the output holds nothing but the shard."""
    (tmp_path / "out").symlink_to(elsewhere)
    here = OutputLayout(tmp_path / "here")
    layout = OutputLayout(tmp_path / "out")
    for one in (here, layout):
        commit_shard(spool(one, [make_outcome(number) for number in range(6)]))
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == {
        path.name: path.read_bytes() for path in here.out.iterdir()
    }
    assert not list(layout.ready.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    """A file is replaced completely or not at all."""
    path = tmp_path / "new" / "folder" / "job.json"
    write_atomically(path, b"{}")
    (path.parent / "job.json.tmp").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(path, b"{1}")
    assert path.read_bytes() == b"{}"


def test_an_existing_folder_is_accepted(tmp_path: Path) -> None:
    """Only missing folders are created."""
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()


@pytest.fixture
def _no_warning_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Act as a process that has not logged the warning yet."""
    monkeypatch.setattr(atomic, "_has_warned", Event())


@pytest.mark.usefixtures("_no_warning_yet")
def test_missing_support_for_fsync_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """If a filesystem does not support fsync, the work continues and one warning is logged."""
    for path in ("/proc", "/proc", "/dev/null"):
        sync(Path(path))
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "the filesystem of /proc does not support fsync (Invalid argument)" in warning.getMessage()


@pytest.mark.usefixtures("_no_warning_yet")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_shard_is_committed_if_folders_cannot_be_synced(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spool, rows, ledger and renames work without syncing folders."""
    fsync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "not here")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    layout = OutputLayout(tmp_path / "out")
    commit_shard(spool(layout, [make_outcome(0)]))
    assert layout.ledger("part-00000").exists()


@pytest.mark.usefixtures("_no_warning_yet")
def test_a_failing_disk_is_not_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real error of the disk is raised."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="broken"):
        sync(tmp_path)


class Disk:
    """Records what a power cut would leave, from the calls of this process, which are still made.

    Attributes:
        empty: Paths that got their name before their content, or a name in them, was on disk.
        nameless: Folders in which a new name is not on disk yet.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.empty: list[Path] = []
        self.nameless: set[int] = set()
        self._synced: set[int] = set()
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, self._watched(getattr(os, name)))
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._sync)

    def _sync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        self._synced.add(os.fstat(descriptor).st_ino)
        self.nameless.discard(os.fstat(descriptor).st_ino)

    def _watched(self, move: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        def moved(source: Path, target: Path) -> None:
            below = source.rglob("*") if source.is_dir() else ()
            self.empty += [path for path in (source, *below) if path.stat().st_ino not in self._synced]
            move(source, target)
            self.nameless.add(target.parent.stat().st_ino)

        return moved


@pytest.mark.parametrize("what", ["publish", "write_atomically", "commit"])
def test_a_published_file_survives_a_power_cut(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content is on disk before it gets its name, and the name before the call returns."""
    layout = OutputLayout(tmp_path / "out")
    commit = spool(layout, [make_outcome(number) for number in range(3)])
    (tmp_path / "made").write_bytes(b"content")
    disk = Disk(monkeypatch)
    if what == "publish":
        publish(tmp_path / "made", tmp_path / "final")
    elif what == "write_atomically":
        write_atomically(tmp_path / "final", b"content")
    else:
        commit_shard(commit)
        assert layout.ledger("part-00000").exists()
    assert (disk.empty, disk.nameless) == ([], set())


def test_two_folders_are_exchanged_in_one_step(tmp_path: Path, elsewhere: Path) -> None:
    """Each has the other's name afterwards; across filesystems an error is raised."""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"was {name}").touch()
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["was b"]
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["was a"]
    (elsewhere / "c").mkdir()
    with pytest.raises(OSError, match="cross-device") as refused:
        exchange(tmp_path / "a", elsewhere / "c")
    assert refused.value.errno == errno.EXDEV
