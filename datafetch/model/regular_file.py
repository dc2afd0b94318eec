"""Opens files that may be anything: a FIFO has no end, and opening one waits for a writer, perhaps for ever."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


class NotRegularFileError(OSError):
    """There is something else in place of a file: a FIFO, a device, a socket or a folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "not a regular file", str(path))


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read it, without waiting for anything.

    Raises:
        NotRegularFileError: It is not a regular file.
        OSError: It can't be opened, or does not exist.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a device that is not there
            raise NotRegularFileError(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularFileError(path)
    return os.fdopen(descriptor, "rb")


def require_regular(path: Path) -> None:
    """Check that a library that opens files itself is given a regular one.

    Raises:
        NotRegularFileError: It is not a regular file.
        OSError: It can't be looked at, or does not exist.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise NotRegularFileError(path)
