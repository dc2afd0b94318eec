"""The fork server: a small process that has loaded the codec, and forks a worker whenever the parent asks for one.

Theory of operation. A worker must be replaced within milliseconds, and a fresh interpreter with Pillow takes a third of
a second. Forking the parent itself is no option: it has threads, an event loop, and the network stack. So the parent
starts this server once, and the server forks all workers.

The server goes through three states. It is *starting* until it has read its ``Startup`` message and loaded Pillow. Then
it is *serving*: it waits for commands and for the end of its workers, and touches no image. It *ends* when its standard
input does. That is the socket to the parent, which carries a u32 length and the pickled ``Startup``, and then::

    parent   F + u32 number, with three descriptors: fork a worker with this channel and these two shared buffers
             K + u32 number: kill that worker
    server   u32 number + i32 status: that worker ended. A status from 0 on is an exit status, a negative one is a
             signal, and from FORK_FAILED on it is an errno: the fork failed

The parent chooses the numbers and never uses one twice. For each F it gets exactly one status, unless the server ends
first. A K for a worker that has ended is ignored, so the parent may send it at any time. Commands and statuses have a
fixed size and are sent one at a time, so the stream can't get out of step.

Rules: the server imports Pillow but not the network stack, and has one thread, so that forking is safe. It dies with
its parent, however that ends, and its workers die with it, so there are no orphans.
"""

from __future__ import annotations

import errno
import gc
import os
import pickle
import select
import signal
import socket
import struct
import traceback
import warnings
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn

from datafetch.errors import is_exhaustion
from datafetch.process.allocator import without_blas_threads
from datafetch.process.child import end_with_parent
from datafetch.transcode.pool.protocol import U32, Codec, Startup
from datafetch.transcode.pool.shared_buffer import SharedBuffer
from datafetch.transcode.pool.worker import OUT_OF_MEMORY_STATUS, Worker

COMMAND = struct.Struct("<cI")
FORK, KILL = b"F", b"K"
STATUS = struct.Struct("<Ii")
FORK_FAILED = 10_000
DESCRIPTORS_PER_FORK = 3

_STDERR = 2
_MAX_DESCRIPTORS_WITHOUT_PROC = 4096


