"""How does datafetch compare with the tools that people use, at the same work on the same pictures and origin?

datafetch, img2dataset and Daft take turns, with Pillow or libcurl alone as the limit. Each is a command that is
measured from its start to its end, with all its processes; Pillow alone has a clock of its own, which leaves out its
start. ``contestants.py`` has their settings, and says where their work differs. What they need is installed into a
cache folder the first time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.record import Record, Run, kinds
from benchmarks.rivals.contestants import Daft, Img2dataset
from benchmarks.rivals.corpus import make_corpus
from benchmarks.rivals.environments import DAFT, IMG2DATASET, make_environment
from benchmarks.rivals.matches import MATCHES, Match, Tools
from benchmarks.rivals.measuring import DETAILS, measure
from benchmarks.rivals.webs import Served
from benchmarks.rivals.work import Work
from datafetch.model.outcome import OK

_DATAFETCH = "datafetch"
_QUICK_IMAGES, _QUICK_PICTURES = 400, 400
_RETRIES = 2


def main() -> int:
    """Measure, print and save; return 1 if datafetch lost an image that could be had."""
    arguments = _arguments()
    tools = _tools(arguments)
    records = [_play(match, tools, arguments) for match in MATCHES if match.name in arguments.matches]
    return 0 if all(_is_complete(record) for record in records) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [match.name for match in MATCHES]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "datafetch-benchmarks"
    parser.add_argument("--quick", action="store_true", help="a look in minutes: fewer images, five of the matches")
    parser.add_argument("--matches", nargs="+", choices=names, help="these matches")
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each contestant")
    parser.add_argument("--warm-ups", type=int, default=1, help="unmeasured runs of each before those")
    parser.add_argument("--images", type=int, default=8000, help="URLs of a run")
    parser.add_argument("--pictures", type=int, default=4000, help="distinct pictures among them")
    parser.add_argument("--shards", type=int, default=8, help="files of the manifest")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="that decode images")
    parser.add_argument("--threads", type=int, default=32, help="of each process of img2dataset")
    parser.add_argument("--simd", type=Path, help="interpreter of an environment with datafetch and Pillow-SIMD")
    parser.add_argument("--cache", type=Path, default=cache, help="folder of pictures and rivals; default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where to work, instead of the system's temporary folder")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.images, arguments.pictures, arguments.warm_ups = _QUICK_IMAGES, _QUICK_PICTURES, 0
    arguments.matches = arguments.matches or [match.name for match in MATCHES if match.is_quick or not arguments.quick]
    return arguments


def _tools(arguments: argparse.Namespace) -> Tools:
    cache: Path = arguments.cache
    return Tools(
        make_corpus(cache, arguments.pictures),
        Img2dataset(make_environment(cache / "img2dataset", IMG2DATASET), arguments.threads),
        Daft(make_environment(cache / "daft", DAFT)),
        arguments.simd,
    )


def _play(match: Match, tools: Tools, arguments: argparse.Namespace) -> Record:
    with TemporaryDirectory(prefix="datafetch-benchmark-", dir=arguments.folder) as name:
        folder = Path(name)
        (folder / "origin").mkdir()
        with match.web(tools.corpus, folder / "origin", arguments.images) as served:
            works = _write_works(match, served, folder, arguments)
            runs = list(_runs(match, tools, works, served, folder / "out", arguments))
    parameters = {
        **vars(arguments),
        **served.parameters,
        "obtainable": served.obtainable,
        **dict.fromkeys(("folder", "cache", "matches")),
        "simd": bool(arguments.simd),
        "rivals": [*IMG2DATASET, *DAFT],
        "mean_body_bytes": tools.corpus.mean_bytes,
        "commit": _commit(),
    }
    record = Record(f"comparison-{match.name}", "good images", "images/s", parameters, runs)
    record.show(DETAILS, list(_remarks(record)))
    return record


def _write_works(match: Match, served: Served, folder: Path, arguments: argparse.Namespace) -> dict[str, Work]:
    works = {
        label: Work(
            match.way,
            urls,
            folder / f"work{number}",
            shards=arguments.shards,
            processes=arguments.processes,
            timeout_s=match.timeout_s,
            retries=_RETRIES,
            bundle=served.bundle,
            is_fresh=served.is_fresh,
        )
        for number, (label, urls) in enumerate(served.urls.items())
    }
    for work in works.values():
        work.write()
    return works


def _runs(
    match: Match, tools: Tools, works: dict[str, Work], served: Served, out: Path, arguments: argparse.Namespace
) -> Iterator[Run]:
    for kind in kinds(arguments.warm_ups, arguments.runs):
        for contestant in match.contestants(tools):
            for label, work in works.items():
                yield measure(contestant, work, out, case=f"{contestant.name}{label}", kind=kind, served=served)


def _remarks(record: Record) -> Iterator[str]:
    base, *others = record.cases
    for case in others:
        if not record.median(case):
            yield f"{case} got no image"
            continue
        cpu_ms, peak_mib = (
            record.median_detail(base, name) / record.median_detail(case, name) for name in ("cpu_ms", "peak_mib")
        )
        yield (
            f"{base} against {case}: {record.ratio(base, case):.2f} × the good images a second, "
            f"{cpu_ms:.2f} × the CPU time, {peak_mib:.2f} × the memory"
        )


def _commit() -> str:
    """The commit that was measured; what changed since is not committed if it ends in ``-dirty``."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    root = Path(__file__).resolve().parents[2]
    described = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return described.stdout.strip() or "unknown"


def _is_complete(record: Record) -> bool:
    obtainable = record.parameters["obtainable"]
    return all(run.outcomes[OK] == obtainable for run in record.runs if run.case.startswith(_DATAFETCH))


if __name__ == "__main__":
    sys.exit(main())
