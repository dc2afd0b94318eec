"""Locks on an output and its shards: one holder at a time, and no lock that outlives its holder."""

import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from datafetch.cli.app import main
from datafetch.cli.options import GivenOptions
from datafetch.engine.job import Job, settings_of
from datafetch.engine.ownership import locked_output, locked_shards
from datafetch.errors import ConfigurationError, ResourceError
from datafetch.output.formats import encode_row
from datafetch.output.formats.pickle import PickleShardWriter
from datafetch.store.layout import OutputLayout, resolve_parent
from datafetch.store.lock import Lock, ShardLocks
from datafetch.store.lock_holder import LockHolder
from datafetch.transcode import ImageSpec

HOLD = """
import sys
from pathlib import Path
from datafetch.store.lock import Lock
lock = Lock(Path(sys.argv[1]), Path("out"))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    """A second run is refused while the holder lives, and gets the lock once the holder was killed."""
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        lock = Lock(path, tmp_path / "out")
        with pytest.raises(ConfigurationError, match=r"another run is working on .*out"):
            lock.acquire()
        holder.kill()
        holder.wait()
        lock.acquire()
        lock.release()


def test_a_refusal_names_who_holds_the_lock(tmp_path: Path) -> None:
    """Process, machine and age; nobody once it was released, nor if the note is garbage or of a process that ended."""
    path, out = tmp_path / "lock", tmp_path / "出力"
    one, other = Lock(path, out), Lock(path, out)
    one.acquire()
    me = f"process {os.getpid()} on {socket.gethostname()}, for "
    with pytest.raises(ConfigurationError, match=rf"working on {out} \({re.escape(me)}[\d.]+ s\); wait for it"):
        other.acquire()
    ended = replace(LockHolder.this_process(is_shared=False), process_start=1)
    for note in (b"garbage" * 9999, b"", orjson.dumps(ended)):
        path.write_bytes(note)
        with pytest.raises(ConfigurationError, match=f"working on {out}; wait for it"):
            other.acquire()
    one.release()
    one.acquire()
    one.release()
    assert path.read_bytes() == b""
    one.acquire_shared()
    other.acquire_shared()
    one.release()
    with pytest.raises(ConfigurationError, match=r"for [\d.]+ s; perhaps others, too\); wait for it"):
        one.acquire()
    other.release()


def test_shared_locks_exclude_an_exclusive_one(tmp_path: Path) -> None:
    """Several processes may share an output. None gets it exclusively meanwhile, and none shares an exclusive one."""
    one, other, alone = (Lock(tmp_path / "lock", tmp_path / "out") for _ in range(3))
    one.acquire_shared()
    other.acquire_shared()
    one.release()
    with pytest.raises(ConfigurationError, match="another run is working on"):
        alone.acquire()
    other.release()
    alone.acquire()
    with pytest.raises(ConfigurationError, match="another run is working on"):
        one.acquire_shared()
    alone.release()


HOLD_SHARDS = """
import sys
from pathlib import Path
from datafetch.store.lock import ShardLocks
locks = ShardLocks(Path(sys.argv[1]), Path("out"))
assert locks.acquire_preparation()
locks.acquire(["a", "b"])
print("held", flush=True)
sys.stdin.read()
"""


def test_a_shard_is_locked_until_its_process_ends(tmp_path: Path) -> None:
    """Other shards are free meanwhile, and only one process at a time prepares the output."""
    path = tmp_path / "shards.lock"
    with (
        subprocess.Popen(
            [sys.executable, "-c", HOLD_SHARDS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder,
        closing(_Releasing(path, tmp_path / "out")) as locks,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        locks.acquire(["c"])
        assert not locks.acquire_preparation()
        with pytest.raises(ConfigurationError, match=r"another process is fetching shard b of .*out"):
            locks.acquire(["d", "b", "a"])
        holder.kill()
        holder.wait()
        assert locks.acquire_preparation()
        locks.acquire(["a", "b"])


class _Releasing(ShardLocks):
    """Locks that ``contextlib.closing`` releases."""

    close = ShardLocks.release


def test_calls_within_one_process_exclude_each_other(tmp_path: Path) -> None:
    """A lock belongs to a call, not to its process: releasing one call's locks releases none of another's."""
    path, out = tmp_path / "shards.lock", tmp_path / "out"
    with closing(_Releasing(path, out)) as one:
        with closing(_Releasing(path, out)) as other:
            one.acquire(["a"])
            assert one.acquire_preparation()
            with pytest.raises(ConfigurationError, match="fetching shard a"):
                other.acquire(["a"])
        with closing(_Releasing(path, out)) as third:
            assert not third.acquire_preparation()
            one.release_preparation()
            assert third.acquire_preparation()
            with pytest.raises(ConfigurationError, match="fetching shard a"):
                third.acquire(["a"])


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOLCK])
async def test_fetching_shards_requires_range_locks(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a filesystem without them the run is refused, unless the operator states that no other run works on it."""

    def refuse(*_: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    layout = OutputLayout(tmp_path / "out")
    with pytest.raises(ResourceError, match="has no locks"):
        async with locked_shards(layout, ["a"], _nothing):
            pass
    async with locked_shards(layout, ["a"], _nothing, is_alone=True):
        assert layout.state_folder.is_dir()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_filesystem_without_locks_is_refused(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to do, and no file is left that would act as a lock after its holder has ended."""

    def refuse(*_: object) -> None:
        raise OSError(number, "no locks here")

    path = tmp_path / "lock"
    Lock(path, tmp_path / "out").acquire()
    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with pytest.raises(ResourceError, match="has no locks"):
            Lock(path, tmp_path / "out").acquire()
        path.unlink(missing_ok=True)
    monkeypatch.undo()
    lock = Lock(path, tmp_path / "out")
    lock.acquire()
    lock.release()


NAMES = ["disk/folder", "link", "other link", "link to a link"]


@pytest.fixture
def by_name(tmp_path: Path) -> dict[str, OutputLayout]:
    """The layouts of one folder by each of its names."""
    (tmp_path / "disk" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/folder")
    (tmp_path / "other link").symlink_to(tmp_path / "disk" / "folder")
    (tmp_path / "link to a link").symlink_to("other link")
    return {name: OutputLayout(resolve_parent(tmp_path / name)) for name in NAMES}


def _nothing() -> None:
    pass


@pytest.mark.parametrize("name", NAMES)
async def test_a_folder_has_one_lock_under_all_of_its_names(by_name: dict[str, OutputLayout], name: str) -> None:
    """While a run works on it by one name, a run by another name is refused; afterwards it is not."""
    mine = by_name.pop(name)
    async with locked_output(mine, _nothing):
        for layout in by_name.values():
            with pytest.raises(ConfigurationError, match="another run is working on"):
                async with locked_output(layout, _nothing):
                    pass
    for layout in by_name.values():
        async with locked_output(layout, _nothing):
            pass


async def test_a_lock_holds_when_the_folder_is_replaced(tmp_path: Path) -> None:
    """Resharding replaces the folder during a run, and a run that comes through a link is still refused."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    async with locked_output(OutputLayout(folder), _nothing):
        folder.rename(tmp_path / "replaced")
        folder.mkdir()
        with pytest.raises(ConfigurationError, match="another run is working on"):
            async with locked_output(OutputLayout(tmp_path / "link"), _nothing):
                pass


@pytest.fixture
def mounted_twice(tmp_path: Path) -> Iterator[tuple[OutputLayout, OutputLayout]]:
    """A folder that is mounted at a second path."""
    folder, other = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    if subprocess.run(["mount", "--bind", folder, other], check=False, capture_output=True).returncode:  # noqa: S607
        pytest.skip("nothing can be mounted here")
    yield OutputLayout(folder), OutputLayout(other)
    subprocess.run(["umount", other], check=True)  # noqa: S607


async def test_a_folder_that_is_mounted_twice_has_one_lock(mounted_twice: tuple[OutputLayout, OutputLayout]) -> None:
    """A run at the second mount point is refused while another works at the first."""
    here, there = mounted_twice
    async with locked_output(there, _nothing):
        with pytest.raises(ConfigurationError, match="another run is working on"):
            async with locked_output(here, _nothing):
                pass


async def test_a_broken_link_is_refused(tmp_path: Path) -> None:
    """A run that created the folder behind it would not know of this one. No state is left behind."""
    layout = OutputLayout(tmp_path / "link")
    layout.out.symlink_to("nowhere")
    with pytest.raises(ConfigurationError, match="is a broken link"):
        async with locked_output(layout, _nothing):
            pass
    assert not layout.state_folder.exists()


@pytest.fixture
def _no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a filesystem that does not support locks."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("_no_locks")
async def test_no_lock_works_on_a_filesystem_without_locks(tmp_path: Path) -> None:
    """A run is refused with an error that mentions ``--no-lock``, and works with that option."""
    layout = OutputLayout(tmp_path / "out")
    with pytest.raises(ResourceError, match="or give --no-lock if you know that no other run works on it"):
        async with locked_output(layout, _nothing):
            pass
    async with locked_output(layout, _nothing, is_alone=True):
        assert layout.state_folder.is_dir()


@pytest.mark.usefixtures("_no_locks")
def test_reshard_works_with_no_lock(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """``reshard`` is refused in the same way without ``--no-lock``, and works with it."""
    (tmp_path / "rows").mkdir()
    with closing(PickleShardWriter(tmp_path / "rows", "part-00000")) as sink:
        for _ in range(4):
            sink.copy_row((encode_row({"image": "aGk=", "text": "a cat"}),))
        sink.finish()
    arguments = ["reshard", str(tmp_path / "rows"), str(tmp_path / "out"), "--world-size", "2", "--batch", "1"]
    arguments += ["--group", "1"]
    assert main(arguments) == 4
    assert "--no-lock" in capfd.readouterr().err
    assert main([*arguments, "--no-lock"]) == 0


async def test_no_lock_respects_a_lock_that_is_held(tmp_path: Path) -> None:
    """With ``--no-lock``, locks are still taken and respected on filesystems that support them."""
    layout = OutputLayout(tmp_path / "out")
    async with locked_output(layout, _nothing):
        with pytest.raises(ConfigurationError, match="another run is working on"):
            async with locked_output(layout, _nothing, is_alone=True):
                pass
    async with locked_output(layout, _nothing, is_alone=True):
        with pytest.raises(ConfigurationError, match="another run is working on"):
            async with locked_output(layout, _nothing):
                pass


def test_no_lock_holds_for_one_run(tmp_path: Path) -> None:
    """The option is not stored in the job, so a retry needs it again."""
    job = Job("coyo", str(tmp_path), str(tmp_path / "out"), no_lock=True)
    assert settings_of(job, ImageSpec())["no_lock"] is False
    assert GivenOptions({"no_lock": True}).change(Job("coyo", "", "out")).no_lock
    assert not GivenOptions({}).change(Job("coyo", "", "out")).no_lock
