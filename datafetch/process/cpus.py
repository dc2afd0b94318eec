"""How many CPUs this process may use: its affinity, and the quota of its control group."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_V1_FOLDERS = ("cpu,cpuacct", "cpu")


def available_cpus() -> int:
    """The number of CPUs that this process may use, at least 1; a part of one counts as one."""
    cpus = len(os.sched_getaffinity(0))
    return cpus if _QUOTA is None else max(1, min(cpus, math.ceil(_QUOTA)))


def read_quota(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float | None:
    """The smallest quota of the control groups that this process is in, in CPUs; None if none has one.

    Args:
        cgroups: Where the control groups are mounted.
        membership: Says in which of them this process is.
    """
    quota = min(_quotas(cgroups, membership), default=math.inf)
    return quota if quota < math.inf else None


def _quotas(cgroups: Path, membership: Path) -> list[float]:
    """The quotas, in CPUs, of the control groups of this process and of those that these are in."""
    quotas: list[float] = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return quotas
    for line in lines:
        _, controllers, path = line.split(":", 2)
        inner = Path(path.lstrip("/"))
        if not controllers:  # version 2
            quotas += (_read_v2(cgroups / folder) for folder in (inner, *inner.parents))
        elif "cpu" in controllers.split(","):
            quotas += (
                _read_v1(cgroups / mounted / folder) for mounted in _V1_FOLDERS for folder in (inner, *inner.parents)
            )
    return quotas


def _read_v2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _read_v1(folder: Path) -> float:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return math.inf if quota <= 0 else quota / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


_QUOTA = read_quota()  # once, since no event loop runs yet that it could block
