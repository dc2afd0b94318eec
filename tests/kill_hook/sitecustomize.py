"""Kills the process that loads this right before one of its file operations, as ``dying_at_a_step`` of runs.py says."""

import os
import signal
import sys

_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.truncate", "shutil.rmtree")
_folder = os.environ["DATAFETCH_TEST_FOLDER"]
_left = int(os.environ["DATAFETCH_TEST_STEPS"])


def _count(event: str, arguments: tuple[object, ...]) -> None:
    global _left  # noqa: PLW0603 - an audit hook has no state of its own
    if event in _OPERATIONS and isinstance(arguments[0], str | bytes) and os.fsdecode(arguments[0]).startswith(_folder):
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


if os.environ["DATAFETCH_TEST_VICTIM"] in " ".join(sys.orig_argv) + " ":
    sys.addaudithook(_count)
