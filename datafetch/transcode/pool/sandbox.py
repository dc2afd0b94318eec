"""The sandbox of a worker: an image that compromises a decoder gains no files, no network, and no privileges.

Rules: a worker enters the sandbox after everything that the codec needs is loaded, and before it receives its first
body, and can't leave it. Protections that the kernel lacks are left out, so that datafetch runs on old systems, too.
Landlock (Linux 5.13) denies access to files and, depending on its version, TCP, abstract sockets and signals to other
processes. seccomp denies what Landlock does not cover.

No library is used: those for Landlock on PyPI are young or unreleased, those for seccomp need libseccomp on the
machine, and only a few system calls of both are needed.
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
"""How many descriptors a worker may have open; it needs a dozen."""

KEPT_VARIABLES = frozenset({"LANG", "LANGUAGE"})
KEPT_PREFIXES = ("PYTHON", "LC_", "LD_", "MALLOC_", "GLIBC_TUNABLES", "PILLOW_", "COVERAGE_", "DATAFETCH_")
"""The environment variables that Python, its libraries and their allocator use; a worker gets no others."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_GET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 21, 38, 47, 4  # <linux/prctl.h>
_CAPABILITIES_V3 = 0x20080522  # <linux/capability.h>

_CREATE_RULESET, _RESTRICT_SELF, _GET_VERSION = 444, 446, 1  # <linux/landlock.h>; the same numbers on every machine
# Landlock's version that first knows the rights, and the bits of the rights that are denied.
_DENIED_FILES = ((1, 0x1FFF), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
_DENIED_TCP = (4, 0b11)  # bind, connect
_SCOPED = (6, 0b11)  # abstract sockets and signals of processes outside

_SET_MODE_FILTER, _SPEC_ALLOW = 1, 4  # <linux/seccomp.h>; without the flag, older kernels slow down the decoder
_LOAD, _EQUAL, _AT_LEAST, _HAS_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # <linux/bpf_common.h>
_CALL_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; an argument's lower half
_ALLOW, _DENY, _NO_SUCH_CALL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_CLONE_THREAD = 0x10000  # <linux/sched.h>
_OTHER_ABI = 0x40000000  # x32: the same calls by other numbers


@dataclass(frozen=True, slots=True)
class _Machine:
    """The numbers of system calls on one architecture.

    Attributes:
        architecture: The architecture's own number (``AUDIT_ARCH_*`` in <linux/audit.h>).
        seccomp: The call that sets a filter.
        prlimit: The call that sets limits, of any process of the same user.
        clone: The call that creates threads and processes.
        denied: The calls that only a compromised decoder would make, by what they reach.
    """

    architecture: int
    seccomp: int
    prlimit: int
    clone: int
    denied: Mapping[str, tuple[int, ...]]


_CLONE3 = 435  # its flags are in memory, which a filter can't read; C libraries fall back to clone
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
            # ptrace, process_vm_*, kcmp, process_madvise, migrate_pages, move_pages
            "memory of other processes": (101, 310, 311, 312, 440, 256, 279),
            "descriptors of other processes": (434, 424, 438),  # pidfd_open, pidfd_send_signal, pidfd_getfd
            "scheduling of other processes": (141, 142, 144, 203, 314, 251),  # setpriority, sched_set*, ioprio_set
            "System V": (29, 30, 31, 64, 65, 66, 220, 68, 69, 70, 71),  # shm*, sem*, msg*
            "POSIX queues": (240, 241),  # mq_open, mq_unlink
            "keyrings": (248, 249, 250),  # add_key, request_key, keyctl
            "namespaces": (272, 308, 155, 161, 165, 166),  # unshare, setns, pivot_root, chroot, mount, umount2
            # bpf, perf_event_open, userfaultfd, open_by_handle_at, init_module, finit_module, kexec_load
            "the kernel": (321, 298, 323, 304, 175, 313, 246),
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
            "memory of other processes": (117, 270, 271, 272, 440, 238, 239),
            "descriptors of other processes": (434, 424, 438),
            "scheduling of other processes": (140, 118, 119, 122, 274, 30),
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
    """Return the part of an environment that workers get: no cloud credentials, no proxies, no agents."""
    return {
        name: value for name, value in environment.items() if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)
    }


def enter_sandbox(max_file_bytes: int) -> None:
    """Put this process into the sandbox, for good.

    Args:
        max_file_bytes: How large its shared buffers may grow.
    """
    _lower(resource.RLIMIT_NOFILE, MAX_DESCRIPTORS)
    _lower(resource.RLIMIT_FSIZE, max_file_bytes)
    with suppress(AttributeError):  # another C library
        _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _deny_files_and_tcp()
        _drop_capabilities()
        _deny_calls()


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def _drop_capabilities() -> None:
    _LIBC.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _LIBC.capset(struct.pack("=Ii", _CAPABILITIES_V3, 0), bytes(24))


def missing_protections() -> tuple[str, ...]:
    """Describe what a compromised decoder could still reach, because this machine can't deny it; for the log."""
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
    # The filter as BPF instructions: code, value, and the label to jump to if the test is true and if it is false.
    steps: list[tuple[int, int, str, str]] = [
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
        (_RETURN, _NO_SUCH_CALL, "", ""),
    ]
    labels |= {"deny": len(steps) - 2, "missing": len(steps) - 1}
    code = b"".join(
        struct.pack("=HBBI", code, *(labels[label] - at if label else 0 for label in (if_so, if_not)), value)
        for at, (code, value, if_so, if_not) in enumerate(steps, 1)
    )
    program = _Program(len(steps), code)
    if _LIBC.syscall(machine.seccomp, _SET_MODE_FILTER, _SPEC_ALLOW, ctypes.byref(program)):
        _LIBC.syscall(machine.seccomp, _SET_MODE_FILTER, 0, ctypes.byref(program))  # before Linux 4.17
