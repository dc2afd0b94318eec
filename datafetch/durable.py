"""Files that are whole and on disk, or not there.

Rules: a file that others look at gets its name when it is complete, and a name counts when it is on disk. Whatever runs
out in between (the disk, the power, the process) leaves what was there before.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from datafetch.errors import ResourceError


def is_plain_name(name: object) -> bool:
    """Whether this is the name of a file and leads nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name


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
        os.fsync(nameless)
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
            f"{folder} lies on another filesystem than {source}, one to which files can't be moved "
            "without the trainer seeing them half; choose an output whose parent folder is on the same"
        ) from error


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
