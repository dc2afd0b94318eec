"""The command ``datafetch``, also as ``python -m datafetch``: sets up its process, then hands over to ``cli``."""

from __future__ import annotations

import os
import sys

from datafetch.cli.exit_code import ExitCode, complain
from datafetch.cli.signals import CommandInterrupts
from datafetch.errors import ResourceError, is_exhaustion

_STANDARD_DESCRIPTORS = (0, 1, 2)
_NO_MEMORY = b"datafetch: out of memory; raise the limit ('ulimit -v') and run the same command again\n"


def main() -> int:
    """Run the command and return its exit code."""
    _open_standard_streams()
    interrupts = CommandInterrupts()
    interrupts.take_over()  # before what takes most of a second to load
    try:
        from datafetch.cli.allocator import give_memory_back  # noqa: PLC0415

        give_memory_back()  # before a command loads Arrow
        from datafetch.cli.app import main as run_command  # noqa: PLC0415

        code = run_command()
    except (MemoryError, ImportError) as error:  # as app has it, if there was no memory to load even that
        if not is_exhaustion(error):
            raise
        code = _complain_of_memory(error)
    except SystemError as error:  # CPython may lose the MemoryError of an import
        if "without exception set" not in str(error):
            raise
        code = _complain_of_memory(MemoryError())
    return interrupts.end(code)


def _complain_of_memory(error: MemoryError | ImportError) -> ExitCode:
    try:
        return complain(str(ResourceError.from_exhaustion(error)), ExitCode.OUT_OF_RESOURCES)
    except MemoryError:  # not even for that line
        os.write(_STANDARD_DESCRIPTORS[-1], _NO_MEMORY)
        return ExitCode.OUT_OF_RESOURCES


def _open_standard_streams() -> None:
    """Open /dev/null for standard streams that the shell has closed (``<&-``).

    Otherwise the next file or socket would get descriptor 0, 1 or 2, and whatever is printed to standard error would be
    written into it. libuv aborts the process when its own descriptors get these numbers.
    """
    for descriptor in _STANDARD_DESCRIPTORS:
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # what Python makes of a closed one
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open to the end


if __name__ == "__main__":
    sys.exit(main())
