"""The command-line options that the benchmarks of pools share, and the workload made from them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.transcode.subprocess_pool import Codec, PoolWorkload
from datafetch.transcode import ImageSpec


def parser(description: str | None, runs: int) -> argparse.ArgumentParser:
    """Make a parser with the options that they share.

    Args:
        description: The benchmark's docstring, whose first line becomes the description.
        runs: The default number of runs.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=runs, help="measured runs of each case")
    parser.add_argument(
        "--warm-ups", type=int, default=0, help="runs of each before that; every run warms its own processes up anyway"
    )
    parser.add_argument("--pictures", type=int, default=200, help="distinct pictures among the images")
    parser.add_argument(
        "--short-side", type=int, help="shrink to a short side of this many pixels; by default not at all"
    )
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="codec processes")
    parser.add_argument("--in-flight", type=int, default=256, help="tasks that await one image each")
    parser.add_argument("--deadline-s", type=float, default=120.0, help="a run that takes longer is given up")
    parser.add_argument("--folder", type=Path, help="where to work, instead of the system's temporary folder")
    return parser


def versions() -> dict[str, str]:
    """The versions of the packages that datafetch's pool is compared with."""
    return {name: version(name) for name in ("loky", "pebble")}


def workload(machinery: str, paths: Sequence[Path], codec: Codec, arguments: argparse.Namespace) -> PoolWorkload:
    """Make the workload that the command line describes, for this machinery."""
    return PoolWorkload(
        machinery,
        paths,
        images=arguments.images,
        processes=arguments.processes,
        in_flight=arguments.in_flight,
        codec=codec,
        spec=ImageSpec(short_side_px=arguments.short_side),
        deadline_s=arguments.deadline_s,
    )
