"""Codecs for the pool's tests that misbehave on demand; workers import them from this module."""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from datafetch.model.outcome import Encoded, Outcome
from datafetch.transcode.codec import transcode
from datafetch.transcode.image import rust_png, turbo_jpeg
from datafetch.transcode.spec import ImageSpec


def echo(body: bytes, _: ImageSpec) -> Outcome:
    """Return the body itself, after doing what the body asks for."""
    if body in _MISDEEDS:
        _MISDEEDS[body]()
    match body.partition(b" "):
        case b"pid", _, _:
            return Encoded(str(os.getpid()).encode(), 1, 1, "ECHO")
        case b"until", _, path:  # wait until that file exists
            while not Path(os.fsdecode(path)).exists():
                time.sleep(0.001)
        case b"crash-once", _, path:
            _crash_once(path)
        case b"crash-once-then-wait", _, path:  # say so, and wait until that file exists
            _crash_once(path + b".crashed")
            Path(os.fsdecode(path + b".waits")).touch()
            while not Path(os.fsdecode(path)).exists():
                time.sleep(0.001)
    return Encoded(body, 1, 1, "ECHO")


def _sleep() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])
    while True:
        time.sleep(60)


def _spin() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)  # on a busy machine its wall-clock limit could pass before its CPU limit
    while True:
        pass


def _exhaust_memory() -> None:
    allocated = []
    while True:
        allocated.append(bytes(1 << 26))


def _raise() -> None:
    raise RuntimeError("a bug in the codec")


def _write_stderr() -> None:
    os.write(2, b"libtiff: what a file!\n")


def _close_channel() -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for fd in _descriptors("socket:"):
        os.close(fd)
    while True:
        time.sleep(60)


def _leave_child() -> None:
    if os.fork() == 0:
        time.sleep(3)
        os._exit(0)
    os._exit(3)


def _enlarge_buffers() -> None:
    for fd in _descriptors("datafetch-buffer"):
        os.ftruncate(fd, 2**62)


def _descriptors(kind: str) -> list[int]:
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 - names
    return [int(link.name) for link in links if link.is_symlink() and kind in str(link.readlink())]


def _kill_server() -> None:
    _reply_invalid()
    os.kill(os.getppid(), signal.SIGKILL)


def _stop_server() -> None:
    os.kill(os.getppid(), signal.SIGSTOP)
    os._exit(7)


def _reply_invalid() -> None:
    for fd in _descriptors("socket:"):
        os.write(fd, b"\x03\0\0\0[]]")


# What hostile images may do to the process that decodes them.
_MISDEEDS: Mapping[bytes, Callable[[], object]] = {
    b"exit": lambda: os._exit(7),
    b"segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    b"spin": _spin,
    b"sleep": _sleep,
    b"exhaust memory": _exhaust_memory,
    b"invalid reply": _reply_invalid,
    b"raise": _raise,
    b"unnamed signal": lambda: os.kill(os.getpid(), 40),
    b"stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    b"close": _close_channel,
    b"leave child": _leave_child,
    b"enlarge buffers": _enlarge_buffers,
    b"kill server": _kill_server,
    b"stop server": _stop_server,
    b"write stderr": _write_stderr,
}


def _crash_once(path: bytes) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os._exit(7)


def poisoned(body: bytes, spec: ImageSpec) -> Outcome:
    """Transcode like the real codec, except for bodies that end their process at once."""
    if body == b"exit":
        os._exit(7)
    return transcode(body, spec)


def unloadable(body: bytes, spec: ImageSpec) -> Outcome:
    """Stand for a codec that pickles in the parent and can't be loaded in the fork server."""
    raise AssertionError(body, spec)


if os.environ.get("DATAFETCH_TEST_UNLOADABLE"):
    del unloadable


def without_wall_clock(body: bytes, spec: ImageSpec) -> Outcome:
    """The real codec with its CPU limit alone: on a busy machine, the wall-clock limit could pass first."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    return transcode(body, spec)


def optional_decoders(_body: bytes, _spec: ImageSpec) -> Outcome:
    """Return which optional decoders were loaded, and compared with Pillow how many times, before this image."""
    states = [
        f"{name} {'loaded' if name in sys.modules else 'missing'}, "
        f"compared {decoder.gives_pillows_pixels.cache_info().misses} time"
        for name, decoder in (("simplejpeg", turbo_jpeg), ("kornia_rs", rust_png))
    ]
    return Encoded("; ".join(states).encode(), 1, 1, "ECHO")
