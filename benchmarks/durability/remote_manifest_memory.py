"""Does a manifest that is read on the hub take more memory if it has 3,000,000 rows, of which 1,000 are selected?

The real command is measured: the peak memory of its parent process, the only one that reads the manifest, which is
copied in parts to a temporary file. Each file is one row group with long captions that don't compress, so what is
copied at once is large. The same large manifest is also read from a folder, for comparison.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson

from benchmarks.archive_host import ArchiveHost
from benchmarks.durability.manifest_memory import rewritten
from benchmarks.meter import MIB, watch
from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from datafetch.demo.manifest import write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import write_pictures
from datafetch.model.outcome import OK

_PICTURES = 50
_CAPTION_BYTES = 200
_REPOSITORY = "hf://datasets/kakaobrain/coyo-700m@main"
_DETAILS = ("manifest_mib", "elapsed_s", OTHERS_SHARE)


def main() -> int:
    """Measure, print and save; return 1 if an image did not arrive."""
    arguments = _arguments()
    with TemporaryDirectory(prefix="datafetch-benchmark-", dir=arguments.folder) as name:
        folder = Path(name)
        pictures = write_pictures(folder / "pictures", _PICTURES)
        with Origin(folder / "pictures") as origin:
            urls = [origin.url("well", pictures[number % len(pictures)], number) for number in range(arguments.wanted)]
            sources = {f"{rows:,} rows": _write(folder / str(rows), urls, rows) for rows in arguments.rows}
            runs = [
                run
                for kind in kinds(arguments.warm_ups, arguments.runs)
                for case, source in sources.items()
                for run in _measure(case, kind, source, folder / "root", is_large=case == list(sources)[-1])
            ]
    record = Record("remote_manifest_memory", "parent's peak memory", "MiB", {**vars(arguments), "folder": None}, runs)
    small, *others = record.cases
    growth = [
        f"{case}: {record.ratio(case, small):.3f} × {small}, {record.median(case) - record.median(small):+.1f} MiB"
        for case in others
    ]
    record.show(_DETAILS, growth)
    return 0 if all(set(run.outcomes) == {OK} for run in runs) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each manifest")
    parser.add_argument("--warm-ups", type=int, default=1, help="unmeasured runs of each before those")
    parser.add_argument("--wanted", type=int, default=1000, help="rows to select")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 3_000_000], help="rows of each manifest")
    parser.add_argument("--folder", type=Path, help="where to work, instead of the system's temporary folder")
    return parser.parse_args()


def _write(folder: Path, urls: list[str], rows: int) -> Path:
    source = write_coyo_source(folder / "written", urls, files=2, rows=rows)
    rewritten(source, folder / "data", caption_bytes=_CAPTION_BYTES)
    shutil.rmtree(source.folder)
    return source.ids.rename(folder / "ids.txt").parent


def _measure(case: str, kind: RunKind, source: Path, root: Path, *, is_large: bool) -> list[Run]:
    with ArchiveHost(source) as host:
        os.environ.update(HF_ENDPOINT=host.endpoint, HF_HOME=str(root.with_name("cache")))
        remote = _prepare(f"{case}, on the hub", kind, _REPOSITORY, source, root)
    return [remote, _prepare(f"{case}, here", kind, str(source / "data"), source, root)] if is_large else [remote]


def _prepare(case: str, kind: RunKind, place: str, source: Path, root: Path) -> Run:
    options = ("--ids", str(source / "ids.txt"), "--root", str(root), "--allow-net", "127.0.0.0/8")
    command = [sys.executable, "-m", "datafetch", "prepare", "coyo", "--source", place, *options]
    try:
        usage = watch([*command, "--connections", "64", "--no-reshard", "--json"], interval_s=0.02)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    images: Mapping[str, object] = orjson.loads(usage.stdout)["images"]
    details = {
        "manifest_mib": sum(path.stat().st_size for path in source.rglob("*.parquet")) / MIB,
        "elapsed_s": usage.elapsed_s,
        OTHERS_SHARE: usage.others_share * 100,
    }
    by_kind = images["by_kind"]
    assert isinstance(by_kind, dict), "as the command prints it"
    return Run(case, kind, usage.parent_peak_bytes / MIB, details, {OK: int(str(images["ok"])), **by_kind})


if __name__ == "__main__":
    sys.exit(main())
