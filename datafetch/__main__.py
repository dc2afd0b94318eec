"""The command ``datafetch``, also as ``python -m datafetch``: sets up its process, then hands over to ``cli``."""

from __future__ import annotations

import signal
import sys

from datafetch.cli.allocator import give_memory_back


def main() -> int:
    """Run the command and return its exit code."""
    try:
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # as cli has it once it is loaded
        give_memory_back()  # before a command loads Arrow
        from datafetch.cli.app import main as run_command  # noqa: PLC0415

        code = run_command()
    except KeyboardInterrupt:  # before a command could take it
        sys.stderr.write("datafetch: interrupted before it began\n")
        code = 130
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said and done; a late Ctrl-C has nothing left to stop
    return code


if __name__ == "__main__":
    sys.exit(main())
