"""Atomic, durable file operations: a file is either complete and on disk, or absent.

Rules: a file that others read gets its name only when it is complete, and counts only when its name is on disk as well.
A full disk, a power failure or a kill at any moment leaves what was there before.

Theory of operation: within a filesystem, a file is written under a temporary name, synced, renamed to its final name,
and its folder is synced; the rename replaces an older file in one step. A rename can't cross filesystems, as when the
output folder is a mount point. There, the content is copied into an unnamed file on the target filesystem
(``O_TMPFILE``), synced, and then linked to its final name. A reader therefore never sees an incomplete file. Linking
can't replace a file, so an older one is deleted first; if the process is killed between the two steps, neither is
there, and the source file, which is deleted last, is published again by the next run.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Event

from datafetch.errors import ConfigurationError, ResourceError

_CANT_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)  # on shared folders of VirtualBox and some FUSE filesystems
_CANT_EXCHANGE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)  # on NFS, and before Linux 3.15
_CANT_LINK = (errno.EPERM, errno.EACCES, errno.EXDEV, errno.EMLINK, *_CANT_EXCHANGE)  # on FAT, and some FUSE
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>

_log = logging.getLogger(__name__)
_has_warned = Event()  # one warning per process is enough


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents; their names are on disk when this returns."""
    missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Create or replace a file in one step; it is on disk when this returns."""
    make_folder(path.parent)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(content)
    publish(unfinished, path)


def publish(unfinished: Path, final: Path) -> None:
    """Sync a complete file and rename it in one step; content and name are on disk when this returns."""
    sync(unfinished)
    move(unfinished, final)
    sync(final.parent)


def move(complete: Path, final: Path) -> None:
    """Rename a file that is on disk in one step, even to another filesystem; the caller syncs the target folder."""
    try:
        complete.replace(final)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _publish_across(complete, final)


def link_or_copy(source: Path, target: Path) -> None:
    """Give the content of a file, which is only ever replaced as a whole, a second name; the caller syncs its folder.

    A symbolic link is followed.
    """
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno not in _CANT_LINK:
            raise
        shutil.copyfile(source, target)
        sync(target)


def refuse_unpublishable(folder: Path, final: Path) -> None:
    """Check that files can be published from one folder to another, which may be on another filesystem.

    Raises:
        ResourceError: The target is on another filesystem that has no unnamed files.
    """
    if final.is_dir() and (final.is_mount() or final.stat().st_dev != folder.stat().st_dev):
        os.close(_open_nameless(final, folder))


def _publish_across(unfinished: Path, final: Path) -> None:
    """Publish to another filesystem: fill an unnamed file, and name it when it is complete."""
    nameless = _open_nameless(final.parent, unfinished.parent)
    with os.fdopen(nameless, "wb") as target, unfinished.open("rb") as source:
        shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
        sync_open(nameless, final)
        final.unlink(missing_ok=True)
        # Python follows the link only if it is given a folder's descriptor, which is ignored for an absolute path.
        os.link(f"/proc/self/fd/{nameless}", final, src_dir_fd=nameless, follow_symlinks=True)
    unfinished.unlink()


def _open_nameless(folder: Path, source: Path) -> int:
    """Create a file without a name.

    Raises:
        ResourceError: The filesystem does not support unnamed files; NFS is one.
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


LINK_ADVICE = "give the folder that the files lie in, or put copies or hard links in the place of links"
"""Advice in messages about a link that leads out of a folder that is read."""


def leads_out(path: Path, real_root: str) -> bool:
    """Whether a path leads out of a folder through a link.

    Args:
        path: A file or folder.
        real_root: The folder, with all links resolved.
    """
    real = os.path.realpath(path)
    return os.path.commonpath([real, real_root]) != real_root


def refuse_links(folder: Path) -> None:
    """Check that a folder of datafetch's own contains no links, through which files would be written elsewhere.

    Raises:
        ConfigurationError: There is a link.
    """
    link = next(_links(folder), None) if folder.is_dir() else None
    if link is not None:
        raise ConfigurationError(
            f"{link} is a symbolic link, and datafetch does not write through links; "
            "delete it, or replace it by its target"
        )


def refuse_links_above(paths: Iterable[Path], folder: Path) -> None:
    """Check that no folder between a folder and files in it is a link.

    Raises:
        ConfigurationError: One is.
    """
    checked = {folder}
    for path in paths:
        for above in path.parents:
            if above in checked:
                break
            if above.is_symlink():
                raise ConfigurationError(
                    f"{above} is a symbolic link, and datafetch does not write through links; replace it by a folder"
                )
            checked.add(above)


def _links(folder: Path | str) -> Iterator[str]:
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:  # another process has just moved it away
        return
    with entries:
        for entry in entries:
            if entry.is_symlink():
                yield entry.path
            elif entry.is_dir(follow_symlinks=False):
                yield from _links(entry.path)


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; False if the system does not support it.

    Raises:
        OSError: The system supports it, but these two folders can't be renamed.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library without this function
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def sync(path: Path) -> None:
    """Return when the content of a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_open(descriptor, path)
    finally:
        os.close(descriptor)


def sync_open(descriptor: int, path: Path) -> None:
    """Return when the content of an open file, or the names in an open folder, are on disk.

    If the filesystem does not support this, one warning is logged and the work continues: a killed process still loses
    nothing, because the kernel holds what was written.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANT_SYNC:
            raise
        _warn_unsynced(path if path.is_dir() else path.parent, os.strerror(error.errno))


def _warn_unsynced(folder: Path, reason: str) -> None:
    if _has_warned.is_set():
        return
    _has_warned.set()
    _log.warning(
        "the filesystem of %s does not support fsync (%s): a killed run can still be resumed, but after a power "
        "failure check the output with 'datafetch verify'",
        folder,
        reason,
    )
