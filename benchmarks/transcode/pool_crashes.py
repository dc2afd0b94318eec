"""What does a crash cost, with each machinery that runs the codec?

Each machinery gets the same images twice: once all good, and once with one body in fifty that kills the process that
works on it, as a hostile file may kill a decoder. It is measured how many innocent images fail as well, how fast the
good ones still are, and which processes are left behind. Executors that break are reopened, and what failed is tried
again: three times at most, or one at a time in a process of its own.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from benchmarks.transcode import pool_options
from benchmarks.transcode.poison import transcode_or_die
from benchmarks.transcode.subprocess_pool import UNFINISHED, PoolTally, PoolWorkload, run_in_subprocess
from datafetch.demo.pictures import write_pictures
from datafetch.model.outcome import OK

_MODULES: Mapping[str, str] = {
    "datafetch": "benchmarks.transcode.pool_datafetch",
    "executor": "benchmarks.transcode.pool_executors",
    "executor, retried alone": "benchmarks.transcode.pool_executors",
    "loky": "benchmarks.transcode.pool_executors",
    "pebble": "benchmarks.transcode.pool_pebble",
}
_DETAILS = ("innocent_failed", "elapsed_s", "left_behind", OTHERS_SHARE)


def main() -> None:
    """Measure, print and save."""
    arguments = _arguments()
    with TemporaryDirectory(prefix="datafetch-benchmark-", dir=arguments.folder) as name:
        folder = Path(name)
        paths = [folder / name for name in write_pictures(folder, arguments.pictures)]
        runs = [
            _measure(kind, replace(workload, poison_every=poison_every))
            for kind in kinds(arguments.warm_ups, arguments.runs)
            for case in arguments.cases
            for workload in (pool_options.workload(case, paths, transcode_or_die, arguments),)
            for poison_every in (0, arguments.poison_every)
        ]
    parameters = {**vars(arguments), "folder": None, "versions": pool_options.versions()}
    record = Record("pool_crashes", "speed of the good", "images/s", parameters, runs)
    poisons = arguments.images // arguments.poison_every
    remarks = [
        remark for case in arguments.cases for remark in _remarks(record, case, arguments.images - poisons, poisons)
    ]
    record.show(_DETAILS, [f"poisoned: {poisons} of {arguments.images} bodies end their process", *remarks])


def _arguments() -> argparse.Namespace:
    parser = pool_options.parser(__doc__, runs=1)
    parser.add_argument("--images", type=int, default=2000, help="images a run, the poison included")
    parser.add_argument("--poison-every", type=int, default=50, help="one in N bodies is poison")
    cases = list(_MODULES)
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases, metavar="CASE", help="; ".join(cases))
    return parser.parse_args()


def _measure(kind: RunKind, workload: PoolWorkload) -> Run:
    tally = run_in_subprocess(_MODULES[workload.machinery], workload)
    good = [outcome for number, outcome in enumerate(tally.outcomes) if not workload.is_poison(number)]
    speed = good.count(OK) / tally.spent.elapsed_s
    details = {**tally.details(), "innocent_failed": float(len(good) - good.count(OK))}
    case = _poisoned(workload.machinery) if workload.poison_every else workload.machinery
    return Run(case, kind, speed, details, _outcomes(workload, tally))


def _outcomes(workload: PoolWorkload, tally: PoolTally) -> Mapping[str, int]:
    """Count the images by outcome, and poison separately."""
    numbered = enumerate(tally.outcomes)
    return dict(Counter(f"poison {outcome}" if workload.is_poison(number) else outcome for number, outcome in numbered))


def _poisoned(case: str) -> str:
    return f"{case}: poisoned"


def _remarks(record: Record, case: str, good: int, poisons: int) -> Iterator[str]:
    poisoned = _poisoned(case)
    failed = record.median_detail(poisoned, "innocent_failed")
    remark = f"{case}: {failed:,.0f} of {good:,} innocent images fail"
    if record.median(poisoned) and record.median(case):
        remark += f"; the others go at {record.quiet_percent(poisoned, case)} of the speed without poison"
    if not failed:  # if most images fail at once, the elapsed time says nothing
        lost_s = record.median_detail(poisoned, "elapsed_s") - good / record.median(case)
        remark += f", {lost_s / poisons * 1000:,.0f} ms a crash"
    yield remark
    if any(UNFINISHED in run.outcomes for run in record.runs if run.case == poisoned):
        yield f"{case}: GIVEN UP at the deadline in at least one run; its unfinished images count as failed"
    if not all(run.details["closed"] for run in record.runs if run.case in (case, poisoned)):
        yield f"{case}: HANGS when it is closed, in at least one run"


if __name__ == "__main__":
    main()
