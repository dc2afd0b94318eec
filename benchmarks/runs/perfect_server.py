"""Is an image of a perfect server ever lost, and what does an image cost if its pixels cost next to nothing?

Tiny pictures go from a loopback origin through ``datafetch prepare coyo``, with more and more requests open at once.
Any failure would be ours, so there must be none. The time is that of fetching and of the pipeline.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.meter import MIB
from benchmarks.preparation import Preparation, command, prepare
from benchmarks.profiling import show_costs
from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import Kind, encode, paint
from datafetch.model.outcome import OK

_SIDE_PX = 64
_KIND = Kind(".jpg", "JPEG", "RGB")
_DETAILS = (
    *("descriptors_peak", "parent_cpu_us", "codec_cpu_us", "origin_cpu_us", "commit_cpu_us"),
    *("parent_peak_mib", OTHERS_SHARE),
)


def main() -> int:
    """Measure, print and save; return 1 if an image failed."""
    arguments = _arguments()
    with TemporaryDirectory(prefix="datafetch-benchmark-", dir=arguments.folder) as name:
        folder = Path(name)
        names = _write_tiny_pictures(folder / "pictures", arguments.pictures)
        mean_bytes = sum((folder / "pictures" / name).stat().st_size for name in names) / len(names)
        with Origin(folder / "pictures") as origin:
            urls = [origin.url("well", names[number % len(names)], number) for number in range(arguments.images)]
            source = write_coyo_source(folder / "source", urls)
            if arguments.profile:
                _profile(source, folder, arguments)
                return 0
            runs = [
                _measure(kind, source, folder / "root", connections)
                for kind in kinds(arguments.warm_ups, arguments.runs)
                for connections in arguments.connections
            ]
    parameters = {**vars(arguments), "folder": None, "mean_body_bytes": mean_bytes}
    record = Record("perfect_server", "speed", "images/s", parameters, runs)
    failed = sum(count for run in runs for outcome, count in run.outcomes.items() if outcome != OK)
    record.show(_DETAILS, [f"failures over all runs: {failed}", f"bodies: mean {mean_bytes:.0f} bytes"])
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=1, help="unmeasured runs of each before those")
    parser.add_argument("--images", type=int, default=20_000, help="images a run")
    parser.add_argument("--pictures", type=int, default=200, help="distinct pictures among them")
    parser.add_argument("--connections", type=int, nargs="+", default=[64, 256, 1024], help="requests open at once")
    parser.add_argument("--folder", type=Path, help="where to work, instead of the system's temporary folder")
    parser.add_argument(
        "--profile", action="store_true", help="instead, show what the functions cost in one run under cProfile"
    )
    return parser.parse_args()


def _write_tiny_pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    names = [f"{number:05d}{_KIND.suffix}" for number in range(count)]
    for seed, name in enumerate(names):
        (folder / name).write_bytes(encode(paint((_SIDE_PX, _SIDE_PX), seed), _KIND))
    return names


def _measure(kind: RunKind, source: CoyoSource, root: Path, connections: int) -> Run:
    done = prepare(source, root, "--connections", str(connections), "--per-host", str(connections))
    return Run(f"{connections} connections", kind, done.images_per_s, _details(done), done.outcomes())


def _details(done: Preparation) -> dict[str, float]:
    cpu_ms = done.cpu_ms_per_image()
    return {
        **{name.replace("_ms", "_us"): milliseconds * 1000 for name, milliseconds in cpu_ms.items()},
        "descriptors_peak": done.usage.descriptors_peak,
        "parent_peak_mib": done.usage.parent_peak_bytes / MIB,
        OTHERS_SHARE: done.usage.others_share * 100,
    }


def _profile(source: CoyoSource, folder: Path, arguments: argparse.Namespace) -> None:
    profile = folder / "profile"
    options = ("--connections", str(arguments.connections[0]))
    python = ("-m", "cProfile", "-o", str(profile))
    subprocess.run(command(source, folder / "root", *options, python=python), check=True, capture_output=True)
    show_costs(profile, arguments.images, "the parent process")


if __name__ == "__main__":
    sys.exit(main())
