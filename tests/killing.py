"""Repeat a task in processes that are each killed (SIGKILL) some file operations later than the one before.

``python killing.py reshard SRC FOLDER STEP`` reshards SRC into FOLDER/<n>/out. ``python killing.py swap
PREPARED FOLDER STEP`` completes the swap in copies of the folder PREPARED, FOLDER/<n>; ``swap-apart`` does the same
as if the system could not exchange two folders, ``set-aside`` sets the output in the copies aside, and ``publish``
publishes the committed shards in the copies, of the format that may follow STEP. n is the number of the file operation
before which the process is killed: 1, 1 + STEP, and so on, until a process runs to the end. The processes are forked
from one without threads, so each costs milliseconds.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

from datafetch.engine.set_aside import set_aside
from datafetch.output.commit import complete_commits
from datafetch.output.reshard import copy, swap
from datafetch.output.reshard.copy import ProgressMonitor
from datafetch.output.reshard.folder import ReshardRequest, reshard
from datafetch.output.reshard.swap import complete_swap
from datafetch.store.job_file import read_job_file
from datafetch.store.layout import OutputLayout

SMALL_BUFFER_BYTES = 600
_OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}


def reshard_for_four_ranks(source: Path, out: Path, monitor: ProgressMonitor | None = None) -> None:
    """Reshard a source for four ranks."""
    reshard(
        ReshardRequest(source, out, world_size=4, batch=1, group=2), monitor or ProgressMonitor(journal_interval_s=0)
    )


def _die_at(operation: int) -> None:
    left = count(operation, -1)

    def count_down(event: str, _: object) -> None:
        if event in _OPERATIONS and next(left) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count_down)


def _survives(task: Callable[[], object], operation: int) -> bool:
    child = os.fork()
    if not child:
        _die_at(operation)
        task()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status == 0


def layout_of(out: Path) -> OutputLayout:
    """Return the paths of an output of either format."""
    layout = OutputLayout(out)
    is_of_files = layout.image_index_folder.exists() or (layout.previous / "1" / "out.datafetch" / "saved").exists()
    return replace(layout, output_format="image_files") if is_of_files else layout


def _set_aside(layout: OutputLayout) -> None:
    job = read_job_file(layout)
    assert job is not None
    set_aside(layout, job)


def main() -> None:
    """Repeat the task of the command line, with a buffer of a few rows."""
    copy._BUFFER_BYTES = SMALL_BUFFER_BYTES
    task, given, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if task == "swap-apart":
        vars(swap)["exchange"] = lambda *_: False
    for operation in count(1, int(sys.argv[4])):
        copied = folder / str(operation)
        if task == "set-aside":
            shutil.copytree(given, copied)
            survives = _survives(lambda out=copied / "out": _set_aside(layout_of(out)), operation)  # type: ignore[misc]
        elif task == "publish":
            shutil.copytree(given, copied)
            output_format = sys.argv[5] if len(sys.argv) > 5 else "pickle"
            layout = OutputLayout(copied / "out", output_format=output_format)
            survives = _survives(lambda layout=layout: complete_commits(layout), operation)  # type: ignore[misc]
        elif task.startswith("swap"):
            shutil.copytree(given, copied, symlinks=True)
            survives = _survives(lambda out=copied / "out": complete_swap(OutputLayout(out)), operation)  # type: ignore[misc]
        else:
            survives = _survives(lambda out=copied / "out": reshard_for_four_ranks(given, out), operation)  # type: ignore[misc]
        if survives:
            return


if __name__ == "__main__":
    main()
