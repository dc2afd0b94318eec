"""Do 50,000,000 rows of which 2,000 are wanted take more memory than a million, and how soon does a killed run go on?

The real command ``get`` is measured, with a condition that the statistics of no row group rule out: the peak memory of
its parent process, the only one that reads the list, for parquet of several sizes and for the largest as CSV; and its
time. Then a run on the largest is killed when it has read four fifths of what it searches, and another when it has
requested four fifths of the images, and the time from the start of the next run to its first request is measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import orjson
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from pyarrow import csv

from benchmarks.cpu_clock import CpuClock
from benchmarks.meter import MIB, watch
from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from datafetch.demo.origin import Origin
from datafetch.model.outcome import OK

_GROUP_ROWS = 100_000
_STEP_ROWS = 1_000_000  # generated at once
_WANTED_WIDTH = 5000  # all other rows have less
_KILLED_AT = 0.8
_INTERVAL_S = 0.02
_POLL_S = 0.05  # of the origin, which counts requests
_PICTURE = "picture.jpg"
_DETAILS = ("elapsed_s", "total_peak_mib", "cpu_s", "list_mib", OTHERS_SHARE)
_RESTART_DETAILS = ("cpu_s_until_request", "elapsed_s", "reused", OTHERS_SHARE)


@dataclass(frozen=True, slots=True)
class _List:
    """A list that was generated.

    Attributes:
        path: The file.
        searched_bytes: The size of what a run reads to find the rows that it wants.
        wanted: The number of these rows.
    """

    path: Path
    searched_bytes: int
    wanted: int


def main() -> int:
    """Measure, print and save; return 1 if an image did not arrive."""
    arguments = _arguments()
    with TemporaryDirectory(prefix="datafetch-benchmark-", dir=arguments.folder) as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        Image.new("RGB", (64, 48), (200, 60, 30)).save(folder / "pictures" / _PICTURE)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        with Origin(folder / "pictures") as origin:
            largest = arguments.rows[-1]
            kinds_and_rows = [("parquet", rows) for rows in arguments.rows] + [("csv", largest)]
            lists = {
                f"{rows:,} rows, {kind}": _write(folder / f"{rows}.{kind}", rows, arguments.wanted, origin)
                for kind, rows in kinds_and_rows
            }
            turns = kinds(arguments.warm_ups, arguments.runs)
            runs = [_measure(case, kind, one, folder / "root") for kind in turns for case, one in lists.items()]
            parameters = {**vars(arguments), "folder": None, "row_group_rows": _GROUP_ROWS, "killed_at": _KILLED_AT}
            _show_memory(Record("list_rows", "parent's peak memory", "MiB", parameters, runs))
            restarts = [
                _restart(f"{case}, killed {phase}", kind, one, folder / "root", (origin, is_searching))
                for kind in turns
                for case, one in list(lists.items())[-2:]
                for phase, is_searching in (("searching", True), ("fetching", False))
            ]
            Record("list_rows-restart", "next request after", "s", parameters, restarts).show(_RESTART_DETAILS)
    return 0 if all(run.outcomes == {OK: arguments.wanted} for run in runs + restarts) else 1


def _show_memory(record: Record) -> None:
    small, *others = record.cases
    base = record.median(small)
    growth = [
        f"{one}: {record.ratio(one, small):.3f} × {small}, {record.median(one) - base:+.1f} MiB" for one in others
    ]
    record.show(_DETAILS, growth)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=0, help="unmeasured runs of each before those")
    parser.add_argument("--wanted", type=int, default=2000, help="rows that meet the condition")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1_000_000, 10_000_000, 50_000_000], help="rows of each list, ascending"
    )
    parser.add_argument("--folder", type=Path, help="where to work, instead of the system's temporary folder")
    return parser.parse_args()


def _write(path: Path, rows: int, wanted: int, origin: Origin) -> _List:
    """Write a list in which rows at equal distances are wanted."""
    prefix = origin.url("well", _PICTURE, 0)[:-1]
    generator = np.random.default_rng(rows)
    writer: pq.ParquetWriter | csv.CSVWriter | None = None
    for start in range(0, rows, _STEP_ROWS):
        numbers = np.arange(start, min(start + _STEP_ROWS, rows))
        widths = generator.integers(64, 4096, len(numbers)).astype(np.int32)
        widths[numbers % (rows // wanted) == 0] = _WANTED_WIDTH
        texts = pa.array(numbers).cast(pa.string())
        columns = {
            "URL": pc.binary_join_element_wise(prefix, texts, ""),
            "TEXT": pc.binary_join_element_wise("the caption of row", texts, 'with "quotes", and commas', " "),
            "width": pa.array(widths),
            "similarity": pa.array(generator.random(len(numbers))),
        }
        table = pa.table(columns)
        if path.suffix == ".csv":
            writer = writer or csv.CSVWriter(path, table.schema)
            writer.write_table(table)
        else:
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table, row_group_size=_GROUP_ROWS)
    assert writer is not None, "there are rows"
    writer.close()
    return _List(path, _searched_bytes(path), wanted)


def _searched_bytes(path: Path) -> int:
    if path.suffix == ".csv":
        return path.stat().st_size
    metadata = pq.read_metadata(path)
    column = metadata.schema.names.index("width")
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    return sum(int(group.column(column).total_compressed_size) for group in groups)


def _command(one: _List, root: Path) -> list[str]:
    options = ("--where", f"width >= {_WANTED_WIDTH}", "--allow-net", "127.0.0.0/8", "--per-host", "64", "--json")
    return [sys.executable, "-m", "datafetch", "get", str(one.path), "--out", str(root / "out"), *options]


def _measure(case: str, kind: RunKind, one: _List, root: Path) -> Run:
    try:
        usage = watch(_command(one, root), interval_s=_INTERVAL_S)
    finally:
        _clear(root)
    details = {
        "elapsed_s": usage.elapsed_s,
        "total_peak_mib": usage.total_peak_bytes / MIB,
        "cpu_s": usage.whole_cpu_s,
        "list_mib": one.path.stat().st_size / MIB,
        OTHERS_SHARE: usage.others_share * 100,
    }
    return Run(case, kind, usage.parent_peak_bytes / MIB, details, _outcomes(orjson.loads(usage.stdout)))


def _restart(case: str, kind: RunKind, one: _List, root: Path, where: tuple[Origin, bool]) -> Run:
    """Kill a run, and measure the next one."""
    origin, is_searching = where
    before = _requests(origin)
    root.mkdir()

    def is_far(process: psutil.Process) -> bool:
        if is_searching:
            return int(process.io_counters().read_chars) > one.searched_bytes * _KILLED_AT
        return _requests(origin) - before > one.wanted * _KILLED_AT

    def has_requested(_: psutil.Process) -> bool:
        return _requests(origin) > at_kill

    try:
        with (root / "stderr").open("wb") as stderr:
            with subprocess.Popen(_command(one, root), stdout=subprocess.DEVNULL, stderr=stderr) as killed:
                _wait(killed, is_far)
                killed.kill()
            at_kill = _requests(origin)
            clock, started_s = CpuClock(), time.perf_counter()
            with subprocess.Popen(_command(one, root), stdout=subprocess.PIPE, stderr=stderr) as process:
                _wait(process, has_requested)
                waited_s = time.perf_counter() - started_s
                times = psutil.Process(process.pid).cpu_times()
                stdout, _ = process.communicate()
            spent = clock.stop()
        report = orjson.loads(stdout)
    finally:
        _clear(root)
    details = {
        "cpu_s_until_request": times.user + times.system,
        "elapsed_s": spent.elapsed_s,
        "reused": float(report["images"]["reused"]),
        OTHERS_SHARE: spent.others_share * 100,
    }
    return Run(case, kind, waited_s, details, _outcomes(report))


def _wait(process: subprocess.Popen[bytes], is_so: Callable[[psutil.Process], bool]) -> None:
    """Wait until something is so.

    Raises:
        RuntimeError: The process has ended before.
    """
    watched = psutil.Process(process.pid)
    while not is_so(watched):
        if process.poll() is not None:
            raise RuntimeError("the run ended too early; give more rows")
        time.sleep(_POLL_S)


def _requests(origin: Origin) -> int:
    return sum(origin.requests().values())


def _clear(root: Path) -> None:
    """Delete the output, its state, and what scans have kept in the cache."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.rmtree(Path(os.environ["XDG_CACHE_HOME"]), ignore_errors=True)


def _outcomes(report: Mapping[str, Mapping[str, object]]) -> dict[str, int]:
    by_kind = report["images"]["by_kind"]
    assert isinstance(by_kind, dict), "as the command prints it"
    return {OK: int(str(report["images"]["ok"])), **by_kind}


if __name__ == "__main__":
    sys.exit(main())
