"""The lock on an output: one holder, who takes it along when he dies."""

import errno
import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

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


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    """A second one is refused while the holder lives, and not when it was killed."""
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


def test_several_may_hold_an_output_together(tmp_path: Path) -> None:
    """Nobody has it alone meanwhile; and beside one who has it alone, nobody."""
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


def test_a_shard_has_one_process_and_loses_it_with_its_death(tmp_path: Path) -> None:
    """Others are free, and one process at a time prepares the output."""
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
    """Locks that ``closing`` gives back."""

    close = ShardLocks.release


def test_two_calls_of_one_process_refuse_each_other(tmp_path: Path) -> None:
    """The locks are not the process's: what one gives back, the other does not lose, and gets."""
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
async def test_without_range_locks_shards_are_not_fetched_apart(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the filesystem has none, it is said; who is alone does without."""

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
def test_without_locks_nothing_stands_in_for_one(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a filesystem that can't lock, no file is left that would outlive its holder; it is said what to do."""

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
    """Where one folder has its state by each of its names."""
    (tmp_path / "disk" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/folder")
    (tmp_path / "other link").symlink_to(tmp_path / "disk" / "folder")
    (tmp_path / "link to a link").symlink_to("other link")
    return {name: OutputLayout(resolve_parent(tmp_path / name)) for name in NAMES}


def _nothing() -> None:
    pass


@pytest.mark.parametrize("name", NAMES)
async def test_a_folder_has_one_lock_whatever_it_is_called(by_name: dict[str, OutputLayout], name: str) -> None:
    """While a run works on it by one name, one by another is refused; afterwards it is not."""
    mine = by_name.pop(name)
    async with locked_output(mine, _nothing):
        for layout in by_name.values():
            with pytest.raises(ConfigurationError, match="another run is working on"):
                async with locked_output(layout, _nothing):
                    pass
    for layout in by_name.values():
        async with locked_output(layout, _nothing):
            pass


async def test_resharded_files_take_the_place_of_a_locked_folder(tmp_path: Path) -> None:
    """A run's folder gives way to another one meanwhile, and a link to it is refused all the same."""
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
    """A folder at two places."""
    folder, other = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    if subprocess.run(["mount", "--bind", folder, other], check=False, capture_output=True).returncode:  # noqa: S607
        pytest.skip("nothing can be mounted here")
    yield OutputLayout(folder), OutputLayout(other)
    subprocess.run(["umount", other], check=True)  # noqa: S607


async def test_a_folder_that_is_mounted_twice_has_one_lock(mounted_twice: tuple[OutputLayout, OutputLayout]) -> None:
    """The kernel knows it at either place."""
    here, there = mounted_twice
    async with locked_output(there, _nothing):
        with pytest.raises(ConfigurationError, match="another run is working on"):
            async with locked_output(here, _nothing):
                pass


async def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    """Whoever makes the folder that it names would not know of this run; no state is left behind."""
    layout = OutputLayout(tmp_path / "link")
    layout.out.symlink_to("nowhere")
    with pytest.raises(ConfigurationError, match="is a broken link"):
        async with locked_output(layout, _nothing):
            pass
    assert not layout.state_folder.exists()


@pytest.fixture
def _no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a filesystem that can't lock."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("_no_locks")
async def test_who_is_alone_needs_no_lock(tmp_path: Path) -> None:
    """Where nothing can be locked, a run is refused, and told what it may say; having said it, it works."""
    layout = OutputLayout(tmp_path / "out")
    with pytest.raises(ResourceError, match="or give --no-lock if you know that no other run works on it"):
        async with locked_output(layout, _nothing):
            pass
    async with locked_output(layout, _nothing, is_alone=True):
        assert layout.state_folder.is_dir()


@pytest.mark.usefixtures("_no_locks")
def test_resharding_works_without_a_lock(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same for ``reshard``."""
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


async def test_a_lock_that_is_held_is_respected_whatever_was_said(tmp_path: Path) -> None:
    """``--no-lock`` is for where there are no locks: where there are, another run's holds, for ``reshard`` as well."""
    layout = OutputLayout(tmp_path / "out")
    async with locked_output(layout, _nothing):
        with pytest.raises(ConfigurationError, match="another run is working on"):
            async with locked_output(layout, _nothing, is_alone=True):
                pass
    async with locked_output(layout, _nothing, is_alone=True):
        with pytest.raises(ConfigurationError, match="another run is working on"):
            async with locked_output(layout, _nothing):
                pass


def test_being_alone_is_said_of_one_run(tmp_path: Path) -> None:
    """It is not remembered for the next, and a retry has to be told anew."""
    job = Job("coyo", str(tmp_path), str(tmp_path / "out"), no_lock=True)
    assert settings_of(job, ImageSpec())["no_lock"] is False
    assert GivenOptions({"no_lock": True}).change(Job("coyo", "", "out")).no_lock
    assert not GivenOptions({}).change(Job("coyo", "", "out")).no_lock
