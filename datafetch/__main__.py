"""The command ``datafetch``, also as ``python -m datafetch``: sets up its process, then hands over to ``cli``."""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Run the command and return its exit code."""
    # Arrow's default allocator keeps what it once had, 40 MB of the 200 MB of a run (benchmarks/manifest_memory.py). It
    # is chosen when Arrow is loaded, so before the import below; a library leaves that choice to its process.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        from datafetch.cli import main as run_command  # noqa: PLC0415

        code = run_command()
    except KeyboardInterrupt:  # while it is still being loaded, which takes most of a second
        sys.stderr.write("datafetch: interrupted before it began\n")
        code = 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said and done; a late Ctrl-C has nothing left to stop
    return code


if __name__ == "__main__":
    sys.exit(main())
