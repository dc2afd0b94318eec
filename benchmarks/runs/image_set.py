"""How close does an image set from an archive come to bare processes that only open its members and convert them?

The archive has JPEGs like COCO's, 640 × 480 pixels in some 160 KB, under COCO's names. In turn, ``datafetch prepare
coco-train2017`` takes it from a server on this machine, which runs on the same cores, and from the file itself; and the
same number of bare processes read each member with Python's ``zipfile``, which checks its size and its checksum, and do
with it what the trainer does: ``Image.open(file).convert("RGB")``. They write nothing.

Nothing is deleted before the end: ext4 takes ten times as long to create a file while thousands were deleted a moment
ago.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import zipfile
from collections import Counter
from io import BytesIO
from multiprocessing.pool import Pool
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import orjson
from PIL import Image

from benchmarks.archive_host import ArchiveHost
from benchmarks.meter import MIB, Meter, Role, watch
from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from datafetch.demo.pictures import write_pictures
from datafetch.model.outcome import OK

_BARE, _SERVER, _FILE = "bare processes", "from a server", "from a file"
_CHUNK_IMAGES = 16
_SIZE_PX, _QUALITY = (640, 480), 97
_DETAILS = ("codec_cpu_ms", "parent_cpu_ms", "commit_cpu_ms", "peak_mib", OTHERS_SHARE)

_archive: list[zipfile.ZipFile] = []
"""The archive, in a bare process."""


def main() -> int:
    """Measure, print and save; return 1 if an image did not arrive."""
    arguments = _arguments()
    with TemporaryDirectory(prefix="datafetch-benchmark-", dir=arguments.folder) as name:
        folder = Path(name)
        archive = folder / "train2017.zip"
        names = _write_archive(archive, folder / "pictures", arguments.images, arguments.pictures)
        spawn = multiprocessing.get_context("spawn")
        with ArchiveHost(folder) as host, spawn.Pool(arguments.processes, _open, (archive,)) as pool:
            runs = [
                run
                for kind in kinds(arguments.warm_ups, arguments.runs)
                for run in (
                    _run_bare(kind, pool, names),
                    _run_command(_SERVER, kind, host.url(archive.name), folder, arguments),
                    _run_command(_FILE, kind, str(archive), folder, arguments),
                )
            ]
        mean_bytes = archive.stat().st_size / arguments.images
    parameters = {**vars(arguments), "folder": None, "mean_member_bytes": mean_bytes}
    record = Record("image_set", "speed", "images/s", parameters, runs)
    remarks = [f"{case}: {record.quiet_percent(case, _BARE)} of the bare processes' speed" for case in (_SERVER, _FILE)]
    record.show(_DETAILS, [f"mean member {mean_bytes / 1000:.1f} kB", *remarks])
    return 0 if all(set(run.outcomes) == {OK} for run in runs) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=1, help="unmeasured runs of each before those")
    parser.add_argument("--images", type=int, default=8000, help="members of the archive")
    parser.add_argument("--pictures", type=int, default=400, help="distinct pictures among them")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="codec processes")
    parser.add_argument("--folder", type=Path, help="where to work, instead of the system's temporary folder")
    return parser.parse_args()


def _write_archive(path: Path, pictures: Path, images: int, distinct: int) -> list[str]:
    bodies = [_like_coco(pictures / name) for name in write_pictures(pictures, distinct)]
    names = [f"train2017/{number:012d}.jpg" for number in range(images)]
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(zipfile.ZipInfo(name), bodies[number % len(bodies)])
    return names


def _like_coco(picture: Path) -> bytes:
    buffer = BytesIO()
    Image.open(picture).convert("RGB").resize(_SIZE_PX).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _open(path: Path) -> None:
    _archive.append(zipfile.ZipFile(path))


def _convert(name: str) -> str:
    Image.open(BytesIO(_archive[0].read(name))).convert("RGB")
    return OK


def _run_bare(kind: RunKind, pool: Pool, names: list[str]) -> Run:
    meter, started_s = Meter(), time.perf_counter()
    counts = Counter(pool.imap_unordered(_convert, names, chunksize=_CHUNK_IMAGES))
    elapsed_s = time.perf_counter() - started_s
    meter.sample()
    details = {
        "codec_cpu_ms": meter.cpu_s()[Role.CODEC] / len(names) * 1000,
        OTHERS_SHARE: meter.others_share() * 100,
    }
    return Run(_BARE, kind, len(names) / elapsed_s, details, dict(counts))


def _run_command(case: str, kind: RunKind, source: str, folder: Path, arguments: argparse.Namespace) -> Run:
    root = Path(mkdtemp(dir=folder))
    options = ("--root", str(root), "--allow-net", "127.0.0.0/8", "--processes", str(arguments.processes), "--json")
    command = [sys.executable, "-m", "datafetch", "prepare", "coco-train2017", "--source", source, *options]
    usage = watch(command)
    summary = orjson.loads(usage.stdout)
    images = int(summary["images"]["total"])
    roles = (Role.CODEC, Role.PARENT, Role.COMMIT)
    details = {
        **{f"{role}_cpu_ms": usage.cpu_s[role] / images * 1000 for role in roles},
        "peak_mib": usage.parent_peak_bytes / MIB,
        OTHERS_SHARE: usage.others_share * 100,
    }
    outcomes = {OK: int(summary["images"]["ok"]), **summary["images"]["by_kind"]}
    return Run(case, kind, images / float(summary["elapsed_s"]), details, outcomes)


if __name__ == "__main__":
    sys.exit(main())
