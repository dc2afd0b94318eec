"""How fast is verify, compared with the bare codec that keeps sound JPEGs?

A folder of shards is written once, with pictures in the mix of a web crawl. Each round runs the bare codec on the same
pictures, in the same number of processes (``bare_codec``), and then verify on the folder.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import pybase64

from benchmarks.bare_codec import ORIGINAL, bare_codec_command
from benchmarks.cpu_clock import CpuClock
from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from datafetch.demo.pictures import write_pictures
from datafetch.output.formats import PickleShardWriter, encode_row
from datafetch.verify import Check, run_check

_BARE, _VERIFY = "bare codec, original", "verify"
_CPU, _PARENT, _PEAK = "all_cpu_ms_an_image", "parent_cpu_us_an_image", "peak_parent_mb"


def main() -> int:
    """Measure, print and save; return 1 if an image did not decode."""
    arguments = _arguments()
    with TemporaryDirectory(prefix="datafetch-benchmark-") as name:
        pictures, out = Path(name) / "pictures", Path(name) / "out"
        write_pictures(pictures, arguments.pictures)
        _write_shards(pictures, out, arguments.images)
        runs = [
            measure(kind, pictures, out, arguments)
            for kind in kinds(arguments.warm_ups, arguments.runs)
            for measure in (_bare, _verify)
        ]
    record = Record("verify_speed", "speed", "images/s", vars(arguments), runs)
    record.show(
        (_CPU, _PARENT, _PEAK, OTHERS_SHARE), [f"verify has {record.quiet_percent(_VERIFY, _BARE)} of the bare speed"]
    )
    return 0 if all(set(run.outcomes) <= {"ok", "ok, kept"} for run in runs) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=1, help="unmeasured runs of each before those")
    parser.add_argument("--images", type=int, default=2000, help="images in the folder")
    parser.add_argument("--pictures", type=int, default=200, help="distinct pictures among them")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="codec processes")
    return parser.parse_args()


def _write_shards(pictures: Path, out: Path, images: int) -> None:
    """Write two shards of pairs, in which the pictures take turns."""
    out.mkdir()
    rows = [
        {"id": number, "text": "a cat", "image": pybase64.b64encode_as_string(path.read_bytes())}
        for number, path in enumerate(sorted(pictures.iterdir()))
    ]
    for shard in range(2):
        sink = PickleShardWriter(out, f"part-{shard:05d}")
        for number in range(images // 2):
            sink.copy_row((encode_row(rows[number % len(rows)]),))
        sink.finish()
        sink.close()


def _bare(kind: RunKind, pictures: Path, _: Path, arguments: argparse.Namespace) -> Run:
    command = bare_codec_command(sys.executable, ORIGINAL, arguments.images, arguments.processes, pictures)
    clock = CpuClock()
    report = orjson.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    details = {
        _CPU: report["cpu_s"] / arguments.images * 1000,
        OTHERS_SHARE: clock.stop().others_share * 100,
    }
    return Run(_BARE, kind, arguments.images / report["elapsed_s"], details, report["outcomes"])


def _verify(kind: RunKind, _: Path, out: Path, arguments: argparse.Namespace) -> Run:
    clock, started_s = CpuClock(), time.perf_counter()
    verdict = run_check(Check(str(out), world_size=1, processes=arguments.processes))
    elapsed_s = time.perf_counter() - started_s
    spent = clock.stop()
    details = {
        _CPU: (spent.own_s + spent.children_s) / verdict.images * 1000,
        _PARENT: spent.own_s / verdict.images * 1e6,
        _PEAK: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        OTHERS_SHARE: spent.others_share * 100,
    }
    outcomes = {"ok": verdict.images - verdict.problem_count, "failed": verdict.problem_count}
    return Run(_VERIFY, kind, verdict.images / elapsed_s, details, {name: n for name, n in outcomes.items() if n})


if __name__ == "__main__":
    sys.exit(main())
