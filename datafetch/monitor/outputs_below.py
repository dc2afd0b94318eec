"""The outputs below a folder, such as the trainer's data folder, for commands that were given that in place of one.

Rules: nothing is locked or written, and no link is followed. Shallow folders come first, and the search is bounded: a
data folder may lie above millions of files, or be the root of the filesystem.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datafetch.errors import ConfigurationError, raise_if_exhausted
from datafetch.output.formats import ROWS_SUFFIX
from datafetch.store.layout import SUFFIX, OutputLayout, output_of

_MAX_DEPTH = 6  # a project's folder is four levels above an output
_MAX_OUTPUTS = 100
_MAX_ENTRIES = 500_000
_NAMED = 20


@dataclass(frozen=True, slots=True)
class OutputsBelow:
    """Outputs below a folder.

    Attributes:
        outputs: Their folders, those of the shallowest first.
        is_complete: Whether all folders within the depth were searched.
    """

    outputs: tuple[Path, ...]
    is_complete: bool


def find_outputs(folder: Path) -> OutputsBelow:
    """Find the outputs below a folder, down to a few levels; those in hidden folders are not found."""
    search = _Search()
    outputs = tuple(sorted(search.outputs_below(folder), key=lambda path: (len(path.parts), path)))
    return OutputsBelow(outputs, search.is_complete)


def outputs_instead_of(path: Path) -> OutputsBelow:
    """The outputs below a folder that is neither one itself nor has shards of its own; none for all other paths.

    Their paths begin as the folder's does.
    """
    if is_output(path) or not path.is_dir() or any(entry.name.endswith(ROWS_SUFFIX) for entry in _entries(path)):
        return OutputsBelow((), is_complete=True)
    found = find_outputs(path)
    return OutputsBelow(tuple(path / out.relative_to(path.absolute()) for out in found.outputs), found.is_complete)


def _name_outputs(folder: Path) -> str:
    """What to add to the message that a folder is no output: the outputs below it; empty if there are none."""
    found = find_outputs(folder)
    if not found.outputs:
        return ""
    if len(found.outputs) == 1:
        return f"; below it is the output {found.outputs[0].relative_to(folder)}: name that one"
    names = ", ".join(str(out.relative_to(folder)) for out in found.outputs[:_NAMED])
    others = len(found.outputs) - _NAMED
    more = f" and {others} more" if others > 0 else ""
    return f"; below it are the outputs {names}{more}: name one of them"


def no_output(layout: OutputLayout) -> ConfigurationError:
    """The error for a folder in which there is no run; the message names the outputs below it.

    While an output is set aside for a job that takes its images, neither job is there: the job of the output is the
    first of its files to be moved, and the new one is written when all have been.
    """
    if layout.previous.is_dir():
        return ConfigurationError(
            f"{layout.out} is being set aside for a run with --reuse; wait for that run, or if it was stopped, run the "
            "same command again to resume (nothing fetched so far is lost)"
        )
    hint = _name_outputs(layout.out) or "; give the folder that a run writes to"
    return ConfigurationError(f"there is no run in {layout.out}: {layout.job} is missing{hint}")


def is_output(path: Path) -> bool:
    """Whether a path is an output or its state folder."""
    try:
        return _has_run(OutputLayout(output_of(path)))
    except ConfigurationError:  # it is the root of the filesystem
        return False


def _has_run(layout: OutputLayout) -> bool:
    """Whether a run has an output, or is about to take one."""
    return layout.job.exists() or layout.previous.is_dir()


class _Search:
    """A search for outputs.

    Attributes:
        is_complete: Whether no bound has ended it early.
    """

    def __init__(self) -> None:
        self.is_complete = True
        self._left_entries = _MAX_ENTRIES
        self._left_outputs = _MAX_OUTPUTS

    def outputs_below(self, folder: Path) -> Iterator[Path]:
        """Find the outputs, a level after the other."""
        folders = deque([(folder.absolute(), 1)])
        while folders:
            current, depth = folders.popleft()
            below: dict[str, None] = {}
            outputs: set[str] = set()
            for entry in _entries(current):
                if not self._left_entries or not self._left_outputs:
                    self.is_complete = False
                    return
                self._left_entries -= 1
                if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
                    continue
                if not entry.name.endswith(SUFFIX):
                    below[entry.name] = None
                elif _has_run(OutputLayout(current / entry.name.removesuffix(SUFFIX))):
                    self._left_outputs -= 1
                    outputs.add(entry.name.removesuffix(SUFFIX))
                    yield current / entry.name.removesuffix(SUFFIX)
            if depth < _MAX_DEPTH:
                folders.extend((current / name, depth + 1) for name in sorted(below) if name not in outputs)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder; none if it can't be read."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise_if_exhausted(error)
