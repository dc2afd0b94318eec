"""One at a time: the lock on an output, which dies with the process that holds it.

Rules: the kernel keeps the lock, so a killed run leaves none behind, locally and on NFS. A file that stands for a lock
by being there would outlive its holder, so where the kernel can't lock, nothing is done at all, unless the operator
vouches for being alone. Where it can, the lock is respected all the same.
"""

from __future__ import annotations

import errno
import fcntl
import os
import warnings
from contextlib import suppress
from pathlib import Path

import filelock

from datafetch.errors import ConfigurationError, ResourceError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class NoLocksError(ResourceError):
    """The filesystem has no locks."""


class Lock:
    """Held by the run that works on an output. One thread may take it and another give it back.

    An output may go by several names: by links to its folder, and by other places where that is mounted. So whoever
    works on it holds three locks: the file's, as runs by the same name do; that of the run that names the folder behind
    a link, if there is one; and the folder's itself. Of the last the kernel tells other machines nothing.

    Args:
        path: The lock's file; its folder is there.
        out: The output, also for the messages.
        real_path: The lock's file of a run that names the folder that ``out`` leads to, where that has another name.
    """

    def __init__(self, path: Path, out: Path, real_path: Path | None = None) -> None:
        self._path = path
        self._out = out
        self._real_path = real_path
        self._files: list[filelock.BaseFileLock] = []
        self._folder: int | None = None

    def acquire(self) -> None:
        """Take it, without waiting.

        Raises:
            ConfigurationError: Another run holds it.
            NoLocksError: The filesystem has no locks.
        """
        try:
            self._acquire_file(self._path)
            if self._real_path is not None and self._is_of_others(self._real_path.parent):
                self._acquire_file(self._real_path)
            self._acquire_folder()
        except BaseException:
            self.release()
            raise

    def acquire_where_possible(self) -> None:
        """Take it, without waiting, or do without it where the filesystem has no locks.

        Raises:
            ConfigurationError: Another run holds it.
        """
        with suppress(NoLocksError):
            self.acquire()

    def release(self) -> None:
        """Give it back, as far as it was taken."""
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None
        while self._files:
            self._files.pop().release()

    def _is_of_others(self, folder: Path) -> bool:
        """Whether there is such a state folder, and it is not the one whose lock is held already."""
        return folder.is_dir() and not folder.samefile(self._path.parent)

    def _acquire_file(self, path: Path) -> None:
        file = filelock.FileLock(path, timeout=0, thread_local=False)
        self._files.append(file)
        try:
            with warnings.catch_warnings(action="ignore"):  # of the stand-in that is refused below
                file.acquire()
        except filelock.Timeout as error:
            self._refuse_stand_in(file)
            raise self._is_held() from error
        except NotImplementedError as error:  # filelock's word for a filesystem that has no flock
            raise self._no_locks() from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise self._no_locks() from error
        self._refuse_stand_in(file)

    def _acquire_folder(self) -> None:
        """Lock the folder itself, where it is there and can be: the trainer would count a file that lay in it."""
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # which is for others to refuse
            self._folder = os.open(self._out, os.O_RDONLY | os.O_DIRECTORY)
        if self._folder is None:
            return
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._is_held() from error
        except OSError as error:  # a filesystem whose files can be locked, and not its folders
            if error.errno not in (*_NO_LOCKS, errno.EBADF, errno.EINVAL):
                raise

    def _refuse_stand_in(self, file: filelock.BaseFileLock) -> None:
        # Where the kernel can't lock, filelock turns itself into a lock that outlives its holder.
        if isinstance(file, filelock.SoftFileLock):
            file.release()
            raise self._no_locks()

    def _is_held(self) -> ConfigurationError:
        return ConfigurationError(f"another run is working on {self._out}; wait for it, or stop it first")

    def _no_locks(self) -> NoLocksError:
        return NoLocksError(
            f"the filesystem of {self._path.parent} has no locks, so two runs could spoil {self._out}; choose an "
            "output on another, mount it with locks, or give --no-lock if you know that no other run works on it"
        )
