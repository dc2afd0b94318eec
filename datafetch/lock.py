"""One at a time: the lock on an output, which dies with whoever holds it.

Rules: the kernel keeps the lock, so a killed run leaves none behind, locally and on NFS. A file that stands for a lock
by being there would outlive its holder, so where the kernel can't lock, nothing is done at all.
"""

from __future__ import annotations

import errno
import warnings
from pathlib import Path

import filelock

from datafetch.errors import ConfigurationError, ResourceError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Lock:
    """Held by the run that works on an output. One thread may take it and another give it back.

    Args:
        path: The lock's file; its folder is there.
        out: The output, for the messages.
    """

    def __init__(self, path: Path, out: Path) -> None:
        self._path = path
        self._out = out
        self._lock = filelock.FileLock(path, timeout=0, thread_local=False)

    def acquire(self) -> None:
        """Take it, without waiting.

        Raises:
            ConfigurationError: Another run holds it.
            ResourceError: The filesystem has no locks.
        """
        try:
            with warnings.catch_warnings(action="ignore"):  # of the stand-in that is refused below
                self._lock.acquire()
        except filelock.Timeout as error:
            self._refuse_stand_in()
            raise ConfigurationError(f"another run is working on {self._out}; wait for it, or stop it first") from error
        except NotImplementedError as error:
            raise self._no_locks() from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise self._no_locks() from error
        self._refuse_stand_in()

    def release(self) -> None:
        """Give it back, if it was taken."""
        self._lock.release()

    def _refuse_stand_in(self) -> None:
        # Where the kernel can't lock, filelock turns itself into a lock that outlives its holder.
        if isinstance(self._lock, filelock.SoftFileLock):
            self._lock.release()
            raise self._no_locks()

    def _no_locks(self) -> ResourceError:
        return ResourceError(
            f"the filesystem of {self._path.parent} has no locks, so two runs could spoil {self._out}; choose an "
            "output on another, or mount it with locks"
        )
