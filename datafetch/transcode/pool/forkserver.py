"""The fork server: one small process that has loaded the codec, and forks a codec process of it whenever asked.

Rules: it imports Pillow and never the network, has one thread, and touches no image. It ends when its parent does,
however that ends, and its codec processes end when it does. So replacing a codec process takes milliseconds, not the
third of a second of a fresh interpreter, and there are no orphans.

Standard input is the socket to the parent. It begins with the orders: a u32 length and a pickle. From then on::

    parent   F + u32 number, with three descriptors: fork a codec process, with this channel and these two trays
             K + u32 number: kill that one
    server   u32 number + i32 status: that one ended; positive is an exit status, negative a signal, from
             FORK_FAILED on an errno: it never began
"""

from __future__ import annotations

import ctypes
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
from typing import NoReturn

from datafetch.errors import is_want
from datafetch.transcode.pool.protocol import U32, Startup
from datafetch.transcode.pool.shared_buffer import SharedBuffer
from datafetch.transcode.pool.worker import OUT_OF_MEMORY_STATUS, CodecProcess

COMMAND = struct.Struct("<cI")
FORK, KILL = b"F", b"K"
END = struct.Struct("<Ii")
FORK_FAILED = 10_000
DESCRIPTORS = 3

_STDERR = 2
_DESCRIPTORS_WITHOUT_PROC = 4096
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main() -> None:
    """Serve the parent that left its socket as standard input, until that closes it or ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # for the parent alone, also where all of its processes get them
        signal.signal(number, signal.SIG_IGN)
    # uvloop leaves duplicates of standard input open in its children; a copy of a socket keeps it from ever ending.
    _close_inherited()
    _open_standard_streams()
    with socket.socket(fileno=os.dup(0)) as control:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        try:
            length = U32.unpack(_receive_exactly(control, U32.size))[0]
            orders: Startup = pickle.loads(_receive_exactly(control, length))  # noqa: S301 - our own parent wrote it
        except (EOFError, ConnectionError):  # the parent is gone already
            return
        _die_with(orders.parent_pid)
        _prepare_pillow()
        gc.freeze()  # what is there now stays shared between all that are forked
        server = ForkServer(control, orders)
        try:
            server.run()
        finally:
            server.end_all()


class ForkServer:
    """Forks codec processes, and tells how they end.

    Args:
        control: The socket to the parent.
        orders: What the codec processes do.
    """

    def __init__(self, control: socket.socket, orders: Startup) -> None:
        self._control = control
        self._orders = orders
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
                    self._obey()

    def end_all(self) -> None:
        """Kill every codec process and see it gone."""
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids.values():
            os.waitpid(pid, 0)

    def _obey(self) -> None:
        command, descriptors, _, _ = socket.recv_fds(self._control, COMMAND.size, DESCRIPTORS)
        if len(command) < COMMAND.size:
            raise EOFError
        kind, number = COMMAND.unpack(command)
        if kind == FORK:
            self._fork(number, descriptors)
        elif number in self._pids:  # or it ended meanwhile
            os.kill(self._pids[number], signal.SIGKILL)

    def _fork(self, number: int, descriptors: list[int]) -> None:
        if len(descriptors) < DESCRIPTORS:  # the kernel drops what this process has no room for
            self._tell(number, FORK_FAILED + errno.EMFILE)
        else:
            try:
                pid = os.fork()
            except OSError as error:
                self._tell(number, FORK_FAILED + (error.errno or 0))
            else:
                if pid == 0:
                    self._be_codec_process(descriptors)
                self._pids[number] = pid
        for descriptor in descriptors:
            os.close(descriptor)

    def _be_codec_process(self, descriptors: list[int]) -> NoReturn:
        """Work as a codec process, and never return."""
        status = 1
        complaints = None
        try:
            _die_with(self._pid)
            complaints = os.dup(2)
            # Libraries below Pillow write what they think of a stranger's file there; the outcome says it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for ours in (self._control, self._wake_reader, self._wake_writer):
                ours.close()
            channel, *memory = descriptors
            buffers = [SharedBuffer(fd) for fd in memory]
            for fd in memory:
                os.close(fd)
            CodecProcess(socket.socket(fileno=channel), buffers, self._orders).run()
            status = 0
        except BaseException as error:  # noqa: BLE001 - whatever it is, it must not run the server's loop a second time
            if is_want(error):
                status = OUT_OF_MEMORY_STATUS
            else:
                if complaints is not None:
                    os.dup2(complaints, 2)
                traceback.print_exc()
        finally:
            os._exit(status)

    def _reap(self) -> None:
        for number, pid in list(self._pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._pids[number]
                self._tell(number, os.waitstatus_to_exitcode(status))

    def _tell(self, number: int, status: int) -> None:
        self._control.sendall(END.pack(number, status))


def _close_inherited() -> None:
    """Close every descriptor but the standard ones."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 - numbers of descriptors
    except OSError:
        numbers = list(range(_DESCRIPTORS_WITHOUT_PROC))
    for fd in numbers:
        if fd > _STDERR:
            with suppress(OSError):  # the listing's own is closed already
                os.close(fd)


def _open_standard_streams() -> None:
    """Have something under the numbers of standard output and error, even where the parent had them closed."""
    for fd in (1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def _die_with(parent_pid: int) -> None:
    """Have the kernel end this process when that one ends, even if it is killed; it may be gone already."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def _prepare_pillow() -> None:
    from PIL import AvifImagePlugin, Image  # noqa: PLC0415 - a parent that imports this module stays free of Pillow

    Image.MAX_IMAGE_PIXELS = None  # the spec's own limit is checked from the header
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is a process for each core already
    Image.init()
    warnings.simplefilter("ignore")  # Pillow's remarks on strangers' files are nobody's news; the outcome says it


def _receive_exactly(control: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = control.recv(length - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
