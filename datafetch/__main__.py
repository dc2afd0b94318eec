"""The command ``datafetch``, also as ``python -m datafetch``: sets up its process, then hands over to ``cli``."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run the command and return its exit code."""
    # Arrow's default allocator keeps what it once had, 40 MB of the 200 MB of a run (benchmarks/manifest_memory.py). It
    # is chosen when Arrow is loaded, so before the import below; a library leaves that choice to its process.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from datafetch.cli import main as run_command  # noqa: PLC0415

    return run_command()


if __name__ == "__main__":
    sys.exit(main())
