"""Runs the command again and again, in forks of one interpreter that has loaded it, for loading takes a second of CPU.

Theory of operation. ``python preloaded.py FD`` loads datafetch and waits on a socket. For each command that it
receives, with a descriptor for standard error, it forks. The child takes the arguments and the environment that it
would have been started with, loads the hook that kills it at a step, and does what ``python -m datafetch`` does;
whatever it starts are fresh interpreters. The server sends the child's number, waits for its end, and sends its
status. It reaps the child only when told to, so that the number stays the child's own for as long as a test may send it
a signal.

Rules: the server never has a second thread, which its children would lack, and opens no file of an output. What a child
skips is the loading, which ``test_cli.py``, ``test_shell.py`` and ``test_signals.py`` are about.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import os
import pkgutil
import runpy
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

_LENGTH = struct.Struct("<I")
_NUMBER = struct.Struct("<i")
_REAP = b"."
_PATIENCE_S = 150.0
# Not loaded: what these commands don't use, what runs in another process, and __main__, which the child runs.
_NOT_LOADED = ("datafetch.demo", "datafetch.verify", "datafetch.__main__", "datafetch.datasets.sources.hub_process")
_ONE_THREAD = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}  # of Arrow's jemalloc
COVERAGE_VARIABLES = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
"""What tells a fresh interpreter to measure coverage. The server has none of these: what it forks is not measured."""


class PreloadedCommand:
    """The client of the server, which it starts; it runs one command at a time, and is to be closed.

    Args:
        library: A library that is loaded into it before all others; its function ``begin`` is called in each child.
    """

    def __init__(self, library: Path | None = None) -> None:
        self._library = library
        self._channel, theirs = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if name not in COVERAGE_VARIABLES}
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdout=subprocess.DEVNULL,
                env={**environment, **_ONE_THREAD, **_preload(library)},
            )

    def close(self) -> None:
        """End the server."""
        self._channel.close()
        self._server.wait(_PATIENCE_S)

    def start(self, command: Sequence[str], environment: Mapping[str, str], stderr: int) -> ForkedProcess:
        """Start ``python -m datafetch …`` with an environment, and a descriptor for its standard error."""
        assert list(command[:3]) == [sys.executable, "-m", "datafetch"], command
        request = json.dumps([list(command), {**environment, **_preload(self._library)}]).encode()
        self._channel.settimeout(_PATIENCE_S)
        socket.send_fds(self._channel, [_LENGTH.pack(len(request))], [stderr])
        self._channel.sendall(request)
        return ForkedProcess(self._channel)


class ForkedProcess:
    """A running command, with what ``subprocess.Popen`` has of it.

    Attributes:
        pid: The number of its process.
        returncode: Its exit code or negative signal, once it has been waited for.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self.pid: int = _NUMBER.unpack(_receive(channel, _NUMBER.size))[0]
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return its exit code.

        Raises:
            subprocess.TimeoutExpired: It has not ended in time.
        """
        if self.returncode is None:
            self._channel.settimeout(timeout)
            try:
                status = _receive(self._channel, _NUMBER.size)
            except TimeoutError as error:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0) from error
            self.returncode = _NUMBER.unpack(status)[0]  # from now on no signal is sent to this number
            self._channel.sendall(_REAP)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has been waited for."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, unless it has been waited for."""
        self.send_signal(signal.SIGKILL)


def _preload(library: Path | None) -> dict[str, str]:
    return {} if library is None else {"LD_PRELOAD": str(library)}


def _receive(channel: socket.socket, size_bytes: int) -> bytes:
    received = channel.recv(size_bytes, socket.MSG_WAITALL)
    if len(received) < size_bytes:
        raise EOFError("the server of preloaded commands has ended")
    return received


def _load() -> None:
    """Load what the commands that tests kill may need."""
    from datafetch.process.allocator import (  # noqa: PLC0415 - found on the path that main() has set
        collect_garbage_rarely,
        return_freed_memory,
        without_blas_threads,
    )

    collect_garbage_rarely()
    return_freed_memory()  # before Arrow is loaded, as the command does
    without_blas_threads(os.environ)
    package = import_module("datafetch")
    for module in pkgutil.walk_packages(package.__path__, "datafetch."):
        if not module.name.startswith(_NOT_LOADED):
            import_module(module.name)


def _serve(channel: socket.socket) -> bool:
    """Fork for each command that is received; return True in a child, and False when there are no more."""
    while True:
        head, descriptors, _, _ = socket.recv_fds(channel, _LENGTH.size, 1)
        if not head:
            return False
        (stderr,) = descriptors
        command, environment = json.loads(_receive(channel, *_LENGTH.unpack(head)))
        assert len([*Path("/proc/self/task").iterdir()]) == 1, "a child would lack the other threads"
        child = os.fork()
        if not child:
            channel.close()
            _become(command, environment, stderr)
            return True
        os.close(stderr)
        channel.sendall(_NUMBER.pack(child))
        status = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert status is not None
        code = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
        channel.sendall(_NUMBER.pack(code))
        if not channel.recv(len(_REAP)):
            return False
        os.waitpid(child, 0)


def _become(command: list[str], environment: dict[str, str], stderr: int) -> None:
    """Take the arguments, the environment and the standard error of a command."""
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(stderr, 2)
    os.close(stderr)
    sys.orig_argv[:] = command
    sys.argv[:] = command[2:]
    if environment.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()
    if library := environment.get("LD_PRELOAD"):
        ctypes.CDLL(library).begin()
    for folder in filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)):
        hook = Path(folder, "sitecustomize.py")
        if hook.exists():
            runpy.run_path(str(hook))


def main() -> int:
    """Serve; in a child, run its command and return its exit code."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    sys.path[0] = str(Path.cwd())  # as for python -m; it was the folder of this file
    _load()
    gc.freeze()
    if not _serve(channel):
        return 0
    return import_module("datafetch.__main__").main()  # type: ignore[no-any-return]


if __name__ == "__main__":
    sys.exit(main())
