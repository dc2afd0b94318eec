"""How much memory does the process that writes a shard of 2 GB take, and how fast is it?

The spool is written directly, with random bytes in place of JPEGs and not in manifest order; then the real commit
process makes the shard from it. The peak of that process's resident memory is measured. It must not grow with the
shard, so a shard of a tenth of the size is committed in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks.meter import MIB, Meter, Role
from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from datafetch.datasets import find_dataset
from datafetch.model.ledger_line import LedgerLine, ShardCounts
from datafetch.model.outcome import Body, Encoded
from datafetch.model.sample import Sample
from datafetch.output.commit import Commit
from datafetch.output.commit_process import CommitProcesses
from datafetch.output.merge import Output
from datafetch.store.layout import OutputLayout
from datafetch.store.spool_format import ImageResult, SpoolRecord
from datafetch.store.spool_writer import write_spool

_SHARD = "part-00000"
_INTERVAL_S = 0.02
_PEAK_RSS = re.compile(r"^VmHWM:\s*(\d+) kB$", re.MULTILINE)
_DETAILS = ("written_mib", "mib_per_s", "elapsed_s", OTHERS_SHARE)
_LIMIT_MIB = 300


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a shard: its images, and the bytes of each, of which base64 makes four thirds."""

    images: int
    image_bytes: int

    @classmethod
    def of_shard(cls, shard_bytes: int, image_bytes: int) -> Size:
        """The size that gives a shard of about this many bytes."""
        return cls(max(1, shard_bytes * 3 // (image_bytes * 4)), image_bytes)


def main() -> None:
    """Measure, print and save."""
    arguments = _arguments()
    shard_bytes = int(arguments.shard_mib * MIB)
    cases = {
        f"shard of {part:,.0f} MiB": Size.of_shard(int(part * MIB), arguments.image_bytes)
        for part in (shard_bytes / MIB / 10, shard_bytes / MIB)
    }
    with TemporaryDirectory(prefix="datafetch-benchmark-", dir=arguments.folder) as name:
        runs = [
            _measure(case, kind, Path(name) / "out", size)
            for kind in kinds(arguments.warm_ups, arguments.runs)
            for case, size in cases.items()
        ]
    parameters = {**vars(arguments), "folder": None, "limit_mib": _LIMIT_MIB}
    record = Record("commit_memory", "commit process's peak memory", "MiB", parameters, runs)
    small, large = record.cases
    worst = max(record.values(large))
    record.show(
        _DETAILS,
        [
            f"{large}: {record.median(large) - record.median(small):+.1f} MiB over the {small}",
            f"at most {worst:.0f} MiB, {'under' if worst < _LIMIT_MIB else 'NOT UNDER'} the {_LIMIT_MIB} it may take",
        ],
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each size")
    parser.add_argument("--warm-ups", type=int, default=0, help="unmeasured runs of each before those")
    parser.add_argument("--shard-mib", type=float, default=2048, help="size of the shard as the trainer reads it")
    parser.add_argument("--image-bytes", type=int, default=30_000, help="size of an image, before base64")
    parser.add_argument("--folder", type=Path, help="where to work, instead of the system's temporary folder")
    return parser.parse_args()


def _measure(case: str, kind: RunKind, out: Path, size: Size) -> Run:
    state = OutputLayout(out)
    write_spool(state.spool(_SHARD), _ended(size))
    commit = Commit(Output(find_dataset("coyo"), state), _SHARD, size.images)
    try:
        return asyncio.run(_watch(case, kind, commit))
    finally:
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(state.state_folder, ignore_errors=True)


def _ended(size: Size) -> Iterator[SpoolRecord]:
    """Yield samples and images as they may end in a run: neighbours out of order, and some images far too late."""
    rng = random.Random(0)
    noise = rng.randbytes(2 * size.image_bytes)
    for position in sorted(range(size.images), key=lambda position: position + rng.expovariate(1 / 500)):
        url = f"https://images.example.org/{position:09d}.jpg"
        row = {
            "id": position,
            "url": url,
            "text": f"a caption of about the usual length, number {position}",
            "clip_sim": 0.7,
        }
        sample = Sample(position, str(position), (url,), row)
        first = rng.randrange(size.image_bytes)
        encoded = Encoded(noise[first : first + size.image_bytes], 336, 448, "JPEG", f"{position:064x}")
        line = LedgerLine.of(sample, 0, Body(b"", url, 1, 100.0), encoded)
        yield ImageResult(line, encoded.jpeg)
        yield sample


async def _commit(commit: Commit) -> ShardCounts:
    async with CommitProcesses() as commit_in_process:
        return await commit_in_process(commit)


async def _watch(case: str, kind: RunKind, commit: Commit) -> Run:
    meter = Meter()
    started_s = time.perf_counter()
    committing = asyncio.create_task(_commit(commit))
    peak_bytes = 0
    while not committing.done():
        peak_bytes = max(peak_bytes, _peak_bytes())
        meter.sample()
        await asyncio.wait([committing], timeout=_INTERVAL_S)
    elapsed_s = time.perf_counter() - started_s
    totals: ShardCounts = committing.result()
    written_mib = totals.written_bytes / MIB
    details = {
        "written_mib": written_mib,
        "mib_per_s": written_mib / elapsed_s,
        "elapsed_s": elapsed_s,
        "commit_cpu_s": meter.cpu_s()[Role.COMMIT],
        OTHERS_SHARE: meter.others_share() * 100,
    }
    return Run(case, kind, peak_bytes / MIB, details, dict(totals.outcomes))


def _peak_bytes() -> int:
    """The high-water mark of the commit process's resident memory; 0 if it is not running."""
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            if "datafetch.output.commit_process" in " ".join(process.cmdline()):
                match = _PEAK_RSS.search(Path(f"/proc/{process.pid}/status").read_text())
                return int(match[1]) * 1024 if match else 0
    return 0


if __name__ == "__main__":
    main()
