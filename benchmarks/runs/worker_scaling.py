"""How does the number of images a second grow with the number of workers, where the machine is not the limit?

Workers wait for a fixed time in place of each request and each image (``waiting_worker.py``), so that each makes
as many images a second as its connections and that time allow, if nothing holds it up. All else is real: the manifest,
samples handed out and reported, slots at hosts that other workers own, spools, commits. Measured is the pace between
the moment in which all workers are at work and the one in which most images have ended, and the CPU time of the
coordinator and of the workers meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

import datafetch
from benchmarks.record import Record, Run, RunKind, kinds
from benchmarks.waiting_worker import SERVICE_VARIABLE
from datafetch import Job
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.engine.workers import worker_process
from datafetch.fetch import FetchPolicy
from datafetch.model.statistics import Statistics

_HOSTS = 997
_WATCHED_SHARE = 0.9  # of all images, after which the last ones of each worker end
_INTERVAL_S = 0.25
_WORKER_MODULE = "benchmarks.waiting_worker"


@dataclass(frozen=True, slots=True)
class _Reading:
    """How a run stood at one moment.

    Attributes:
        at_s: When, by a monotonic clock.
        cpu_s: The CPU time of the coordinator by then.
        workers_cpu_s: That of all workers.
        images: Images that had arrived.
    """

    at_s: float
    cpu_s: float
    workers_cpu_s: float
    images: int


def main() -> None:
    """Measure, print and save."""
    arguments = _arguments()
    vars(worker_process)["_MODULE"] = _WORKER_MODULE
    os.environ[SERVICE_VARIABLE] = str(arguments.service_s)
    with TemporaryDirectory(prefix="datafetch-benchmark-", dir=arguments.folder) as name:
        folders, runs = (Path(name) / str(number) for number in count()), []
        sources = {workers: _write_source(next(folders), arguments, workers) for workers in arguments.workers}
        for kind in kinds(arguments.warm_ups, arguments.runs):
            runs += [_run(workers, kind, source, next(folders), arguments) for workers, source in sources.items()]
    parameters = {**vars(arguments), "folder": None, "workers": list(arguments.workers)}
    record = Record("worker_scaling", "pace", "images/s", parameters, runs)
    possible = arguments.connections / arguments.service_s
    fewest = min(arguments.workers)
    base = record.median(_case(fewest)) / fewest
    record.show(
        ("coordinator_us", "worker_us", "linear_percent"),
        [
            f"{workers} workers: {record.median(_case(workers)) / workers / base:.3f} × linear from {fewest}, "
            f"{record.median(_case(workers)) / workers / possible:.3f} × what the waits allow; the coordinator takes "
            f"{record.median_detail(_case(workers), 'coordinator_us'):.0f} µs of CPU an image"
            for workers in arguments.workers
        ],
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8, 16], help="numbers of workers, from 2")
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=0, help="unmeasured runs of each before those")
    parser.add_argument("--connections", type=int, default=16, help="requests that a worker has open at once")
    parser.add_argument("--service-s", type=float, default=0.25, help="seconds that each of them takes")
    parser.add_argument("--run-s", type=float, default=20.0, help="how long a run takes, about")
    parser.add_argument("--folder", type=Path, help="where to work, instead of the system's temporary folder")
    return parser.parse_args()


def _case(workers: int) -> str:
    return f"{workers} workers"


def _write_source(folder: Path, arguments: argparse.Namespace, workers: int) -> CoyoSource:
    images = round(workers * arguments.connections / arguments.service_s * arguments.run_s)
    urls = [f"http://host{number % _HOSTS}.example/{number}.jpg" for number in range(images)]
    return write_coyo_source(folder, urls, files=4)


def _run(workers: int, kind: RunKind, source: CoyoSource, folder: Path, arguments: argparse.Namespace) -> Run:
    readings: list[_Reading] = []

    async def watch(take: Callable[[], Statistics]) -> None:
        while True:
            now = take()
            if len(now.workers) == workers and all(one.images for one in now.workers):
                cpu_s = sum(sum(psutil.Process(one.pid).cpu_times()[:2]) for one in now.workers)
                readings.append(_Reading(time.monotonic(), time.process_time(), cpu_s, now.ok))
            await asyncio.sleep(_INTERVAL_S)

    job = Job(
        dataset="coyo",
        source=str(source.folder),
        ids=str(source.ids),
        out=str(folder / "out"),
        world_size=None,
        workers=workers,
        processes=workers,
        fetch=FetchPolicy(connections=arguments.connections * workers, retries=0),
    )
    report = datafetch.run(job, [watch])
    assert report.totals.ok == len(source.urls)
    first = readings[0]
    last = next(one for one in readings if one.images >= _WATCHED_SHARE * len(source.urls))
    images = last.images - first.images
    pace = images / (last.at_s - first.at_s)
    return Run(
        _case(workers),
        kind,
        pace,
        {
            "coordinator_us": (last.cpu_s - first.cpu_s) / images * 1e6,
            "worker_us": (last.workers_cpu_s - first.workers_cpu_s) / images * 1e6,
            "linear_percent": pace / workers / (arguments.connections / arguments.service_s) * 100,
        },
    )


if __name__ == "__main__":
    main()