def main() -> None:
    """Serve the parent, whose socket is standard input, until it closes the socket or ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent handles them, even if the whole group receives them
        signal.signal(number, signal.SIG_IGN)
    # uvloop leaves duplicates of standard input open in its children; with a copy of a socket, its end is never seen.
    _close_inherited_descriptors()
    _open_standard_streams()
    with socket.socket(fileno=os.dup(0)) as control:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        try:
            length = U32.unpack(_receive_exactly(control, U32.size))[0]
            startup: Startup = pickle.loads(_receive_exactly(control, length))  # noqa: S301 - our own parent wrote it
        except (EOFError, ConnectionError):  # the parent is gone already
            return
        _die_with(startup.parent_pid)
        startup = replace(startup, codec=_load_codec(startup))
        gc.freeze()  # keeps the pages of what is loaded now shared between all workers
        server = ForkServer(control, startup)
        try:
            server.run()
        finally:
            server.end_all()


class ForkServer:
    """Forks workers, and reports how they end.

    Args:
        control: The socket to the parent.
        startup: What the workers do.
    """

    def __init__(self, control: socket.socket, startup: Startup) -> None:
        self._control = control
        self._startup = startup
        self._pid = os.getpid()
        self._pids: dict[int, int] = {}
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_writer.setblocking(False)

    def run(self) -> None:
        """Serve until the parent is gone."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake_reader, select.POLLIN)
        with suppress(EOFError, ConnectionError):
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if self._wake_reader.fileno() in ready:
                    self._wake_reader.recv(4096)
                    self._reap()
                if self._control.fileno() in ready:
                    self._handle_command()

    def end_all(self) -> None:
        """Kill every worker and wait until it is gone."""
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids.values():
            os.waitpid(pid, 0)

    def _handle_command(self) -> None:
        command, descriptors, _, _ = socket.recv_fds(self._control, COMMAND.size, DESCRIPTORS_PER_FORK)
        if len(command) < COMMAND.size:
            raise EOFError
        kind, number = COMMAND.unpack(command)
        if kind == FORK:
            self._fork(number, descriptors)
        elif number in self._pids:  # otherwise it has ended meanwhile
            os.kill(self._pids[number], signal.SIGKILL)

    def _fork(self, number: int, descriptors: list[int]) -> None:
        if len(descriptors) < DESCRIPTORS_PER_FORK:  # the kernel drops those that exceed this process's limit
            self._report(number, FORK_FAILED + errno.EMFILE)
        else:
            try:
                pid = os.fork()
            except OSError as error:
                self._report(number, FORK_FAILED + (error.errno or 0))
            else:
                if pid == 0:
                    self._run_worker(descriptors)
                self._pids[number] = pid
        for descriptor in descriptors:
            os.close(descriptor)

    def _run_worker(self, descriptors: list[int]) -> NoReturn:
        """Be a worker, in the forked process, and never return."""
        status = 1
        original_stderr = None
        try:
            _die_with(self._pid)
            original_stderr = os.dup(2)
            # The libraries below Pillow write remarks about the file there; the outcome says all that matters.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for server_socket in (self._control, self._wake_reader, self._wake_writer):
                server_socket.close()
            channel, *memory = descriptors
            buffers = [SharedBuffer(fd) for fd in memory]
            for fd in memory:
                os.close(fd)
            Worker(socket.socket(fileno=channel), buffers, self._startup).run()
            status = 0
        except BaseException as error:  # noqa: BLE001 - no exception may continue in the server's code
            if is_exhaustion(error):
                status = OUT_OF_MEMORY_STATUS
            else:
                if original_stderr is not None:
                    os.dup2(original_stderr, 2)
                traceback.print_exc()
        finally:
            os._exit(status)

    def _reap(self) -> None:
        for number, pid in list(self._pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._pids[number]
                self._report(number, os.waitstatus_to_exitcode(status))

    def _report(self, number: int, status: int) -> None:
        self._control.sendall(STATUS.pack(number, status))


def _close_inherited_descriptors() -> None:
    """Close every descriptor except the standard streams."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 - numbers of descriptors
    except OSError:
        numbers = list(range(_MAX_DESCRIPTORS_WITHOUT_PROC))
    for fd in numbers:
        if fd > _STDERR:
            with suppress(OSError):  # the descriptor of the listing itself is closed already
                os.close(fd)


def _open_standard_streams() -> None:
    """Open /dev/null as standard output and error where the parent had closed them.

    Otherwise the next descriptor gets the number: a socket with number 2, for example, would receive tracebacks.
    """
    for fd in (1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def _die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, even if that is killed; it may be gone already."""
    end_with_parent()
    if os.getppid() != parent_pid:
        os._exit(1)


def _load_codec(startup: Startup) -> Codec:
    """Load and set up what all workers need, and return what they do with a body."""
    # A parent that imports this module stays free of Pillow.
    from PIL import AvifImagePlugin, Image  # noqa: PLC0415

    from datafetch.transcode.codec import transcode  # noqa: PLC0415
    from datafetch.transcode.image import rust_png, turbo_jpeg  # noqa: PLC0415
    from datafetch.transcode.image.resize import load_resizer  # noqa: PLC0415

    load_resizer(startup.spec)  # here, since workers can't read files
    Image.MAX_IMAGE_PIXELS = None  # the spec has its own limit, which is checked from the header
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is a process for each core already
    Image.init()
    warnings.simplefilter("ignore")  # Pillow's warnings about a file add nothing to the outcome
    kept = set(os.environ)
    without_blas_threads(os.environ)  # both load numpy, which reads it once
    turbo_jpeg.gives_pillows_pixels()  # here, and not in each worker
    rust_png.gives_pillows_pixels()
    for name in os.environ.keys() - kept:
        del os.environ[name]
    return startup.codec or transcode


def _receive_exactly(control: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = control.recv(length - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
