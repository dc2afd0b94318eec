"""Meter: the CPU time of processes by role; watch(): run a command and measure it.

Rules: numbers come from the kernel's counters, which are read a few times a second, so that measuring costs next to
nothing and a reading is late by one interval at most. The share of other processes is part of the result, because it
tells how much noise there was.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryFile

import psutil

MIB = 1024**2


class Role(StrEnum):
    """What a process does."""

    BENCHMARK = "benchmark"
    ORIGIN = "origin"
    PARENT = "parent"
    CODEC = "codec"
    COMMIT = "commit"
    OTHER = "other"


_ROLE_BY_COMMAND = {
    "datafetch.demo.origin": Role.ORIGIN,
    "from benchmarks.host_farm import main": Role.ORIGIN,
    "nginx: ": Role.ORIGIN,
    "datafetch.transcode.pool.forkserver": Role.CODEC,
    "datafetch.output.commit_process": Role.COMMIT,
    "multiprocessing.spawn": Role.CODEC,
}
_PSS = re.compile(r"^Pss:\s*(\d+) kB$", re.MULTILINE)
_READINGS_PER_PSS = 5  # the kernel walks all pages for it
_PEAK_RSS = re.compile(r"^VmHWM:\s*(\d+) kB$", re.MULTILINE)


@dataclass(slots=True)
class _Seen:
    """The last reading of a process."""

    role: Role
    cpu_s: float
    cpu_before_s: float


class Meter:
    """Counts the CPU time of this process and its descendants, by role, since it was created.

    Args:
        parent: The id of the process that has the role ``PARENT``; None for none.
    """

    def __init__(self, parent: int | None = None) -> None:
        self._parent = parent
        self._seen: dict[int, _Seen] = {}
        self._started_s = time.perf_counter()
        self._busy_before_s = busy_s()
        self._busy_s = 0.0
        self._elapsed_s = 0.0
        for process in _family():
            self._note(process, is_new=False)

    def sample(self) -> None:
        """Read the counters."""
        for process in _family():
            self._note(process, is_new=True)
        self._busy_s = busy_s() - self._busy_before_s
        self._elapsed_s = time.perf_counter() - self._started_s

    def cpu_s(self) -> dict[Role, float]:
        """CPU seconds by role, up to the last sample."""
        spent: dict[Role, float] = dict.fromkeys(Role, 0.0)
        for seen in self._seen.values():
            spent[seen.role] += seen.cpu_s - seen.cpu_before_s
        return spent

    def others_share(self) -> float:
        """The share of the machine's CPU time, 0 to 1, that other processes took up to the last sample."""
        available_s = self._elapsed_s * (os.cpu_count() or 1)
        return max(0.0, self._busy_s - sum(self.cpu_s().values())) / available_s if available_s else 0.0

    def _note(self, process: psutil.Process, *, is_new: bool) -> None:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            cpu_s = times.user + times.system
            seen = self._seen.setdefault(process.pid, _Seen(Role.OTHER, cpu_s, 0.0 if is_new else cpu_s))
            seen.cpu_s = cpu_s
            if seen.role is Role.OTHER:  # between fork and exec, a process has its parent's command line
                seen.role = self._role(process)

    def _role(self, process: psutil.Process) -> Role:
        if process.pid == os.getpid():
            return Role.BENCHMARK
        if process.pid == self._parent:
            return Role.PARENT
        command = " ".join(process.cmdline())
        return next((role for word, role in _ROLE_BY_COMMAND.items() if word in command), Role.OTHER)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a command cost.

    Attributes:
        stdout: What it printed.
        parent_peak_bytes: The peak resident memory of its first process alone.
        total_peak_bytes: The peak resident memory of all its processes; shared pages count once for each process.
        total_peak_pss_bytes: The same, read less often, with shared pages counted once.
        descriptors_peak: The maximum number of descriptors that its first process had open.
        cpu_s: CPU seconds by role.
        whole_cpu_s: CPU seconds of its first process and of all descendants that were waited for, exactly.
        others_share: The share of the machine's CPU time that other processes took meanwhile, 0 to 1.
        elapsed_s: Wall-clock time from start to exit.
    """

    stdout: bytes
    parent_peak_bytes: int
    total_peak_bytes: int
    total_peak_pss_bytes: int
    descriptors_peak: int
    cpu_s: Mapping[Role, float]
    whole_cpu_s: float
    others_share: float
    elapsed_s: float


@dataclass(slots=True)
class _Peaks:
    parent_bytes: int = 0
    total_bytes: int = 0
    total_pss_bytes: int = 0
    descriptors: int = 0
    readings: int = 0

    def sample(self, parent: psutil.Process) -> None:
        with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            # ru_maxrss of wait4 is not used: it also counts the descendants that the process waited for, and its
            # parent's memory between fork and exec. VmHWM is that of the process alone.
            self.parent_bytes = max(self.parent_bytes, _peak_rss_bytes(parent.pid))
            self.descriptors = max(self.descriptors, parent.num_fds())
            self.total_bytes = max(self.total_bytes, sum(_rss_bytes(process) for process in _family(parent)))
            if self.readings % _READINGS_PER_PSS == 0:
                pss_bytes = sum(_pss_bytes(process.pid) for process in _family(parent))
                self.total_pss_bytes = max(self.total_pss_bytes, pss_bytes)
            self.readings += 1


def watch(command: Sequence[str], *, interval_s: float = 0.1, environment: Mapping[str, str] | None = None) -> Usage:
    """Run a command to its end, and measure it.

    Args:
        command: Program and arguments; what it prints must fit into a pipe (64 KiB).
        interval_s: Time between two readings.
        environment: What to add to this process's environment.

    Raises:
        subprocess.CalledProcessError: Its exit status was not 0; the error has its standard error as a note.
    """
    started_s = time.perf_counter()
    variables = {**os.environ, **(environment or {})}
    with (
        TemporaryFile() as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=variables) as process,
    ):
        meter, peaks = Meter(process.pid), _Peaks()
        for _ in _readings(process, interval_s):
            meter.sample()
            peaks.sample(psutil.Process(process.pid))
        _, wait_status, usage = os.wait4(process.pid, 0)
        status = process.returncode = os.waitstatus_to_exitcode(wait_status)
        elapsed_s = time.perf_counter() - started_s
        meter.sample()
        stdout = process.stdout.read() if process.stdout else b""
        if status:
            stderr.seek(0)
            error = subprocess.CalledProcessError(status, command, stdout, stderr.read())
            error.add_note(error.stderr.decode("utf-8", "replace"))
            raise error
    return Usage(
        stdout,
        peaks.parent_bytes,
        peaks.total_bytes,
        peaks.total_pss_bytes,
        peaks.descriptors,
        meter.cpu_s(),
        usage.ru_utime + usage.ru_stime,
        meter.others_share(),
        elapsed_s,
    )


def _readings(process: subprocess.Popen[bytes], interval_s: float) -> Iterator[None]:
    """Yield once an interval until the process has ended. It stays a zombie, so its id is not reused."""
    ended = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        while not poll.poll(interval_s * 1000):
            yield
    finally:
        os.close(ended)


def _family(process: psutil.Process | None = None) -> list[psutil.Process]:
    """A process, by default this one, and its descendants."""
    process = process or psutil.Process()
    return [process, *process.children(recursive=True)]


def _peak_rss_bytes(pid: int) -> int:
    match = _PEAK_RSS.search(Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) * 1024 if match else 0  # a zombie has none


def _rss_bytes(process: psutil.Process) -> int:
    with suppress(psutil.NoSuchProcess):
        return int(process.memory_info().rss)
    return 0


def _pss_bytes(pid: int) -> int:
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # it has ended, or changed its user
        match = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
        return int(match[1]) * 1024 if match else 0
    return 0


def busy_s() -> float:
    """CPU seconds that the whole machine has been busy since it was booted."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)
