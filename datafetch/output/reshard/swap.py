"""Equal shards that are complete take the place of the output.

Rules: complete shards are decided on by one rename, and from then on there is no way back: ``finish`` resumes from
wherever it was interrupted, and ends the same. The output holds the old shards or the new ones, never some of both;
until the new ones are in it, every row lies in the state folder. Where the system can let two folders change places,
there is an output at every moment.

What lies there meanwhile::

    resharded/shards/      the new shards; gone once they are the output
    resharded/equal.json   what they are made of; gone once it is the state's
    resharded/exchanging   which of two folders is the new one, while it and the output change places
    resharded/moving       the old shards are gone from an output that takes its new ones file by file
    replaced/              the old output
"""

from __future__ import annotations

import errno
import shutil
from dataclasses import dataclass
from pathlib import Path

from datafetch.errors import ConfigurationError, ResourceError
from datafetch.model.bounds import PlainName
from datafetch.store.atomic import exchange, make_folder, publish, sync, write_atomically
from datafetch.store.layout import OutputLayout
from datafetch.store.state_file import read_state_file

SHARDS = "shards"
RECORD = "equal.json"
_MOVING = "moving"
_EXCHANGING = "exchanging"
_CANT_RENAME = (errno.EXDEV, errno.EBUSY)


@dataclass(frozen=True, slots=True)
class _Replaced:
    """What the record says of the shards whose place the new ones take."""

    replaces: list[PlainName]


def decide(layout: OutputLayout) -> None:
    """Declare the shards in ``state.resharding`` complete; everything in there is on disk when this is called."""
    sync(layout.resharding)
    layout.resharding.rename(layout.resharded)
    sync(layout.folder)


def finish(layout: OutputLayout) -> None:
    """Let complete equal shards become the output, if there are any; resume where that was interrupted.

    To be called, under the lock of the output, before anything else looks at it.

    Raises:
        ResourceError: The output can't be written; nothing is lost.
        ConfigurationError: Others have put files where the output is to be.
    """
    if not layout.resharded.is_dir():
        return
    try:
        _finish(layout)
    except OSError as error:
        raise ResourceError.of_disk(error, f"put equal shards into {layout.out}") from error


def _finish(layout: OutputLayout) -> None:
    shards = layout.resharded / SHARDS
    if shards.is_dir():
        if _must_stay(layout) or not _swap(layout, shards):
            _move_files(layout, shards)
        sync(layout.resharded)
    record = layout.resharded / RECORD
    if record.exists():
        publish(record, layout.equal)
    _delete_replaced(layout)
    for leftover in (layout.added, layout.resharded):
        if leftover.exists():
            shutil.rmtree(leftover)
    sync(layout.folder)


def _delete_replaced(layout: OutputLayout) -> None:
    """Delete the old shards, and no other file in their folder."""
    if not layout.replaced.exists():
        return
    for path in _old_files(layout, layout.replaced):
        path.unlink()
    others = sorted(layout.replaced.iterdir())
    if others:
        raise ConfigurationError(
            f"{others[0]} lay among the shards and is not one of them; move it away and run the same command again"
        )
    layout.replaced.rmdir()


def _old_files(layout: OutputLayout, folder: Path) -> list[Path]:
    """The files of the shards that are replaced, as far as they are there; counts first, never to be without rows."""
    record = layout.resharded / RECORD
    path = record if record.exists() else layout.equal
    unknown = ConfigurationError(
        f"{path} does not say which shards the equal ones replace; move {layout.replaced} away"
    )
    record_file = read_state_file(path, _Replaced, unknown)
    if record_file is None:
        raise unknown
    paths = [folder / f"{shard}{suffix}" for suffix in (".count", ".pkl") for shard in record_file.replaces]
    return [path for path in paths if path.is_file()]


def _must_stay(layout: OutputLayout) -> bool:
    """Whether the output's folder can't be replaced by another, for it is a mount point or a link."""
    return (layout.resharded / _MOVING).exists() or layout.out.is_symlink() or layout.out.is_mount()


def _swap(layout: OutputLayout, shards: Path) -> bool:
    """Put one folder in the other's place; False if they lie on different filesystems, and nothing was done."""
    try:
        if not layout.out.exists() or layout.replaced.exists():
            shards.rename(layout.out)
        elif not _exchange(layout, shards):
            layout.out.rename(layout.replaced)
            sync(layout.folder)
            sync(layout.out.parent)
            shards.rename(layout.out)
    except OSError as error:
        if error.errno in _CANT_RENAME:
            return False
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise ConfigurationError(
                f"{layout.out} is where equal shards from {shards} are to be, and holds something else; "
                "move that away and run the same command again"
            ) from error
        raise
    sync(layout.out.parent)
    return True


def _exchange(layout: OutputLayout, shards: Path) -> bool:
    """Let the new shards and the output change places; False where that can't be.

    A run that was killed may have done it: the number of the new folder in its filesystem tells which of the two it is.
    """
    note = layout.resharded / _EXCHANGING
    if not note.exists():
        write_atomically(note, _number(shards))
    new = note.read_bytes()
    if new not in (_number(shards), _number(layout.out)):
        raise ConfigurationError(
            f"{layout.out} and {shards} seem to have been copied while a swap was in progress, so it is unclear which "
            f"holds the new shards: if {shards} does, delete {note}; if {layout.out} does, delete {shards}; then run "
            "the same command again"
        )
    if new == _number(shards):
        if not exchange(shards, layout.out):
            return False
        sync(layout.out.parent)
    shards.rename(layout.replaced)
    sync(layout.folder)
    return True


def _number(folder: Path) -> bytes:
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
        for path in (shards / f"{name}.pkl", shards / f"{name}.count"):
            if path.exists():
                publish(path, layout.out / path.name)
    shards.rmdir()
