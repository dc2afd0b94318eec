"""Set an output aside, so that another job can take its place and take images from it.

Theory of operation: the earlier output becomes ``previous/<number>/<name>`` in the state folder, with its own state
folder next to it, so that everything that reads an output reads this one. Its files are renamed, one by one. In between
a killed process may leave these states, and the next one goes on from there (``complete_set_aside``):

* ``previous/<number>/moving`` exists and ``job.json`` is in its old place: nothing has been moved yet. The folder is
  deleted, and the output is what it was.
* ``moving`` exists and ``job.json`` has been moved, which is the point of no return: all other files that are still in
  their old place are moved. The files of the output come first, because what they are is known from the state folder.
* there is no ``moving``: the output is set aside.

Spools stay where they are, in a folder that is named by the job, and so a spool of an interrupted job is found both as
one of the earlier output and, by a run of that job, as its own.

Earlier outputs are deleted when the run is complete (``delete_earlier``), or starts over. If such a run is interrupted
and another job takes its place, there are several.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from datafetch.engine.job import hash_of
from datafetch.engine.own_files import in_own_format, removable_files, written_files
from datafetch.store.atomic import make_folder, move, sync, write_atomically
from datafetch.store.job_file import JobFile, read_job_file
from datafetch.store.layout import OutputLayout, folders_of_spools

_MOVING = "moving"


@dataclass(frozen=True, slots=True)
class EarlierOutput:
    """An output that was set aside.

    Attributes:
        layout: The paths at which it lies now.
        job: Its job.
        spool_folders: The folders of the spools that its job and its retries have left.
    """

    layout: OutputLayout
    job: JobFile
    spool_folders: tuple[Path, ...]


def set_aside(layout: OutputLayout, job: JobFile) -> None:
    """Move an output to ``previous``, so that it is unused. Its lock is held.

    Raises:
        ConfigurationError: Its folder has files of others that the trainer would count, or there are links below it.
        OSError: The disk can't be written; ``complete_set_aside`` goes on.
    """
    layout = in_own_format(layout, job)
    removable_files(layout, job.identity)
    numbers = [int(path.name) for path in _folders(layout)]
    folder = layout.previous / f"{max(numbers, default=0) + 1}"
    earlier = _layout_in(layout, folder)
    make_folder(earlier.state_folder)
    write_atomically(folder / _MOVING, b"")
    move(layout.job, earlier.job)
    for parent in (earlier.state_folder, layout.state_folder):
        sync(parent)
    _move_files(layout, earlier, job)


def complete_set_aside(layout: OutputLayout) -> None:
    """Go on where a process was killed that set the output aside.

    Raises:
        ConfigurationError: Files of others have appeared among those of the output.
    """
    for folder in _folders(layout):
        earlier = _layout_in(layout, folder)
        job = read_job_file(earlier)
        if job is None:
            shutil.rmtree(folder)
        elif (folder / _MOVING).exists():
            _move_files(in_own_format(layout, job), earlier, job)


def earlier_outputs(layout: OutputLayout) -> list[EarlierOutput]:
    """The outputs that are set aside, the latest first."""
    found = []
    for folder in reversed(_folders(layout)):
        earlier = _layout_in(layout, folder)
        job = read_job_file(earlier)
        if job is not None:
            found.append(EarlierOutput(in_own_format(earlier, job), job, tuple(_spool_folders(layout, job))))
    return found


def delete_earlier(layout: OutputLayout) -> None:
    """Delete all outputs that are set aside, and what they have left in the folders of spools."""
    for earlier in earlier_outputs(layout):
        for folder in earlier.spool_folders:
            shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(layout.previous, ignore_errors=True)


def _folders(layout: OutputLayout) -> list[Path]:
    """The folders of earlier outputs, in the order in which they were set aside."""
    folders = layout.previous.iterdir() if layout.previous.is_dir() else ()
    return sorted((path for path in folders if path.name.isdecimal()), key=lambda path: int(path.name))


def _layout_in(layout: OutputLayout, folder: Path) -> OutputLayout:
    return OutputLayout(folder / layout.out.name)


def _spool_folders(layout: OutputLayout, job: JobFile) -> Iterator[Path]:
    hashed = hash_of(job.identity)
    spools = replace(layout, scratch=job.scratch, job_hash=hashed)
    for folder in (spools.spool_folder, *spools.retry_spools()):
        if folder.is_dir():
            yield from folders_of_spools(folder)


def _move_files(layout: OutputLayout, earlier: OutputLayout, job: JobFile) -> None:
    """Move what is still in its old place: the files of the output, and then those of its state."""
    folders = set()
    for path in written_files(layout, job.identity):
        if path.exists():
            target = earlier.out / path.relative_to(layout.out)
            if target.parent not in folders:
                make_folder(target.parent)
                folders.add(target.parent)
            move(path, target)
    for folder in folders:
        sync(folder)
    for path in _moved_state(layout):
        if path.exists():
            move(path, earlier.state_folder / path.name)
    for folder in (layout.resharding, layout.before_repair):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in (earlier.state_folder, layout.state_folder):
        sync(folder)
    (earlier.out.parent / _MOVING).unlink()
    sync(earlier.out.parent)


def _moved_state(layout: OutputLayout) -> tuple[Path, ...]:
    """What an earlier output needs of its state folder, to be read; its report goes first, since it is not complete."""
    return (
        layout.report,
        layout.retry,
        layout.dropped,
        layout.added,
        layout.kept_for_retry("").parent,
        layout.ledgers,
        layout.reshard_record,
        layout.image_index_folder,
    )
