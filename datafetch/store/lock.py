"""Locks on an output, which die with the process that holds them.

Either one process holds all of an output, or several hold it together, each of them some of its shards.

Rules: the kernel keeps the locks, so a killed run leaves none behind, locally and on NFS. A file that stands for a lock
by being there would outlive its holder, so where the kernel can't lock, nothing is done at all, unless the operator
vouches for being alone. Where it can, the locks are respected all the same.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from datafetch.errors import ConfigurationError, ResourceError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_RANGE_LOCKS = (*_NO_LOCKS, errno.EINVAL)
_HELD = (errno.EAGAIN, errno.EACCES)
_RANGE = "hhqqi"  # struct flock of <fcntl.h>: type, whence, first byte, number of bytes, process
_TURN = 0  # the byte of a range lock that stands for a turn to prepare the output
_SHARD_BYTES = 2**62  # the bytes behind it, of which each shard has one


class NoLocksError(ResourceError):
    """The filesystem has no locks."""

    @classmethod
    def of(cls, path: Path, out: Path) -> NoLocksError:
        """The error for a file that can't be locked."""
        return cls(
            f"the filesystem of {path.parent} has no locks, so two runs could spoil {out}; choose an "
            "output on another, mount it with locks, or give --no-lock if you know that no other run works on it"
        )


def locks_where_possible(*, is_alone: bool) -> AbstractContextManager[None]:
    """For a block that takes locks: where the filesystem has none, it ends there without an error, if that is said.

    Args:
        is_alone: The operator knows that no other run works on the output.
    """
    return suppress(NoLocksError) if is_alone else nullcontext()


class Lock:
    """Held by the run that works on an output, or by all processes that fetch shards of it.

    One thread may take it and another give it back. An output may go by several names: by links to its folder, and by
    other places where that is mounted. So whoever works on it holds three locks: the file's, as runs by the same name
    do; that of the run that names the folder behind a link, if there is one; and the folder's itself. Of the last the
    kernel tells other machines nothing.

    Args:
        path: The lock's file; its folder is there.
        out: The output, also for the messages.
        real_path: The lock's file of a run that names the folder that ``out`` leads to, where that has another name.
    """

    def __init__(self, path: Path, out: Path, real_path: Path | None = None) -> None:
        self._path = path
        self._out = out
        self._real_path = real_path
        self._descriptors: list[int] = []

    def acquire(self) -> None:
        """Take it for this run alone, without waiting.

        Raises:
            ConfigurationError: Another run holds it, or processes that fetch shards do.
            NoLocksError: The filesystem has no locks.
        """
        self._acquire(fcntl.LOCK_EX)

    def acquire_shared(self) -> None:
        """Take it together with others that take it so, without waiting.

        Raises:
            ConfigurationError: A run holds it alone.
            NoLocksError: The filesystem has no locks.
        """
        self._acquire(fcntl.LOCK_SH)

    def release(self) -> None:
        """Release whatever part of it is held."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _acquire(self, kind: int) -> None:
        try:
            self._acquire_file(self._path, kind)
            if self._real_path is not None and self._is_of_others(self._real_path.parent):
                self._acquire_file(self._real_path, kind)
            self._acquire_folder(kind)
        except BaseException:
            self.release()
            raise

    def _is_of_others(self, folder: Path) -> bool:
        """Whether there is such a state folder, and it is not the one whose lock is held already."""
        return folder.is_dir() and not folder.samefile(self._path.parent)

    def _acquire_file(self, path: Path, kind: int) -> None:
        self._descriptors.append(_open(path))
        try:
            self._flock(kind)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise NoLocksError.of(path, self._out) from error

    def _acquire_folder(self, kind: int) -> None:
        """Lock the folder itself, where it is there and can be: the trainer would count a file that lay in it."""
        try:
            self._descriptors.append(os.open(self._out, os.O_RDONLY | os.O_DIRECTORY))
        except (FileNotFoundError, NotADirectoryError, PermissionError):  # which is for others to refuse
            return
        try:
            self._flock(kind)
        except OSError as error:  # a filesystem whose files can be locked, and not its folders
            if error.errno not in (*_NO_LOCKS, errno.EBADF, errno.EINVAL):
                raise

    def _flock(self, kind: int) -> None:
        """Lock what was opened last."""
        try:
            fcntl.flock(self._descriptors[-1], kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                raise
            message = f"another run is working on {self._out}; wait for it, or stop it first"
            raise ConfigurationError(message) from error


class ShardLocks:
    """Which shards a process fetches, of those that hold an output together; and whose turn it is to prepare it.

    All are bytes of one file, so that tens of thousands of shards take one descriptor; a shard's byte follows from its
    name. The locks belong to the open file, and not to the process: two calls in one process refuse each other as well.

    Args:
        path: The file; its folder is there, and the output's lock is held.
        out: The output, for the messages.
    """

    def __init__(self, path: Path, out: Path) -> None:
        self._path = path
        self._out = out
        self._descriptor = _open(path)

    def acquire(self, shards: Iterable[str]) -> None:
        """Take shards, without waiting.

        Raises:
            ConfigurationError: Another process has one of them.
            NoLocksError: The filesystem has no such locks.
        """
        for shard in shards:
            if not self._set(fcntl.F_WRLCK, _byte_of(shard)):
                raise ConfigurationError(
                    f"another process is fetching shard {shard} of {self._out}; give each process shards of its own"
                )

    def take_turn(self) -> bool:
        """Take the turn to prepare the output, without waiting; False while another process has it.

        Raises:
            NoLocksError: The filesystem has no such locks.
        """
        return self._set(fcntl.F_WRLCK, _TURN)

    def end_turn(self) -> None:
        """Give the turn back."""
        self._set(fcntl.F_UNLCK, _TURN)

    def release(self) -> None:
        """Give everything back."""
        os.close(self._descriptor)

    def _set(self, kind: int, byte: int) -> bool:
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, struct.pack(_RANGE, kind, os.SEEK_SET, byte, 1, 0))
        except OSError as error:
            if error.errno in _HELD:
                return False
            if error.errno not in _NO_RANGE_LOCKS:
                raise
            raise NoLocksError.of(self._path, self._out) from error
        return True


def _byte_of(shard: str) -> int:
    digest = hashlib.sha256(shard.encode()).digest()
    return _TURN + 1 + int.from_bytes(digest[:8], "little") % _SHARD_BYTES


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
