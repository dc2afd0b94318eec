"""The number of CPUs: as many as the affinity has, or the quotas of control groups allow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from datafetch.process import cpus as cpus_module
from datafetch.process.cpus import available_cpus, read_quota


def write(path: Path, content: str) -> None:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.fixture
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 16 CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


@pytest.mark.usefixtures("many_cpus")
@pytest.mark.parametrize(
    ("membership", "files", "cpus"),
    [
        ("0::/\n", {}, 16),
        ("0::/\n", {"cpu.max": "max 100000"}, 16),
        ("0::/pod/box\n", {"pod/box/cpu.max": "max 100000", "pod/cpu.max": "250000 100000"}, 3),
        ("0::/pod/box\n", {"pod/box/cpu.max": "50000 100000", "pod/cpu.max": "800000 100000"}, 1),
        ("4:cpu,cpuacct:/box\n0::/\n", {"cpu,cpuacct/box/cpu.cfs_quota_us": "-1"}, 16),
        (
            "4:cpu,cpuacct:/box\n",
            {"cpu,cpuacct/box/cpu.cfs_quota_us": "400000", "cpu,cpuacct/box/cpu.cfs_period_us": "100000"},
            4,
        ),
        ("0::/box\n", {"box/cpu.max": "rubbish"}, 16),
        ("0::/box\n", {"box/cpu.max": "9900000 100000"}, 16),
    ],
)
def test_the_smallest_quota_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, files: dict[str, str], cpus: int
) -> None:
    """Of this group and of those around it; a part of a CPU counts as one."""
    write(tmp_path / "membership", membership)
    for name, content in files.items():
        write(tmp_path / "cgroups" / name, content)
    monkeypatch.setattr(cpus_module, "_QUOTA", read_quota(tmp_path / "cgroups", tmp_path / "membership"))
    assert available_cpus() == cpus


def test_there_is_no_quota_without_control_groups(tmp_path: Path) -> None:
    """Where there is no such file, as in some containers."""
    assert read_quota(tmp_path, tmp_path / "missing") is None
