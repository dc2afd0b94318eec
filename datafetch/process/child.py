"""How datafetch starts a child process: a fresh interpreter that runs the ``main()`` of one module.

``multiprocessing`` is not used: its spawn method runs the caller's ``__main__`` again, so that a notebook or a script
without a guard breaks, and every child would load the whole command line. Here a child imports only what it needs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])
_BLAS_THREADS = "OPENBLAS_NUM_THREADS"


def without_blas_threads() -> None:
    """Prevent numpy from starting a thread for each CPU, unless the operator has set their number.

    That takes a tenth of a second of CPU time and, on a large machine, gigabytes of address space in each process, and
    nothing here multiplies matrices. To be called before numpy is imported.
    """
    os.environ.setdefault(_BLAS_THREADS, "1")


def child_command(module: str) -> list[str]:
    """Return the command that runs a module's ``main()`` with this process's interpreter and import path.

    Args:
        module: The dotted name of a module that has a ``main()`` without parameters.
    """
    import_path = [_PACKAGE_PARENT, *(entry for entry in sys.path if entry not in ("", _PACKAGE_PARENT))]
    prepare = f"import os, sys; os.environ.setdefault({_BLAS_THREADS!r}, '1'); sys.path[:] = {import_path!r}"
    return [sys.executable, "-c", f"{prepare}; from {module} import main; main()"]


def start_failure(error: OSError) -> str:
    """Describe why no process could be started. uvloop gives no errno if descriptors or memory are lacking."""
    number = error.errno or 0
    return os.strerror(number) if number > 0 else "too few descriptors, or too little memory"
