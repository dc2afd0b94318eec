"""Which machinery hands images to codec processes at the least cost?

Each machinery runs in a process of its own. It gets the same bodies, which are in memory as if they had been fetched,
from the same number of tasks, and has the same number of processes for the same codec. The ceiling is the same number
of bare processes that have the bodies in memory from the start. The clocks start when all processes have warmed up.
``pool_crashes.py`` measures what a crash costs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from benchmarks.transcode import pool_options
from benchmarks.transcode.subprocess_pool import PoolWorkload, run_in_subprocess
from datafetch.demo.pictures import write_pictures
from datafetch.model.outcome import OK
from datafetch.transcode.codec import transcode

_CEILING = "ceiling: bare processes"
_SOCKETS, _SHARED = "minimal, sockets", "minimal, shared memory"
_MODULES: Mapping[str, str] = {
    _CEILING: "benchmarks.transcode.bare_workers",
    "datafetch": "benchmarks.transcode.pool_datafetch",
    _SOCKETS: "benchmarks.transcode.pool_sockets",
    _SHARED: "benchmarks.transcode.pool_sockets",
    "executor": "benchmarks.transcode.pool_executors",
    "executor, 16 a task": "benchmarks.transcode.pool_executors",
    "loky": "benchmarks.transcode.pool_executors",
    "pebble": "benchmarks.transcode.pool_pebble",
}
_DETAILS = ("parent_cpu_us", "codec_cpu_ms", OTHERS_SHARE)


def main() -> int:
    """Measure, print and save; return 1 if an image has no good outcome."""
    arguments = _arguments()
    with TemporaryDirectory(prefix="datafetch-benchmark-", dir=arguments.folder) as name:
        folder = Path(name)
        paths = [folder / name for name in write_pictures(folder, arguments.pictures)]
        mean_bytes = sum(path.stat().st_size for path in paths) / len(paths)
        runs = [
            _measure(kind, pool_options.workload(case, paths, transcode, arguments))
            for kind in kinds(arguments.warm_ups, arguments.runs)
            for case in (_CEILING, *arguments.cases)
        ]
    parameters = {**vars(arguments), "folder": None, "mean_body_bytes": mean_bytes, "versions": pool_options.versions()}
    record = Record("pool_machinery", "speed", "images/s", parameters, runs)
    record.show(_DETAILS, [f"{len(paths)} pictures, mean {mean_bytes / 1000:.1f} kB", *_remarks(record)])
    return 0 if all(set(run.outcomes) == {OK} for run in runs) else 1


def _arguments() -> argparse.Namespace:
    parser = pool_options.parser(__doc__, runs=2)
    parser.add_argument("--images", type=int, default=1000, help="images a run")
    cases = [case for case in _MODULES if case != _CEILING]
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases, metavar="CASE", help="; ".join(cases))
    return parser.parse_args()


def _measure(kind: RunKind, workload: PoolWorkload) -> Run:
    tally = run_in_subprocess(_MODULES[workload.machinery], workload)
    speed = tally.counts().get(OK, 0) / tally.spent.elapsed_s
    return Run(workload.machinery, kind, speed, tally.details(), tally.counts())


def _remarks(record: Record) -> Iterator[str]:
    for case in record.cases:
        if case == _CEILING:
            continue
        parent_us, codec_ms = (record.median_detail(case, name) for name in ("parent_cpu_us", "codec_cpu_ms"))
        ceiling_ms = record.median_detail(_CEILING, "codec_cpu_ms")
        share = ceiling_ms / (codec_ms + parent_us / 1000)
        yield (
            f"{case}: {record.quiet_percent(case, _CEILING)} of the ceiling's speed, {share:.1%} by CPU time; an "
            f"image costs the parent {parent_us:,.0f} us and the codec's process {codec_ms - ceiling_ms:+.2f} ms more"
        )
    if {_SOCKETS, _SHARED} <= set(record.cases):
        shared, sockets = (record.median_detail(case, "parent_cpu_us") for case in (_SHARED, _SOCKETS))
        yield (
            f"shared memory instead of sockets, all else being equal: {record.quiet_percent(_SHARED, _SOCKETS)} of "
            f"the speed, {shared / sockets:.2f} x the parent's CPU time"
        )


if __name__ == "__main__":
    sys.exit(main())
