"""Does resharding gigabytes stay within 300 MB of memory, and how fast is it?

Shards of random pairs, of 60 KB each like COYO's, are written to a temporary folder and resharded by the real command,
shuffled and in order. The peak of its process's resident memory is measured, which does not include the kernel's page
cache. Memory holds 20 bytes for each row; ``--image-bytes 3000`` shows the effect of more rows.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import shutil
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.meter import MIB, watch
from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from datafetch.output.formats import PickleShardWriter, encode_row

_IMAGE_BYTES = 45_000  # 60 KB as base64
_SHARD_BYTES = 400 * MIB
_LIMIT_MIB = 300e6 / MIB
_DETAILS = ("mb_per_s", "elapsed_s", "cpu_s", OTHERS_SHARE)


def main() -> None:
    """Measure, print and save."""
    arguments = _arguments()
    runs = []
    with TemporaryDirectory(prefix="datafetch-benchmark-", dir=arguments.folder) as name:
        source = Path(name) / "source"
        _write_shards(source, int(arguments.gigabytes * 1e9), arguments.image_bytes)
        for kind in kinds(arguments.warm_ups, arguments.runs):
            for case, shuffle in (("shuffled", "0"), ("in order", "none")):
                options = ["--shuffle", shuffle, "--world-size", str(arguments.world_size)]
                runs.append(_measure(case, kind, source=source, options=options))
    record = Record("reshard_memory", "peak memory", "MiB", {**vars(arguments), "folder": None}, runs)
    worst = max(run.value for run in record.runs)
    verdict = "within" if worst <= _LIMIT_MIB else "OVER"
    record.show(_DETAILS, [f"the most of all runs: {worst:.0f} MiB, {verdict} the limit of {_LIMIT_MIB:.0f}"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=5.0, help="size of all shards, in 10**9 bytes")
    parser.add_argument("--image-bytes", type=int, default=_IMAGE_BYTES, help="size of an image, before base64")
    parser.add_argument("--world-size", type=int, default=64, help="number of ranks")
    parser.add_argument("--runs", type=int, default=1, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=0, help="unmeasured runs of each before those")
    parser.add_argument("--folder", type=Path, help="where to work, with room for twice the shards")
    return parser.parse_args()


def _write_shards(folder: Path, total_bytes: int, image_bytes: int) -> None:
    folder.mkdir()
    generator = random.Random(7)
    left_bytes = total_bytes
    number = 0
    while left_bytes > 0:
        shard_bytes = min(left_bytes, _SHARD_BYTES)
        with closing(PickleShardWriter(folder, f"part-{number:05d}")) as sink:
            for row in range(shard_bytes * 3 // (4 * image_bytes)):
                body = generator.randbytes(image_bytes + row % 997)
                sink.copy_row((encode_row({"id": row, "text": "a cat", "image": base64.b64encode(body).decode()}),))
            sink.finish()
        left_bytes -= shard_bytes
        number += 1


def _measure(case: str, kind: RunKind, *, source: Path, options: list[str]) -> Run:
    out = source.with_name("out")
    command = [sys.executable, "-m", "datafetch", "reshard", str(source), str(out), *options, "--json"]
    usage = watch(command)
    summary = json.loads(usage.stdout)
    shutil.rmtree(out)
    shutil.rmtree(out.with_name("out.datafetch"))
    details = {
        "mb_per_s": summary["bytes"] / usage.elapsed_s / 1e6,
        "elapsed_s": usage.elapsed_s,
        "cpu_s": sum(usage.cpu_s.values()),
        "rows": summary["rows"],
        OTHERS_SHARE: usage.others_share * 100,
    }
    return Run(case, kind, usage.parent_peak_bytes / MIB, details)


if __name__ == "__main__":
    main()
