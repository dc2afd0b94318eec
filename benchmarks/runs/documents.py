"""Are documents of five images each as fast as single images, and does their number cost memory?

For speed, the same pictures go, in turn, through ``datafetch prepare coyo`` and ``prepare mmc4-core``, each URL once.
For memory, files of JSON lines have more and more documents of tiny pictures, and the peak of the parent process is
measured, the only one that reads the manifest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from benchmarks.meter import MIB, Role
from benchmarks.preparation import IMAGES_PER_DOCUMENT, LinesSource, prepare, write_documents
from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import paint, write_pictures

_TINY_SIDE_PX = 16
_SPEED_DETAILS = ("parent_cpu_ms", "codec_cpu_ms", "commit_cpu_ms", OTHERS_SHARE)
_MEMORY_DETAILS = ("total_peak_mib", "descriptors_peak", "images_per_s", OTHERS_SHARE)

Url = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class _Invocation:
    """How the command is called."""

    root: Path
    options: tuple[str, ...]


def main() -> None:
    """Measure, print and save."""
    arguments = _arguments()
    with TemporaryDirectory(prefix="datafetch-benchmark-", dir=arguments.folder) as name:
        folder = Path(name)
        invocation = _Invocation(folder / "root", ("--connections", arguments.connections, "--per-host", "1024"))
        if "speed" in arguments.measures:
            _measure_speed(folder, arguments, invocation)
        if "memory" in arguments.measures:
            _measure_memory(folder, arguments, invocation)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--measures", nargs="+", choices=("speed", "memory"), default=["speed", "memory"])
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each case of speed")
    parser.add_argument("--images", type=int, default=4000, help="images a run of speed")
    parser.add_argument("--pictures", type=int, default=400, help="distinct pictures among them")
    parser.add_argument(
        "--documents", type=int, nargs="+", default=[1000, 10_000, 100_000], help="documents of each file for memory"
    )
    parser.add_argument("--memory-runs", type=int, default=1, help="runs of each case of memory")
    parser.add_argument("--connections", default="64", help="the option of datafetch prepare")
    parser.add_argument("--folder", type=Path, help="where to work, instead of the system's temporary folder")
    return parser.parse_args()


def _measure_speed(folder: Path, arguments: argparse.Namespace, invocation: _Invocation) -> None:
    names = write_pictures(folder / "pictures", arguments.pictures)
    with Origin(folder / "pictures") as origin:
        url = partial(_url, origin, names)
        cases: dict[str, CoyoSource | LinesSource] = {
            "coyo": write_coyo_source(folder / "coyo", [url(number) for number in range(arguments.images)]),
            "documents": _write_documents(folder / "speed", url, arguments.images // IMAGES_PER_DOCUMENT),
        }
        runs = [
            _run(case, kind, source, invocation, is_speed=True)
            for kind in kinds(1, arguments.runs)
            for case, source in cases.items()
        ]
    record = Record("documents", "speed", "images/s", _parameters(arguments), runs)
    record.show(_SPEED_DETAILS, [f"documents reach {record.quiet_percent('documents', 'coyo')} of coyo's speed"])


def _measure_memory(folder: Path, arguments: argparse.Namespace, invocation: _Invocation) -> None:
    (folder / "tiny").mkdir()
    image: Image.Image = paint((_TINY_SIDE_PX, _TINY_SIDE_PX), 0)
    image.save(folder / "tiny" / "0.png")
    with Origin(folder / "tiny") as origin:
        url = partial(_url, origin, ["0.png"])
        cases = {
            f"{count:,} documents": _write_documents(folder / str(count), url, count) for count in arguments.documents
        }
        runs = [
            _run(case, kind, source, invocation, is_speed=False)
            for kind in kinds(0, arguments.memory_runs)
            for case, source in cases.items()
        ]
    record = Record("documents_memory", "parent's peak memory", "MiB", _parameters(arguments), runs)
    base = record.cases[0]
    remarks = [f"{case}: {record.median(case) - record.median(base):+.1f} MiB" for case in record.cases[1:]]
    record.show(_MEMORY_DETAILS, remarks)


def _url(origin: Origin, names: list[str], number: int) -> str:
    return origin.url("well", names[number % len(names)], number)


def _write_documents(folder: Path, url: Url, count: int) -> LinesSource:
    """Write one file of documents, each with its own images."""
    folder.mkdir()
    write_documents(folder / "docs_shard_0_v3.jsonl", map(url, range(count * IMAGES_PER_DOCUMENT)))
    return LinesSource("mmc4-core", folder)


def _run(case: str, kind: RunKind, source: CoyoSource | LinesSource, invocation: _Invocation, *, is_speed: bool) -> Run:
    done = prepare(source, invocation.root, *invocation.options)
    usage = done.usage
    details = {
        **done.cpu_ms_per_image(),
        "total_peak_mib": usage.total_peak_bytes / MIB,
        "descriptors_peak": float(usage.descriptors_peak),
        "images_per_s": done.images_per_s,
        "parent_cpu_s": usage.cpu_s[Role.PARENT],
        OTHERS_SHARE: usage.others_share * 100,
    }
    value = done.images_per_s if is_speed else usage.parent_peak_bytes / MIB
    return Run(case, kind, value, details, done.outcomes())


def _parameters(arguments: argparse.Namespace) -> dict[str, object]:
    return {**vars(arguments), "folder": None}


if __name__ == "__main__":
    main()
