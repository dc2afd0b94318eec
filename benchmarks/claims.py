"""The targets that the benchmarks of hostile webs set for the fetcher."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.record import Record, Run
from benchmarks.url_mix import OBTAINABLE
from datafetch.model.outcome import OK

_MAX_RATIO = 1.25


def lost(runs: Sequence[Run]) -> int:
    """Count the images that could be had and were not; outcomes start with the behaviour (``good ok``)."""
    count = 0
    for run in runs:
        for label, urls in run.outcomes.items():
            behaviour, _, outcome = label.partition(" ")
            count += urls if behaviour in OBTAINABLE and outcome != OK else 0
    return count


def time_claim(record: Record, case: str, base: str, patience_s: float) -> str:
    """Whether a case took at most 1.25 times what another took, plus what it takes to learn that a host is bad."""
    taken_s, base_s = record.median(case), record.median(base)
    allowed_s = _MAX_RATIO * base_s + patience_s
    return (
        f"{case}: {taken_s:.1f} s, {taken_s / base_s:.2f} × {base}; the last image came after "
        f"{record.median_detail(case, 'last_ok_s'):.1f} s (target: at most {_MAX_RATIO} × {base_s:.1f} s + "
        f"{patience_s:g} s = {allowed_s:.1f} s, {'holds' if taken_s <= allowed_s else 'MISSED'})"
    )
