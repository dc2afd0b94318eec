"""One run of one contestant, measured from the start of its command to its end."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.meter import MIB, Role, watch
from benchmarks.record import OTHERS_SHARE, Run, RunKind
from benchmarks.rivals.contestants import CPU_S, ELAPSED_S, Contestant
from benchmarks.rivals.webs import Served
from benchmarks.rivals.work import Work
from datafetch.model.outcome import OK

DETAILS = ("cpu_ms", "parent_cpu_ms", "peak_mib", "requests", OTHERS_SHARE)
"""The details of a run: all CPU milliseconds of the command for each good image, those of its first process, the peak
memory of all its processes, with shared pages counted once, and the number of requests that the origin saw."""

_INTERVAL_S = 0.2


def measure(contestant: Contestant, work: Work, out: Path, *, case: str, kind: RunKind, served: Served) -> Run:
    """Let a contestant do the work, and delete what it wrote.

    Args:
        contestant: Whom to measure.
        work: The work.
        out: A folder that does not exist.
        case: The name of the case.
        kind: What the run is for.
        served: The web that the URLs lead to.

    Returns:
        A run whose value is the number of good images a second.

    Raises:
        subprocess.CalledProcessError: The command failed.
    """
    requests_before = served.requests()
    try:
        command = contestant.command(work, out)
        environment = {**work.environment, **contestant.environment()}
        usage = watch(command, interval_s=_INTERVAL_S, environment=environment)
        outcomes = contestant.outcomes(usage.stdout, out)
        clock = {ELAPSED_S: usage.elapsed_s, CPU_S: usage.whole_cpu_s, **contestant.own_clock(usage.stdout, out)}
    finally:
        shutil.rmtree(out, ignore_errors=True)
    good = outcomes.get(OK, 0)
    details = {
        "cpu_ms": _per_image_ms(clock[CPU_S], good),
        "parent_cpu_ms": _per_image_ms(usage.cpu_s[Role.PARENT], good),
        "codec_cpu_ms": _per_image_ms(usage.cpu_s[Role.CODEC], good),
        "commit_cpu_ms": _per_image_ms(usage.cpu_s[Role.COMMIT], good),
        ELAPSED_S: clock[ELAPSED_S],
        "peak_mib": usage.total_peak_pss_bytes / MIB,
        "peak_rss_mib": usage.total_peak_bytes / MIB,
        "requests": served.requests() - requests_before,
        OTHERS_SHARE: usage.others_share * 100,
    }
    return Run(case, kind, good / clock[ELAPSED_S], details, outcomes)


def _per_image_ms(cpu_s: float, images: int) -> float:
    return cpu_s / images * 1000 if images else 0.0
