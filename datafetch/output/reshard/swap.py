"""Replace the output by a complete set of resharded files.

Rules: the output holds the old shards or the new ones, and never a mixture. Until it holds all of the new ones, every
row is also in the state folder.

Theory of operation: ``mark_complete`` renames ``resharding`` to ``resharded``. This is the point of no return: from
then on, ``complete_swap`` only goes forward. It can be interrupted anywhere and called again, by the next process, with
the same result, because the files say how far it got::

    resharded/shards/      the new shards; gone once they are the output
    resharded/equal.json   their record; gone once it has been published to the state folder
    resharded/exchanging   inode number of the new folder, written before it is exchanged with the output
    resharded/moving       the old shards have been deleted from an output whose files are replaced one by one
    replaced/              the old output, until its shards are deleted

There are three ways to replace the output, from the best to the one that always works:

1. Its folder is exchanged with that of the new shards in one step, so there is an output at every moment. The inode
   number in ``exchanging`` tells which folder is the new one, so an interrupted process does not exchange them twice.
2. Where the system can't exchange folders, the old one is renamed to ``replaced``, and then the new one to the output.
   For a moment there is no output. ``replaced`` exists only if the second rename is still to be done.
3. If the output is a mount point, a link, or on another filesystem, its folder can't be renamed. The old shards are
   deleted, ``moving`` is written, and then each new file is published. The trainer sees a part of the new shards
   meanwhile, but never old and new ones together.

Of the old output only files of shards are deleted. Any other file stops the swap with a message.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from datafetch.errors import ConfigurationError, ResourceError
from datafetch.output.formats import PickleFormat
from datafetch.output.reshard.record import ReshardRecord
from datafetch.store.atomic import exchange, make_folder, publish, sync, write_atomically
from datafetch.store.layout import OutputLayout
from datafetch.store.state_file import read_state_file

SHARDS = "shards"
RECORD = "equal.json"
_MOVING = "moving"
_EXCHANGING = "exchanging"
_CANT_RENAME = (errno.EXDEV, errno.EBUSY)


def mark_complete(layout: OutputLayout) -> None:
    """Declare the shards in ``resharding`` complete; everything in it must be on disk already."""
    sync(layout.resharding)
    layout.resharding.rename(layout.resharded)
    sync(layout.state_folder)


def complete_swap(layout: OutputLayout) -> None:
    """Replace the output by complete new shards, if there are any; an interrupted swap is resumed.

    To be called under the lock of the output, before anything else reads it.

    Raises:
        ResourceError: The output can't be written; nothing is lost.
        ConfigurationError: Other files are in the way of the output.
    """
    if not layout.resharded.is_dir():
        return
    try:
        _complete_swap(layout)
    except OSError as error:
        raise ResourceError.from_disk_error(error, f"put the resharded files into {layout.out}") from error


def _complete_swap(layout: OutputLayout) -> None:
    shards = layout.resharded / SHARDS
    if shards.is_dir():
        if _must_move_files(layout) or not _swap(layout, shards):
            _move_files(layout, shards)
        sync(layout.resharded)
    record = layout.resharded / RECORD
    if record.exists():
        publish(record, layout.reshard_record)
    _delete_replaced(layout)
    for leftover in (layout.added, layout.before_repair, layout.resharded):
        if leftover.exists():
            shutil.rmtree(leftover)
    sync(layout.state_folder)


def _delete_replaced(layout: OutputLayout) -> None:
    """Delete the old output's shards and its folder, but no other file."""
    if not layout.replaced.exists():
        return
    for path in _old_files(layout, layout.replaced):
        path.unlink()
    other_files = sorted(layout.replaced.iterdir())
    if other_files:
        raise ConfigurationError(
            f"{other_files[0]} is not a file of the shards that were replaced; move it away and run the same command "
            "again"
        )
    layout.replaced.rmdir()


def _old_files(layout: OutputLayout, folder: Path) -> list[Path]:
    """The existing files of the replaced shards; counts come first, so that none is left without its rows."""
    record = layout.resharded / RECORD
    path = record if record.exists() else layout.reshard_record
    unknown = ConfigurationError(f"{path} does not say which shards were resharded; move {layout.replaced} away")
    replacing = read_state_file(path, ReshardRecord, unknown)
    if replacing is None or replacing.replaces is None:
        raise unknown
    suffixes = reversed(PickleFormat.suffixes)
    paths = [folder / f"{shard}{suffix}" for suffix in suffixes for shard in replacing.replaces]
    return [path for path in paths if path.is_file()]


def _must_move_files(layout: OutputLayout) -> bool:
    """Whether the files must be moved one by one, because the output folder is a mount point or a link."""
    return (layout.resharded / _MOVING).exists() or layout.out.is_symlink() or layout.out.is_mount()


def _swap(layout: OutputLayout, shards: Path) -> bool:
    """Replace the output folder as a whole; False if that is impossible across filesystems, and nothing was done."""
    try:
        if not layout.out.exists() or layout.replaced.exists():
            shards.rename(layout.out)
        elif not _exchange(layout, shards):
            layout.out.rename(layout.replaced)
            sync(layout.state_folder)
            sync(layout.out.parent)
            shards.rename(layout.out)
    except OSError as error:
        if error.errno in _CANT_RENAME:
            return False
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise ConfigurationError(
                f"the resharded files in {shards} can't become {layout.out}, because it holds something else; "
                "move that away and run the same command again"
            ) from error
        raise
    sync(layout.out.parent)
    return True


def _exchange(layout: OutputLayout, shards: Path) -> bool:
    """Exchange the new folder with the output; False if the system can't.

    A killed process may have exchanged them already: the inode number of the new folder tells which of the two it is.
    """
    inode_file = layout.resharded / _EXCHANGING
    if not inode_file.exists():
        write_atomically(inode_file, _inode(shards))
    new = inode_file.read_bytes()
    if new not in (_inode(shards), _inode(layout.out)):
        raise ConfigurationError(
            f"{layout.out} and {shards} seem to have been copied while they changed places, so it is unclear which "
            f"holds the new shards: if {shards} does, delete {inode_file}; if {layout.out} does, delete {shards}; then "
            "run the same command again"
        )
    if new == _inode(shards):
        if not exchange(shards, layout.out):
            return False
        sync(layout.out.parent)
    shards.rename(layout.replaced)
    sync(layout.state_folder)
    return True


def _inode(folder: Path) -> bytes:
    return str(folder.stat().st_ino).encode()


def _move_files(layout: OutputLayout, shards: Path) -> None:
    make_folder(layout.out)
    moving = layout.resharded / _MOVING
    if not moving.exists():
        for path in _old_files(layout, layout.out):
            path.unlink()
        sync(layout.out)
        write_atomically(moving, b"")
    for name in sorted({path.stem for path in shards.iterdir()}):
        for path in (shards / f"{name}{suffix}" for suffix in PickleFormat.suffixes):
            if path.exists():
                publish(path, layout.out / path.name)
    shards.rmdir()
