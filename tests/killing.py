"""Does an errand again and again, each time in a process that SIGKILL ends some file operations later.

``python killing.py reshard SRC FOLDER STEP`` makes equal shards of SRC in FOLDER/<n>/out; ``python killing.py finish
PREPARED FOLDER STEP`` finishes copies of the folder PREPARED as FOLDER/<n>, ``finish-apart`` the same on a system that
can't let two folders change places. n is the file operation that the process does not live to see, from 1 in steps; the
last process lives to the end. Processes are forked from one without threads, so that each costs milliseconds.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

from datafetch.output.reshard import copy, swap
from datafetch.output.reshard.copy import ProgressMonitor
from datafetch.output.reshard.folder import ReshardRequest, reshard
from datafetch.output.reshard.swap import complete_swap
from datafetch.store.layout import OutputLayout

SMALL_BUFFER_BYTES = 600
_OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}


def equal_shards(source: Path, out: Path, monitor: ProgressMonitor | None = None) -> None:
    """What is done to SRC: pairs for four ranks."""
    reshard(
        ReshardRequest(source, out, world_size=4, batch=1, group=2), monitor or ProgressMonitor(journal_interval_s=0)
    )


def _die_at(operation: int) -> None:
    left = count(operation, -1)

    def look(event: str, _: object) -> None:
        if event in _OPERATIONS and next(left) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def _lives(errand: Callable[[], object], operation: int) -> bool:
    child = os.fork()
    if not child:
        _die_at(operation)
        errand()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status == 0


def main() -> None:
    """Do the errand of the command line, a few rows at a time."""
    copy._BUFFER_BYTES = SMALL_BUFFER_BYTES
    errand, given, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if errand == "finish-apart":
        vars(swap)["exchange"] = lambda *_: False
    for operation in count(1, int(sys.argv[4])):
        place = folder / str(operation)
        if errand.startswith("finish"):
            shutil.copytree(given, place, symlinks=True)
            lives = _lives(lambda out=place / "out": complete_swap(OutputLayout(out)), operation)  # type: ignore[misc]
        else:
            lives = _lives(lambda out=place / "out": equal_shards(given, out), operation)  # type: ignore[misc]
        if lives:
            return


if __name__ == "__main__":
    main()
