"""How close does the whole pipeline come to the codec's own speed on this machine?

The same pictures go, in turn, through ``datafetch prepare coyo``, from a loopback origin to published shards, and
through the ceiling: the same number of bare processes that have the bodies in memory and only call the codec. The
origin, which the ceiling does not need, runs on the same cores. The CPU milliseconds of an image, by role, show where
the time goes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.meter import Meter, Role
from benchmarks.preparation import prepare
from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import write_pictures
from datafetch.model.outcome import OK, Encoded
from datafetch.transcode import ImageSpec
from datafetch.transcode.codec import transcode

_CHUNK_IMAGES = 4  # handed out one chunk at a time, so that the processes end together
_SPECS: Mapping[str, ImageSpec] = {"recipe": ImageSpec(), "short side 336": ImageSpec(short_side_px=336)}
_DETAILS = ("codec_cpu_ms", "parent_cpu_ms", "origin_cpu_ms", "commit_cpu_ms", "busy_percent", OTHERS_SHARE)

_bodies: list[bytes] = []
"""The pictures, in a bare process."""


@dataclass(frozen=True, slots=True)
class _Workload:
    images: int
    processes: int
    connections: str
    root: Path


def main() -> None:
    """Measure, print and save."""
    arguments = _arguments()
    with TemporaryDirectory(prefix="datafetch-benchmark-", dir=arguments.folder) as name:
        folder = Path(name)
        names = write_pictures(folder / "pictures", arguments.pictures)
        paths = [folder / "pictures" / name for name in names]
        mean_bytes = sum(path.stat().st_size for path in paths) / len(paths)
        work = _Workload(arguments.images, arguments.processes, arguments.connections, folder / "root")
        with Origin(folder / "pictures") as origin, _bare_processes(arguments.processes, paths) as pool:
            urls = [origin.url("well", names[number % len(names)], number) for number in range(arguments.images)]
            source = write_coyo_source(folder / "source", urls, files=arguments.shards)
            runs = [
                run
                for kind in kinds(arguments.warm_ups, arguments.runs)
                for spec in _SPECS
                for run in (_run_codec(spec, kind, pool, work), _run_pipeline(spec, kind, source, work))
            ]
            once = prepare(source, work.root, "--limit", "1").usage
    once_cpu_s = {str(role): round(once.cpu_s[role], 2) for role in (Role.PARENT, Role.CODEC, Role.COMMIT)}
    parameters = {**vars(arguments), "folder": None, "mean_body_bytes": mean_bytes, "once_cpu_s": once_cpu_s}
    record = Record("throughput", "speed", "images/s", parameters, runs)
    record.show(_DETAILS, [f"{len(names)} pictures, mean {mean_bytes / 1000:.1f} kB", *_remarks(record, once_cpu_s)])


def _remarks(record: Record, once_cpu_s: Mapping[str, float]) -> Iterator[str]:
    for spec in _SPECS:
        codec, pipeline = _codec(spec), _pipeline(spec)
        roles = (Role.CODEC, Role.PARENT, Role.COMMIT)
        spent_ms = sum(record.median_detail(pipeline, f"{role}_cpu_ms") for role in roles)
        share = record.median_detail(codec, "codec_cpu_ms") / spent_ms
        yield (
            f"{spec}: the pipeline runs at {record.quiet_percent(pipeline, codec)} of the codec's own speed, with the "
            f"origin on the same cores; by the CPU time of an image, without the origin's, at {share:.1%}"
        )
    costs = ", ".join(f"{role} {cpu_s} s" for role, cpu_s in once_cpu_s.items())
    yield f"in the CPU times: {costs} for starting and ending, once a run (commit: once a shard)"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=1, help="unmeasured runs of each before those")
    parser.add_argument("--images", type=int, default=4000, help="images a run")
    parser.add_argument("--pictures", type=int, default=400, help="distinct pictures among them")
    parser.add_argument("--shards", type=int, default=2, help="parquet files of the manifest")
    parser.add_argument("--connections", default="auto", help="the option of datafetch prepare")
    parser.add_argument(
        "--processes", type=int, default=len(os.sched_getaffinity(0)), help="codec processes, in both cases"
    )
    parser.add_argument("--folder", type=Path, help="where to work, instead of the system's temporary folder")
    return parser.parse_args()


def _codec(spec: str) -> str:
    return f"{spec}: codec alone"


def _pipeline(spec: str) -> str:
    return f"{spec}: pipeline"


@contextmanager
def _bare_processes(count: int, paths: Sequence[Path]) -> Iterator[Pool]:
    with multiprocessing.get_context("spawn").Pool(count, _load, (paths,)) as pool:
        yield pool


def _load(paths: Sequence[Path]) -> None:
    _bodies.extend(path.read_bytes() for path in paths)


def _transcode(spec: ImageSpec, number: int) -> str:
    outcome = transcode(_bodies[number % len(_bodies)], spec)
    return OK if isinstance(outcome, Encoded) else outcome.kind.value


def _run_codec(spec: str, kind: RunKind, pool: Pool, work: _Workload) -> Run:
    meter = Meter()
    started_s = time.perf_counter()
    outcomes = pool.imap_unordered(partial(_transcode, _SPECS[spec]), range(work.images), chunksize=_CHUNK_IMAGES)
    counts = Counter(outcomes)
    elapsed_s = time.perf_counter() - started_s
    meter.sample()
    cpu_s = meter.cpu_s()
    details = {
        "codec_cpu_ms": cpu_s[Role.CODEC] / work.images * 1000,
        "busy_percent": sum(cpu_s.values()) / elapsed_s / _cores() * 100,
        OTHERS_SHARE: meter.others_share() * 100,
    }
    return Run(_codec(spec), kind, work.images / elapsed_s, details, dict(counts))


def _run_pipeline(spec: str, kind: RunKind, source: CoyoSource, work: _Workload) -> Run:
    short_side_px = _SPECS[spec].short_side_px
    done = prepare(
        source,
        work.root,
        *("--connections", work.connections, "--per-host", "1024", "--processes", str(work.processes)),
        *("--short-side", "none" if short_side_px is None else str(short_side_px)),
    )
    usage = done.usage
    details = {
        **done.cpu_ms_per_image(),
        "busy_percent": sum(usage.cpu_s.values()) / usage.elapsed_s / _cores() * 100,
        OTHERS_SHARE: usage.others_share * 100,
    }
    return Run(_pipeline(spec), kind, done.images_per_s, details, done.outcomes())


def _cores() -> int:
    return os.cpu_count() or 1


if __name__ == "__main__":
    main()
