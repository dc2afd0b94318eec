"""How datafetch starts a child process: a fresh interpreter that runs the ``main()`` of one module.

``multiprocessing`` is not used: its spawn method runs the caller's ``__main__`` again, so that a notebook or a script
without a guard breaks, and every child would load the whole command line. Here a child imports only what it needs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


def child_command(module: str) -> list[str]:
    """Return the command that runs a module's ``main()`` with this process's interpreter and import path.

    Args:
        module: The dotted name of a module that has a ``main()`` without parameters.
    """
    import_path = [_PACKAGE_PARENT, *(entry for entry in sys.path if entry not in ("", _PACKAGE_PARENT))]
    return [
        sys.executable,
        "-c",
        f"import sys; sys.path[:] = {import_path!r}; from {module} import main; main()",
    ]


def end_with_parent() -> None:
    """Let the kernel end this process when its parent ends, even if that is killed."""
    with suppress(OSError, AttributeError):  # on Linux alone
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start_failure(error: OSError) -> str:
    """Describe why no process could be started. uvloop gives no errno if descriptors or memory are lacking."""
    number = error.errno or 0
    return os.strerror(number) if number > 0 else "too few file descriptors, or too little memory"


def signal_name(number: int) -> str:
    """Return the name of a signal, such as ``SIGSEGV``, or ``signal 40`` if it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
