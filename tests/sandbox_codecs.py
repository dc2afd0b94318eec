"""A codec that does what an attacker would do after compromising a decoder, and returns how it went."""

import ctypes
import mmap
import os
import resource
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from datafetch.model.outcome import Encoded, Outcome
from datafetch.transcode.spec import ImageSpec

DONE = b"done"


def attempt(body: bytes, spec: ImageSpec) -> Outcome:
    """Make the attempt that the body names; its argument follows after a space."""
    del spec
    name, _, argument = body.partition(b" ")
    try:
        answer = ATTEMPTS[name](os.fsdecode(argument))
    except (OSError, ValueError) as error:
        answer = type(error).__name__.encode()
    return Encoded(answer if isinstance(answer, bytes) else DONE, 1, 1, "ECHO")


def _connect(family: socket.AddressFamily, address: tuple[str, int] | str) -> None:
    with socket.socket(family) as client:
        client.settimeout(5)
        client.connect(address)


def _send(port: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"secrets", ("127.0.0.1", int(port)))


def _link_to(path: str) -> None:
    Path(path).with_suffix(".link").symlink_to(path)


def _open_many_descriptors(_: str) -> None:
    for _number in range(100):
        os.dup(0)


def _grow(_: str) -> None:
    os.ftruncate(os.memfd_create("test"), 1 << 40)


def _capabilities(_: str) -> bytes:
    data = ctypes.create_string_buffer(24)
    ctypes.CDLL(None).capget(struct.pack("=Ii", 0x20080522, 0), data)
    return b"%d" % sum(data.raw)


def _environment(_: str) -> bytes:
    return b" ".join(sorted(map(os.fsencode, os.environ)))


def _privileges(_: str) -> bytes:
    return b"%d" % ctypes.CDLL(None).prctl(39, 0, 0, 0, 0)  # PR_GET_NO_NEW_PRIVS


def _limits(_: str) -> bytes:
    return b"%d" % resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def _limit_of_parent(_: str) -> None:
    resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))


def _fork(_: str) -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def _call(number: int, *arguments: int) -> Callable[[str], None]:
    def call(_: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), "refused")

    return call


def _thread(_: str) -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


_IS_X86 = os.uname().machine == "x86_64"

ATTEMPTS: Mapping[bytes, Callable[[str], object]] = {
    b"read": lambda path: len(Path(path).read_bytes()),
    b"list": os.listdir,
    b"write": lambda path: Path(path).write_bytes(b"x"),
    b"create": lambda path: Path(path + ".new").touch(),
    b"delete": lambda path: Path(path).unlink(),
    b"rename": lambda path: Path(path).rename(path + ".away"),
    b"link": _link_to,
    b"environ-of-parent": lambda _: len(Path(f"/proc/{os.getppid()}/environ").read_bytes()),
    b"memory-of-parent": lambda _: os.close(os.open(f"/proc/{os.getppid()}/mem", os.O_RDWR)),
    b"run": lambda _: subprocess.run(["/bin/true"], check=True),
    b"tcp": lambda port: _connect(socket.AF_INET, ("127.0.0.1", int(port))),
    b"udp": _send,
    b"unix": lambda path: _connect(socket.AF_UNIX, path),
    b"abstract": lambda name: _connect(socket.AF_UNIX, f"\0{name}"),
    b"signal": lambda pid: os.kill(int(pid), 0),
    b"more-limits": lambda _: resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000)),
    b"descriptors": _open_many_descriptors,
    b"grow": _grow,
    b"limit-of-parent": _limit_of_parent,
    b"fork": _fork,
    b"thread": _thread,
    b"shared-memory": _call(29 if _IS_X86 else 194, 0, 4096, 0o1600),  # shmget, private
    b"keyring": _call(250 if _IS_X86 else 219, 0, -4, 1),  # keyctl: the user's keyring
    b"namespace": _call(272 if _IS_X86 else 97, 0x10000000),  # unshare: a user's
    b"capabilities": _capabilities,
    b"environment": _environment,
    b"own-environ": lambda _: Path("/proc/self/environ").read_bytes(),
    b"privileges": _privileges,
    b"limits": _limits,
    b"map": lambda _: mmap.mmap(-1, 1 << 20).close(),
}
