"""How this project starts a process of its own: a fresh interpreter that runs one module's ``main()``.

Not ``multiprocessing``: its spawn runs the caller's ``__main__`` again, so that a notebook or a script without a guard
breaks, and every codec process would load the whole command line. Here a child imports what it needs and nothing else.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


def child_command(module: str) -> list[str]:
    """The command that runs ``main()`` of a module with this process's interpreter and import path.

    Args:
        module: Dotted name; it must be importable and have a ``main()`` without parameters.
    """
    import_path = [_PACKAGE_PARENT, *(entry for entry in sys.path if entry not in ("", _PACKAGE_PARENT))]
    return [
        sys.executable,
        "-c",
        f"import sys; sys.path[:] = {import_path!r}; from {module} import main; main()",
    ]


def why_not_started(error: OSError) -> str:
    """Why no process could be started, in the system's words; uvloop has no number for want of descriptors."""
    number = error.errno or 0
    return os.strerror(number) if number > 0 else "too few descriptors, or too little memory"
