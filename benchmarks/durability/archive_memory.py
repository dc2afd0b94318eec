"""Does an archive of 1,000,000 members take more memory than one of 10,000, if 1,000 of them are needed?

The real command is measured: the peak memory of its parent process, which reads the archive's directory. The members
are small JPEGs, and those that are needed, as a training list names them, are spread over the archive.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import sys
import zlib
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
from PIL import Image

from benchmarks.meter import MIB, watch
from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from datafetch.model.outcome import OK

_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s4B4H3L5H2L")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")
_DETAILS = ("elapsed_s", "directory_mib", OTHERS_SHARE)


def main() -> int:
    """Measure, print and save; return 1 if an image did not arrive."""
    arguments = _arguments()
    with TemporaryDirectory(prefix="datafetch-benchmark-", dir=arguments.folder) as name:
        folder = Path(name)
        cases = {f"{members:,} members": _write(folder, members, arguments.wanted) for members in arguments.members}
        runs = [
            _measure(case, kind, archive, folder / "root")
            for kind in kinds(arguments.warm_ups, arguments.runs)
            for case, archive in cases.items()
        ]
    record = Record("archive_memory", "parent's peak memory", "MiB", {**vars(arguments), "folder": None}, runs)
    small, *others = record.cases
    growth = [
        f"{case}: {record.ratio(case, small):.3f} × {small}, {record.median(case) - record.median(small):+.1f} MiB"
        for case in others
    ]
    record.show(_DETAILS, growth)
    return 0 if all(set(run.outcomes) == {OK} for run in runs) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each archive")
    parser.add_argument("--warm-ups", type=int, default=1, help="unmeasured runs of each before those")
    parser.add_argument("--wanted", type=int, default=1000, help="members that are needed")
    parser.add_argument(
        "--members", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="members of each archive"
    )
    parser.add_argument("--folder", type=Path, help="where to work, instead of the system's temporary folder")
    return parser.parse_args()


def _write(folder: Path, members: int, wanted: int) -> Path:
    """Write an archive, and next to it the list that names the members that are needed; ``zipfile`` takes minutes."""
    buffer = BytesIO()
    Image.new("RGB", (16, 16), (200, 120, 40)).save(buffer, "JPEG")
    content, path = buffer.getvalue(), folder / str(members) / "train2017.zip"
    crc32, size = zlib.crc32(content), len(content)
    path.parent.mkdir()
    directory = bytearray()
    with path.open("wb") as archive:
        offset = 0
        for number in range(members):
            name = f"train2017/{number:012d}.jpg".encode()
            header = _LOCAL.pack(b"PK\3\4", 20, 0, 0, 0, 33, crc32, size, size, len(name), 0)
            entry = (20, 3, 20, 0, 0, 0, 0, 33, crc32, size, size, len(name), 0, 0, 0, 0, 0o100644 << 16, offset)
            archive.write(header + name + content)
            directory += _ENTRY.pack(b"PK\1\2", *entry) + name
            offset += len(header) + len(name) + size
        archive.write(directory)
        end = offset + len(directory)
        archive.write(_END_64.pack(b"PK\6\6", 44, 45, 45, 0, 0, members, members, len(directory), offset))
        archive.write(_LOCATOR_64.pack(b"PK\6\7", 0, end, 1))
        archive.write(_END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    names = (f"coco/train2017/{number * members // wanted:012d}.jpg" for number in range(wanted))
    path.with_suffix(".json").write_text(json.dumps([{"image": name} for name in names]))
    return path


def _measure(case: str, kind: RunKind, archive: Path, root: Path) -> Run:
    options = ("--only-referenced", str(archive.with_suffix(".json")), "--root", str(root), "--json")
    command = [sys.executable, "-m", "datafetch", "prepare", "coco-train2017", "--source", str(archive), *options]
    try:
        usage = watch(command, interval_s=0.02)
        directory = root / "coco/train2017.datafetch/archives/0.directory"
        directory_bytes = directory.stat().st_size
    finally:
        shutil.rmtree(root, ignore_errors=True)
    images = orjson.loads(usage.stdout)["images"]
    details = {
        "elapsed_s": usage.elapsed_s,
        "directory_mib": directory_bytes / MIB,
        OTHERS_SHARE: usage.others_share * 100,
    }
    return Run(case, kind, usage.parent_peak_bytes / MIB, details, {OK: int(images["ok"]), **images["by_kind"]})


if __name__ == "__main__":
    sys.exit(main())
