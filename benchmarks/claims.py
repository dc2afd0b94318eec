"""What the benchmarks of hostile webs hold the fetcher to."""

from __future__ import annotations

from collections.abc import Sequence

from mixture import OBTAINABLE
from record import Record, Run

from datafetch.model.outcome import OK

_MOST_RATIO = 1.25


def lost(runs: Sequence[Run]) -> int:
    """Images that could be had and were not, of runs whose outcomes are told apart by manner (``good ok``)."""
    count = 0
    for run in runs:
        for label, urls in run.outcomes.items():
            manner, _, outcome = label.partition(" ")
            count += urls if manner in OBTAINABLE and outcome != OK else 0
    return count


def time_claim(record: Record, case: str, base: str, patience_s: float) -> str:
    """Whether a case took at most 1.25 times what another took, plus what it takes to learn that a host is bad."""
    taken_s, base_s = record.median(case), record.median(base)
    allowed_s = _MOST_RATIO * base_s + patience_s
    return (
        f"{case}: {taken_s:.1f} s, {taken_s / base_s:.2f} × {base}; the last image came after "
        f"{record.median_detail(case, 'last_ok_s'):.1f} s (target: at most {_MOST_RATIO} × {base_s:.1f} s + "
        f"{patience_s:g} s = {allowed_s:.1f} s, {'holds' if taken_s <= allowed_s else 'MISSED'})"
    )
