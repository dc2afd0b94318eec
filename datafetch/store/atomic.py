"""Files that are whole and on disk, or not there.

Rules: a file that others look at gets its name when it is complete, and a name counts when it is on disk. Whatever runs
out in between (the disk, the power, the process) leaves what was there before.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Event

from datafetch.errors import ConfigurationError, ResourceError

_CANT_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)  # shared folders of VirtualBox, some of FUSE
_CANT_EXCHANGE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)  # NFS, before Linux 3.15
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>

_log = logging.getLogger(__name__)
_is_said = Event()  # once a process is enough: it is said of every file otherwise


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are missing; their names are on disk when this returns."""
    missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step, on disk when this returns."""
    make_folder(path.parent)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(content)
    publish(unfinished, path)


def publish(unfinished: Path, final: Path) -> None:
    """Move a complete file to its place in one step; file and name are on disk when this returns."""
    sync(unfinished)
    move(unfinished, final)
    sync(final.parent)


def move(complete: Path, final: Path) -> None:
    """Move a file that is on disk to its place in one step; its name is on disk once the folder is."""
    try:
        complete.replace(final)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _publish_across(complete, final)


def refuse_unpublishable(folder: Path, final: Path) -> None:
    """See that files can be published from one folder to another, which may lie on another filesystem.

    Raises:
        ResourceError: They can't be.
    """
    if final.is_dir() and (final.is_mount() or final.stat().st_dev != folder.stat().st_dev):
        os.close(_open_nameless(final, folder))


def _publish_across(unfinished: Path, final: Path) -> None:
    """Publish from another filesystem: a file without a name is filled, and named when it is complete."""
    nameless = _open_nameless(final.parent, unfinished.parent)
    with os.fdopen(nameless, "wb") as target, unfinished.open("rb") as source:
        shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
        sync_open(nameless, final)
        final.unlink(missing_ok=True)
        # Only with a folder's descriptor, which an absolute path makes nothing of, does Python follow the link.
        os.link(f"/proc/self/fd/{nameless}", final, src_dir_fd=nameless, follow_symlinks=True)
    unfinished.unlink()


def _open_nameless(folder: Path, source: Path) -> int:
    """A new file without a name.

    Raises:
        ResourceError: The filesystem has no such files (NFS).
    """
    try:
        return os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
        raise ResourceError(
            f"{folder} is on another filesystem than {source}, to which files can't be moved without the trainer "
            "seeing them incomplete; choose an output whose parent folder is on the same filesystem"
        ) from error


FOLLOW_IT_YOURSELF = "give the folder that the files lie in, or put copies or hard links in the place of links"
"""What to do about a link that leads out of a folder that is read."""


def leads_out(path: Path, real_root: str) -> bool:
    """Whether a file or folder lies, by some link, elsewhere than in a folder; of that the path has no links."""
    real = os.path.realpath(path)
    return os.path.commonpath([real, real_root]) != real_root


def refuse_links(folder: Path) -> None:
    """Check that no link lies below a folder of datafetch's own, as files written there would land elsewhere.

    Raises:
        ConfigurationError: There is a link.
    """
    link = next(_links(folder), None) if folder.is_dir() else None
    if link is not None:
        raise ConfigurationError(
            f"{link} is a symbolic link, and datafetch does not write through links; "
            "delete it, or replace it by its target"
        )


def _links(folder: Path | str) -> Iterator[str]:
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:  # another process has just moved it to its place
        return
    with entries:
        for entry in entries:
            if entry.is_symlink():
                yield entry.path
            elif entry.is_dir(follow_symlinks=False):
                yield from _links(entry.path)


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change their names in one step; False where the system can't, and nothing was done.

    Raises:
        OSError: It could, and these two can't be renamed.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # another C library
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_open(descriptor, path)
    finally:
        os.close(descriptor)


def sync_open(descriptor: int, path: Path) -> None:
    """Return when what is written to an open file, or the names in an open folder, are on disk.

    If the filesystem does not support that, one warning is logged and the work continues. It still survives a kill, for
    the kernel holds what was written.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANT_SYNC:
            raise
        _say_unsynced(path if path.is_dir() else path.parent, os.strerror(error.errno))


def _say_unsynced(folder: Path, why: str) -> None:
    if _is_said.is_set():
        return
    _is_said.set()
    _log.warning(
        "the filesystem of %s does not support fsync (%s): a killed run can still be resumed, but after a power "
        "failure check the output with 'datafetch verify'",
        folder,
        why,
    )
