"""What the benchmarks of hosts that misbehave have in common: how cases are run, and the targets for the fetcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.fetch.subprocess_client import DATAFETCH, CompletedWorkload, Workload, run_in_subprocess
from benchmarks.record import Record, Run, RunKind
from benchmarks.url_mix import OBTAINABLE, behaviour_of
from datafetch.fetch import FetchPolicy
from datafetch.model.outcome import OK

_MAX_RATIO = 1.25


def run_in_turn(
    cases: Mapping[str, Sequence[str]],
    policy: FetchPolicy,
    rounds: Sequence[RunKind],
    value: Callable[[CompletedWorkload], float],
) -> list[Run]:
    """Fetch the URLs of each case with datafetch, in each round all cases in turn, so that the machine drifts for all.

    Args:
        cases: The URLs of each case; they tell the behaviour of their hosts (``url_mix``).
        policy: The policy for all cases.
        rounds: What each round is for.
        value: Takes from a completed workload what the benchmark measures.

    Returns:
        The runs, with their outcomes by behaviour.
    """
    runs = []
    for kind in rounds:
        for case, urls in cases.items():
            done = run_in_subprocess(DATAFETCH, Workload(urls, policy))
            runs.append(Run(case, kind, value(done), done.details(), done.outcomes(behaviour_of)))
    return runs


def lost(runs: Sequence[Run]) -> int:
    """Count the images that could be had and did not arrive. Outcomes are counted by behaviour, as in ``good ok``."""
    count = 0
    for run in runs:
        for label, urls in run.outcomes.items():
            behaviour, _, outcome = label.partition(" ")
            count += urls if behaviour in OBTAINABLE and outcome != OK else 0
    return count


def time_claim(record: Record, case: str, base: str, patience_s: float) -> str:
    """Say in a line whether a case took at most 1.25 times as long as another, plus the time to detect bad hosts.

    Args:
        record: The record, in seconds.
        case: The case with bad hosts.
        base: The case without.
        patience_s: How long a client has to wait before it can know that a host is bad.
    """
    taken_s, base_s = record.median(case), record.median(base)
    allowed_s = _MAX_RATIO * base_s + patience_s
    return (
        f"{case}: {taken_s:.1f} s, {taken_s / base_s:.2f} × {base}; the last image came after "
        f"{record.median_detail(case, 'last_ok_s'):.1f} s (target: at most {_MAX_RATIO} × {base_s:.1f} s + "
        f"{patience_s:g} s = {allowed_s:.1f} s, {'holds' if taken_s <= allowed_s else 'MISSED'})"
    )
