"""The lock on an output: one holder, who takes it along when he dies."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from datafetch.errors import ConfigurationError, ResourceError
from datafetch.lock import Lock

HOLD = """
import sys
from pathlib import Path
from datafetch.lock import Lock
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
