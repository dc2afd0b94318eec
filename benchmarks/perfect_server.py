"""Does a server that makes no mistake lose an image, and what does an image cost when its pixels cost next to nothing?

Tiny pictures from a loopback origin through ``datafetch prepare coyo``, with more and more requests open at once. Every
failure is ours, so there must be none; what is left of the time is the price of fetching and of the pipeline.
"""

from __future__ import annotations

import argparse
import pstats
import re
import subprocess
import sys
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

from meter import MIB
from preparation import Preparation, command, prepare
from record import OTHERS_SHARE, Record, Run, RunKind, kinds
from rich.console import Console
from rich.table import Table

from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import Kind, encode, paint
from datafetch.model import OK

_SIDE_PX = 64
_KIND = Kind(".jpg", "JPEG", "RGB")
_DETAILS = (
    *("descriptors_peak", "parent_cpu_us", "codec_cpu_us", "origin_cpu_us", "commit_cpu_us"),
    *("parent_peak_mib", OTHERS_SHARE),
)
_SHOWN_FUNCTIONS = 40
_PLACE = re.compile(r"^.*/(site-packages|python3\.\d+)/|^.*/(?=datafetch/)")


def main() -> int:
    """Measure, print, keep; 1 when an image failed."""
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
    parser.add_argument("--warm-ups", type=int, default=1, help="runs of each before that")
    parser.add_argument("--images", type=int, default=20_000, help="images a run")
    parser.add_argument("--pictures", type=int, default=200, help="distinct pictures among them")
    parser.add_argument("--connections", type=int, nargs="+", default=[64, 256, 1024], help="requests open at once")
    parser.add_argument("--folder", type=Path, help="where to work, instead of the system's temporary folder")
    parser.add_argument(
        "--profile", action="store_true", help="instead: one run under cProfile, and what its functions cost"
    )
    return parser.parse_args()


def _write_tiny_pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    names = [f"{number:05d}{_KIND.suffix}" for number in range(count)]
    for seed, name in enumerate(names):
        (folder / name).write_bytes(encode(paint((_SIDE_PX, _SIDE_PX), seed), _KIND))
    return names


def _measure(kind: RunKind, source: CoyoSource, root: Path, connections: int) -> Run:
    done = prepare(source, root, "--connections", str(connections))
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
    costs = _costs(pstats.Stats(str(profile)), arguments.images)
    rooms: dict[str, float] = {}
    for cost in costs:
        rooms[cost.room] = rooms.get(cost.room, 0.0) + cost.own_us
    table = Table(title=f"the parent process over {arguments.images:,} images, microseconds an image")
    for heading in ("function", "calls", "own us", "with callees us"):
        table.add_column(heading, justify="left" if heading == "function" else "right")
    for cost in costs[:_SHOWN_FUNCTIONS]:
        table.add_row(cost.function, f"{cost.calls:.2f}", f"{cost.own_us:.1f}", f"{cost.with_callees_us:.1f}")
    console = Console(width=160)
    console.print(table)
    console.print(
        ", ".join(
            f"{room} {own_us:.0f}" for room, own_us in sorted(rooms.items(), key=itemgetter(1), reverse=True)[:12]
        ),
        highlight=False,
    )


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a function costs an image: calls, microseconds of its own, microseconds with all that it calls."""

    room: str
    function: str
    calls: float
    own_us: float
    with_callees_us: float


def _costs(stats: pstats.Stats, images: int) -> list[_Cost]:
    """The functions of a profile, the dearest first."""
    costs = []
    for (path, line, name), (_, calls, own_s, all_s, _) in stats.stats.items():  # type: ignore[attr-defined]
        place = _PLACE.sub("", path)
        costs.append(
            _Cost(
                room="built in" if path == "~" else place.partition("/")[0],
                function=name if path == "~" else f"{place}:{line} {name}",
                calls=calls / images,
                own_us=own_s / images * 1e6,
                with_callees_us=all_s / images * 1e6,
            )
        )
    return sorted(costs, key=lambda cost: -cost.own_us)


if __name__ == "__main__":
    sys.exit(main())
