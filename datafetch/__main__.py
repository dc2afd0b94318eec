"""The command ``datafetch``, also as ``python -m datafetch``: sets up its process, then hands over to ``cli``."""

from __future__ import annotations

import os
import resource
import sys

from datafetch.cli.exit_code import ExitCode, complain
from datafetch.cli.signals import CommandInterrupts
from datafetch.errors import ResourceError, is_exhaustion

_MIN_BYTES_TO_LOAD = 128 << 20  # of address space
_STANDARD_DESCRIPTORS = (0, 1, 2)
_LOST_ERRORS = ("without exception set", "without setting an exception")  # what a SystemError says then
_NO_MEMORY = (
    b"datafetch: out of system resources: out of memory; raise the limit ('ulimit -v') and run the same command again\n"
)


def main() -> int:
    """Run the command and return its exit code."""
    _open_standard_streams()
    if _is_too_small_to_load():
        return ExitCode.OUT_OF_RESOURCES
    interrupts = CommandInterrupts()
    interrupts.take_over()  # before the imports below, which take most of a second
    try:
        from datafetch.process.allocator import (  # noqa: PLC0415
            collect_garbage_rarely,
            return_freed_memory,
            without_blas_threads,
        )

        collect_garbage_rarely()
        return_freed_memory()  # before a command loads Arrow
        without_blas_threads(os.environ)  # and numpy
        from datafetch.cli.app import main as run_command  # noqa: PLC0415

        code = run_command()
    except (MemoryError, ImportError, OSError) as error:  # of an import; app.main handles those of a command
        if not is_exhaustion(error):
            raise
        code = _complain_of_memory(error)
    except SystemError as error:  # CPython may lose the MemoryError of an import
        if not any(text in str(error) for text in _LOST_ERRORS):
            raise
        code = _complain_of_memory(MemoryError())
    _discard_unwritten()
    return interrupts.end(code)


def _is_too_small_to_load() -> bool:
    """Say so if the address space is limited so far that libraries fail while they are imported, some of them noisily.

    A larger one, which commands lack for their work, is judged by ``cli.app``.
    """
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit_bytes == resource.RLIM_INFINITY or limit_bytes >= _MIN_BYTES_TO_LOAD:
        return False
    os.write(_STANDARD_DESCRIPTORS[-1], _NO_MEMORY)
    return True


def _complain_of_memory(error: MemoryError | ImportError | OSError) -> ExitCode:
    try:
        return complain(str(ResourceError.from_exhaustion(error)), ExitCode.OUT_OF_RESOURCES)
    except MemoryError:  # not even enough for that line
        os.write(_STANDARD_DESCRIPTORS[-1], _NO_MEMORY)
        return ExitCode.OUT_OF_RESOURCES


def _discard_unwritten() -> None:
    """Discard what can't be written to a standard stream: Python would try again as it exits, and exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_standard_streams() -> None:
    """Open /dev/null for standard streams that the shell has closed (``<&-``).

    Otherwise the next file or socket would get descriptor 0, 1 or 2, and whatever is printed to standard error would be
    written into it. libuv aborts the process when its own descriptors get these numbers.
    """
    for descriptor in _STANDARD_DESCRIPTORS:
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # Python's value for a closed stream
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open until the process ends


if __name__ == "__main__":
    sys.exit(main())
