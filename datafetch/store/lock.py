"""Locks on an output, which are released when the process that holds them ends, however it ends.

Either one process holds an output exclusively, or several share it and each of them holds some of its shards.

Rules: the kernel keeps the locks, so a killed run leaves none behind, locally and on NFS. A lock that consists in the
existence of a file would outlive its holder. So if the filesystem has no kernel locks, the run is refused, unless the
operator says with ``--no-lock`` that no other run uses the output. Locks that the kernel does have are respected even
then.
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
from datafetch.model.options import Effect, Option, OptionGroup
from datafetch.store.lock_holder import LockHolder, delete_holder, describe_holder, write_holder

NO_LOCK = Option(
    help="Run without a lock, on filesystems that have none. Make sure that no other run uses this output.",
    group=OptionGroup.BEHAVIOUR,
    effect=Effect.NONE,
    is_of_one_run=True,
)
"""The option of everything that writes to an output."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_RANGE_LOCKS = (*_NO_LOCKS, errno.EINVAL)
_HELD = (errno.EAGAIN, errno.EACCES)
_RANGE = "hhqqi"  # struct flock of <fcntl.h>: type, whence, first byte, number of bytes, process
_PREPARATION_BYTE = 0  # locked by the process that prepares the output
_SHARD_BYTES = 2**62  # the bytes after it, of which each shard has one


class OutputInUseError(ConfigurationError):
    """Another run, or a process that fetches shards, holds the lock of the output."""


class NoLocksError(ResourceError):
    """The filesystem has no locks."""

    @classmethod
    def of(cls, path: Path, out: Path) -> NoLocksError:
        """The error for a lock file that can't be locked."""
        return cls(
            f"the filesystem of {path.parent} has no locks, so two runs could spoil {out}; choose an "
            "output on another, mount it with locks, or give --no-lock if you know that no other run works on it"
        )


def locks_where_possible(*, is_alone: bool) -> AbstractContextManager[None]:
    """A context for a block that takes locks.

    Args:
        is_alone: The operator knows that no other run uses the output. If the filesystem has no locks, the block then
            ends without an error; otherwise ``NoLocksError`` is raised.
    """
    return suppress(NoLocksError) if is_alone else nullcontext()


class Lock:
    """The lock on an output: held by one run, or shared by all processes that fetch shards of it.

    One thread may acquire it and another release it. The same output may have several paths: links to its folder, and
    other places where its filesystem is mounted. So the lock consists of up to three:

    * that of the lock file, which runs with the same path use as well;
    * if ``out`` is a link, that of the lock file of runs that use the folder behind it;
    * that of the output folder itself, which covers all other paths, but only on this machine.

    Args:
        path: The lock file; its folder exists.
        out: The output, which is also named in messages.
        real_path: The lock file of a run that uses the folder to which ``out`` is a link; None if it is not a link.
    """

    def __init__(self, path: Path, out: Path, real_path: Path | None = None) -> None:
        self._path = path
        self._out = out
        self._real_path = real_path
        self._descriptors: list[int] = []
        self._noted: list[int] = []
        self._holder: LockHolder | None = None

    def acquire(self) -> None:
        """Acquire it exclusively, without waiting.

        Raises:
            OutputInUseError: Another run, or a process that fetches shards, holds it.
            NoLocksError: The filesystem has no locks.
        """
        self._acquire(fcntl.LOCK_EX)

    def acquire_shared(self) -> None:
        """Acquire it together with other processes that share it, without waiting.

        Raises:
            OutputInUseError: A run holds it exclusively.
            NoLocksError: The filesystem has no locks.
        """
        self._acquire(fcntl.LOCK_SH)

    def release(self) -> None:
        """Release what is held of it, if anything."""
        if self._holder is not None:
            for descriptor in self._noted:
                delete_holder(descriptor, self._holder)
        self._noted.clear()
        self._holder = None
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _acquire(self, kind: int) -> None:
        try:
            self._acquire_file(self._path, kind)
            if self._real_path is not None and self._is_other_folder(self._real_path.parent):
                self._acquire_file(self._real_path, kind)
            self._acquire_folder(kind)
            holder = LockHolder.this_process(is_shared=kind == fcntl.LOCK_SH)
            for descriptor in self._noted:
                write_holder(descriptor, holder)
        except BaseException:
            self.release()
            raise
        self._holder = holder

    def _is_other_folder(self, folder: Path) -> bool:
        """Whether a state folder exists and is not the one whose lock file is locked already."""
        return folder.is_dir() and not folder.samefile(self._path.parent)

    def _acquire_file(self, path: Path, kind: int) -> None:
        self._descriptors.append(_open(path))
        try:
            self._flock(kind)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise NoLocksError.of(path, self._out) from error
        self._noted.append(self._descriptors[-1])

    def _acquire_folder(self, kind: int) -> None:
        """Lock the output folder itself, if possible. A lock file in it would be counted by the trainer."""
        try:
            self._descriptors.append(os.open(self._out, os.O_RDONLY | os.O_DIRECTORY))
        except (FileNotFoundError, NotADirectoryError, PermissionError):  # refused later if it matters
            return
        try:
            self._flock(kind)
        except OSError as error:  # some filesystems can lock files but not folders
            if error.errno not in (*_NO_LOCKS, errno.EBADF, errno.EINVAL):
                raise

    def _flock(self, kind: int) -> None:
        """Lock the file or folder that was opened last."""
        try:
            fcntl.flock(self._descriptors[-1], kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                raise
            raise OutputInUseError(
                f"another run is working on {self._out}{describe_holder(self._descriptors[-1])}; "
                "wait for it, or stop it first"
            ) from error


class ShardLocks:
    """Locks on single shards, and on the preparation of the output, for the processes that share an output.

    Each is a lock on one byte of the same file, so tens of thousands of shards take one descriptor. A shard's byte is
    a hash of its name. The locks belong to the open file and not to the process, so they also exclude two calls in one
    process from each other.

    Args:
        path: The file; its folder exists, and the output's lock is held.
        out: The output, for messages.
    """

    def __init__(self, path: Path, out: Path) -> None:
        self._path = path
        self._out = out
        self._descriptor = _open(path)

    def acquire(self, shards: Iterable[str]) -> None:
        """Lock shards, without waiting.

        Raises:
            ConfigurationError: Another process holds one of them.
            NoLocksError: The filesystem has no locks on bytes.
        """
        for shard in shards:
            if not self.try_acquire(shard):
                raise ConfigurationError(
                    f"another process is fetching shard {shard} of {self._out}; give each process shards of its own"
                )

    def try_acquire(self, shard: str) -> bool:
        """Lock a shard, without waiting; False while another process holds it.

        Raises:
            NoLocksError: The filesystem has no locks on bytes.
        """
        return self._set(fcntl.F_WRLCK, _byte_of(shard))

    def release_shard(self, shard: str) -> None:
        """Let another process lock a shard."""
        self._set(fcntl.F_UNLCK, _byte_of(shard))

    def acquire_preparation(self) -> bool:
        """Lock the preparation of the output, without waiting; False while another process holds it.

        Raises:
            NoLocksError: The filesystem has no locks on bytes.
        """
        return self._set(fcntl.F_WRLCK, _PREPARATION_BYTE)

    def release_preparation(self) -> None:
        """Let another process prepare the output."""
        self._set(fcntl.F_UNLCK, _PREPARATION_BYTE)

    def release(self) -> None:
        """Release all of these locks."""
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
    return _PREPARATION_BYTE + 1 + int.from_bytes(digest[:8], "little") % _SHARD_BYTES


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
