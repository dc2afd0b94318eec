"""How fast is the bare codec with each of its options, with the installed Pillow and with others?

Processes that have the bodies in memory call the codec and do nothing else, one for each core, each set up as the pool
sets up its own. In each round, all options and all interpreters take turns, so that their ratios come from one run.
``--python`` names the interpreter of another environment with datafetch's dependencies, such as one with Pillow-SIMD.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson

from benchmarks.bare_codec import EXACT, FAST, KEPT, ORIGINAL, RECIPE, SPECS, bare_codec_command
from benchmarks.cpu_clock import CpuClock
from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from datafetch.demo.pictures import Kind, encode, paint, write_pictures
from datafetch.model.outcome import OK

_DETAILS = ("codec_cpu_ms", OTHERS_SHARE)
_COMPARED = ((EXACT, RECIPE), (FAST, EXACT), (ORIGINAL, RECIPE))


@dataclass(frozen=True, slots=True)
class _Codec:
    """An interpreter and the Pillow that it imports."""

    python: str
    pillow: str
    jpeg_library: str

    @property
    def label(self) -> str:
        return f"{'Pillow-SIMD' if '.post' in self.pillow else 'Pillow'} {self.pillow}"


@dataclass(frozen=True, slots=True)
class _Workload:
    folder: Path
    images: int
    processes: int


def main() -> int:
    """Measure, print and save; return 1 if an image failed."""
    arguments = _arguments()
    with TemporaryDirectory(prefix="datafetch-benchmark-", dir=arguments.folder) as name:
        folder = Path(name)
        names = _write_pictures(folder, arguments)
        mean_bytes = sum((folder / name).stat().st_size for name in names) / len(names)
        codecs = [_probe(python, folder) for python in (sys.executable, *arguments.python)]
        work = _Workload(folder, arguments.images, arguments.processes)
        runs = [
            _measure(kind, way, codec, work)
            for kind in kinds(arguments.warm_ups, arguments.runs)
            for way in arguments.ways
            for codec in codecs
        ]
    labels = [codec.label for codec in codecs]
    described = [f"{codec.label} with {codec.jpeg_library}" for codec in codecs]
    parameters = {**vars(arguments), "folder": None, "python": described, "mean_body_bytes": mean_bytes}
    record = Record("codec_ways", "speed", "images/s", parameters, runs, subject=", ".join(labels))
    size = "a crawl's mix" if arguments.size is None else "{}x{}".format(*arguments.size)
    pictures = f"{len(names)} pictures ({size}), mean {mean_bytes / 1000:.1f} kB; {arguments.processes} processes"
    record.show(_DETAILS, [pictures, *described, *_remarks(record, arguments.ways, labels)])
    return 0 if all(set(run.outcomes) <= {OK, KEPT} for run in runs) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=1, help="unmeasured runs of each before those")
    parser.add_argument("--images", type=int, default=1000, help="images a run")
    parser.add_argument("--pictures", type=int, default=200, help="distinct pictures among them")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("WIDTH", "HEIGHT"),
        help="colour JPEGs of this size, instead of the mix of a web crawl, up to 1080 pixels",
    )
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="codec processes")
    parser.add_argument(
        "--ways", nargs="+", choices=list(SPECS), default=list(SPECS), metavar="WAY", help=str([*SPECS])
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="PATH",
        help="interpreter of another environment to measure as well; repeatable",
    )
    parser.add_argument("--folder", type=Path, help="where to work, instead of the system's temporary folder")
    return parser.parse_args()


def _write_pictures(folder: Path, arguments: argparse.Namespace) -> list[str]:
    if arguments.size is None:
        return write_pictures(folder, arguments.pictures)
    width_px, height_px = arguments.size
    names = [f"{number:05d}.jpg" for number in range(arguments.pictures)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(encode(paint((width_px, height_px), number), Kind(".jpg", "JPEG", "RGB")))
    return names


def _run(python: str, way: str, work: _Workload) -> Mapping[str, Any]:
    command = bare_codec_command(python, way, work.images, work.processes, work.folder)
    report: Mapping[str, Any] = orjson.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return report


def _probe(python: str, folder: Path) -> _Codec:
    """Find out which Pillow an interpreter has, by letting it encode one image."""
    report = _run(python, RECIPE, _Workload(folder, 1, 1))
    return _Codec(python, report["pillow"], report["jpeg_library"])


def _measure(kind: RunKind, way: str, codec: _Codec, work: _Workload) -> Run:
    clock = CpuClock()
    report = _run(codec.python, way, work)
    details = {
        "codec_cpu_ms": report["cpu_s"] / work.images * 1000,
        "elapsed_s": report["elapsed_s"],
        OTHERS_SHARE: clock.stop().others_share * 100,
    }
    return Run(_case(way, codec.label), kind, work.images / report["elapsed_s"], details, report["outcomes"])


def _case(way: str, label: str) -> str:
    return f"{way}: {label}"


def _remarks(record: Record, ways: Sequence[str], labels: Sequence[str]) -> Iterator[str]:
    for label in labels:
        for way, base in _COMPARED:
            if {way, base} <= set(ways):
                yield f"{label}: {way} against {base}: {_compared(record, _case(way, label), _case(base, label))}"
    for label in labels[1:]:
        for way in ways:
            compared = _compared(record, _case(way, label), _case(way, labels[0]))
            yield f"{way}: {label} against {labels[0]}: {compared}"


def _compared(record: Record, case: str, base: str) -> str:
    cpu_ms, base_cpu_ms = (record.median_detail(name, "codec_cpu_ms") for name in (case, base))
    return f"{record.quiet_percent(case, base)} of the speed, {cpu_ms / base_cpu_ms:.1%} of the CPU time"


if __name__ == "__main__":
    sys.exit(main())
