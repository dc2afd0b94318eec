"""The sandbox of a codec process: whoever takes over a decoder finds no files, no network, and no rights.

Rules: it is closed when everything that the codec needs is loaded, and before the first stranger's body is there; it
can't be opened again. What the kernel lacks is left out, for images that can be had are to be had on old systems, too.
Landlock (Linux 5.13) denies files, and by its version TCP, abstract sockets and signals to others; seccomp denies what
is not Landlock's to deny.

No library: those for Landlock on PyPI are young or not released, and those for seccomp need libseccomp on the machine;
what is used here of both is a few system calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

MAX_DESCRIPTORS = 64
"""So many descriptors may a codec process have; it needs a dozen."""

KEPT_VARIABLES = frozenset({"LANG", "LANGUAGE"})
KEPT_PREFIXES = ("PYTHON", "LC_", "LD_", "MALLOC_", "GLIBC_TUNABLES", "PILLOW_", "COVERAGE_", "DATAFETCH_")
"""What of the environment Python, its libraries and their allocator go by; nothing else comes to a codec process."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_GET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 21, 38, 47, 4  # <linux/prctl.h>
_CAPABILITIES_V3 = 0x20080522  # <linux/capability.h>

_CREATE_RULESET, _RESTRICT_SELF, _GET_VERSION = 444, 446, 1  # <linux/landlock.h>; the same numbers on every machine
# From which version on each word of the rules is known, and what of it is denied.
_DENIED_FILES = ((1, 0x1FFF), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
_DENIED_TCP = (4, 0b11)  # bind, connect
_SCOPED = (6, 0b11)  # abstract sockets and signals of processes outside

_SET_MODE_FILTER, _SPEC_ALLOW = 1, 4  # <linux/seccomp.h>: without the flag, older kernels slow the decoder down
_LOAD, _EQUAL, _AT_LEAST, _HAS_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # <linux/bpf_common.h>
_CALL_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # struct seccomp_data; of an argument, the lower half
_ALLOW, _DENY, _MISSING = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_CLONE_THREAD = 0x10000  # <linux/sched.h>
_OTHER_ABI = 0x40000000  # x32: the same calls by other numbers


@dataclass(frozen=True, slots=True)
class _Machine:
    """How a kind of machine numbers its system calls.

    Attributes:
        architecture: Its number in seccomp's words.
        seccomp: The call that sets a filter.
        prlimit: The call that sets limits, of any process of the same user.
        clone: The call that makes threads and processes.
        denied: What only somebody who has taken over a decoder would call, by what it reaches.
    """

    architecture: int
    seccomp: int
    prlimit: int
    clone: int
    denied: Mapping[str, tuple[int, ...]]


_CLONE3 = 435  # its flags lie in memory, where a filter can't look; C libraries fall back to clone
_MACHINES = {
    "x86_64": _Machine(
        architecture=0xC000003E,
        seccomp=317,
        prlimit=302,
        clone=56,
        denied={
            "network": (41, 425),  # socket, io_uring_setup
            "programs": (59, 322),  # execve, execveat
            "processes": (57, 58),  # fork, vfork
            "others' memory": (
                101,
                310,
                311,
                312,
                440,
                256,
                279,
            ),  # ptrace, process_vm_*, kcmp, process_madvise
            "others' descriptors": (434, 424, 438),  # pidfd_open, pidfd_send_signal, pidfd_getfd
            "others' scheduling": (141, 142, 144, 203, 314, 251),  # setpriority, sched_set*, ioprio_set
            "System V": (29, 30, 31, 64, 65, 66, 220, 68, 69, 70, 71),  # shm*, sem*, msg*
            "POSIX queues": (240, 241),  # mq_open, mq_unlink
            "keyrings": (248, 249, 250),  # add_key, request_key, keyctl
            "namespaces": (272, 308, 155, 161, 165, 166),  # unshare, setns, pivot_root, chroot, mount, umount2
            "the kernel": (
                321,
                298,
                323,
                304,
                175,
                313,
                246,
            ),  # bpf, perf_event_open, userfaultfd, modules
        },
    ),
    "aarch64": _Machine(
        architecture=0xC00000B7,
        seccomp=277,
        prlimit=261,
        clone=220,
        denied={
            "network": (198, 425),
            "programs": (221, 281),
            "others' memory": (117, 270, 271, 272, 440, 238, 239),
            "others' descriptors": (434, 424, 438),
            "others' scheduling": (140, 118, 119, 122, 274, 30),
            "System V": (194, 196, 195, 190, 193, 191, 192, 186, 189, 188, 187),
            "POSIX queues": (180, 181),
            "keyrings": (217, 218, 219),
            "namespaces": (97, 268, 41, 51, 40, 39),
            "the kernel": (280, 241, 282, 265, 105, 273, 104),
        },
    ),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def kept_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of an environment comes to processes that decode: no keys to clouds, no proxies, no agents."""
    return {
        name: value for name, value in environment.items() if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)
    }


def shut_in(max_file_bytes: int) -> None:
    """Close the sandbox around this process, for good.

    Args:
        max_file_bytes: The most that its shared memory may grow to.
    """
    _lower(resource.RLIMIT_NOFILE, MAX_DESCRIPTORS)
    _lower(resource.RLIMIT_FSIZE, max_file_bytes)
    with suppress(AttributeError):  # another C library
        _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _deny_files_and_tcp()
        _drop_capabilities()
        _deny_calls()


def _lower(limit: int, most: int) -> None:
    _, hard = resource.getrlimit(limit)
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(limit, (value, value))


def _drop_capabilities() -> None:
    _LIBC.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _LIBC.capset(struct.pack("=Ii", _CAPABILITIES_V3, 0), bytes(24))


def gaps() -> tuple[str, ...]:
    """What a decoder in the sandbox could still reach, for this machine has no means against it; for the log."""
    version = _landlock_version()
    found = []
    if version < 1:
        found.append("files (no Landlock)")
    if version < _SCOPED[0]:
        found.append(f"signals to other processes of the same user (Landlock {_SCOPED[0]} would deny them)")
    if _machine() is None or not _has_seccomp():
        found.append("network, programs, and limits and memory of other processes of the same user (no seccomp filter)")
    return tuple(found)


def _landlock_version() -> int:
    with suppress(AttributeError):  # another C library
        version: int = _LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _GET_VERSION)
        return max(0, version)
    return 0


def _has_seccomp() -> bool:
    with suppress(AttributeError):
        has_it: bool = _LIBC.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) >= 0
        return has_it
    return False


def _machine() -> _Machine | None:
    return _MACHINES.get(os.uname().machine) if sys.maxsize > 2**32 else None


def _deny_files_and_tcp() -> None:
    version = _landlock_version()
    if version < 1:
        return
    files = sum(denied for since, denied in _DENIED_FILES if version >= since)
    words = [files, *(denied for since, denied in (_DENIED_TCP, _SCOPED) if version >= since)]
    rules = struct.pack(f"={len(words)}Q", *words)
    descriptor = _LIBC.syscall(_CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), 0)
    if descriptor >= 0:
        _LIBC.syscall(_RESTRICT_SELF, descriptor, 0)
        os.close(descriptor)


def _deny_calls() -> None:
    machine = _machine()
    if machine is None:
        return
    denied = [number for numbers in machine.denied.values() for number in numbers]
    steps: list[tuple[int, int, str, str]] = [  # code, value, and where to go on if it is so, and if not
        (_LOAD, _ARCHITECTURE, "", ""),
        (_EQUAL, machine.architecture, "", "deny"),
        (_LOAD, _CALL_NUMBER, "", ""),
        (_AT_LEAST, _OTHER_ABI, "deny", ""),
        *((_EQUAL, number, "deny", "") for number in denied),
        (_EQUAL, machine.prlimit, "own limits", ""),
        (_EQUAL, machine.clone, "threads", ""),
        (_EQUAL, _CLONE3, "missing", ""),
        (_RETURN, _ALLOW, "", ""),
    ]
    labels = {"own limits": len(steps), "threads": len(steps) + 2, "allow": len(steps) + 4}
    steps += [
        (_LOAD, _FIRST_ARGUMENT, "", ""),
        (_EQUAL, 0, "allow", "deny"),  # 0 is this process
        (_LOAD, _FIRST_ARGUMENT, "", ""),
        (_HAS_BIT, _CLONE_THREAD, "allow", "deny"),
        (_RETURN, _ALLOW, "", ""),
        (_RETURN, _DENY, "", ""),
        (_RETURN, _MISSING, "", ""),
    ]
    labels |= {"deny": len(steps) - 2, "missing": len(steps) - 1}
    code = b"".join(
        struct.pack("=HBBI", code, *(labels[label] - at if label else 0 for label in (if_so, if_not)), value)
        for at, (code, value, if_so, if_not) in enumerate(steps, 1)
    )
    program = _Program(len(steps), code)
    if _LIBC.syscall(machine.seccomp, _SET_MODE_FILTER, _SPEC_ALLOW, ctypes.byref(program)):
        _LIBC.syscall(machine.seccomp, _SET_MODE_FILTER, 0, ctypes.byref(program))  # before Linux 4.17
