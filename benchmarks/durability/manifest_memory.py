"""Does a manifest of 1,000,000 rows take more memory than one of 10,000, if 1,000 rows are selected from each?

The real command is measured: the peak memory of its parent process, the only one that reads the manifest. The large
manifest comes in three forms: in row groups of 100,000 rows; in a single row group, as pyarrow writes it by default;
and in a single row group with captions of COYO's length, for large column chunks. There is also one of 100,000 rows, a
full row group: reading takes some memory for one page of each column, which the smallest manifest does not fill, and
the difference is not growth with the number of rows.
"""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.meter import MIB
from benchmarks.preparation import prepare
from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import write_pictures

_PICTURES = 50
_CAPTION_BYTES = 100  # about the length of COYO's captions
_INTERVAL_S = 0.02
_DETAILS = ("total_peak_mib", "elapsed_s", OTHERS_SHARE)


def main() -> None:
    """Measure, print and save."""
    arguments = _arguments()
    with TemporaryDirectory(prefix="datafetch-benchmark-", dir=arguments.folder) as name:
        folder = Path(name)
        pictures = write_pictures(folder / "pictures", _PICTURES)
        with Origin(folder / "pictures") as origin:
            urls = [origin.url("well", pictures[number % len(pictures)], number) for number in range(arguments.wanted)]
            sources = _write_sources(folder, urls, arguments)
            runs = [
                _measure(case, kind, source=source, root=folder / "root", connections=arguments.connections)
                for kind in kinds(arguments.warm_ups, arguments.runs)
                for case, source in sources.items()
            ]
    record = Record("manifest_memory", "parent's peak memory", "MiB", _parameters(arguments, sources), runs)
    small, middle, *_ = record.cases
    remarks = [
        f"{case}: {record.ratio(case, base):.3f} × {base}, {record.median(case) - record.median(base):+.1f} MiB"
        for base in (small, middle)
        for case in record.cases[record.cases.index(base) + 1 :]
    ]
    record.show(_DETAILS, remarks)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=7, help="measured runs of each manifest")
    parser.add_argument("--warm-ups", type=int, default=1, help="unmeasured runs of each before those")
    parser.add_argument("--wanted", type=int, default=1000, help="rows to select")
    parser.add_argument("--small", type=int, default=10_000, help="rows of the small manifest")
    parser.add_argument("--middle", type=int, default=100_000, help="rows of the middle one")
    parser.add_argument("--large", type=int, default=1_000_000, help="rows of the large one")
    parser.add_argument("--connections", default="64", help="the option of datafetch prepare")
    parser.add_argument("--folder", type=Path, help="where to work, instead of the system's temporary folder")
    return parser.parse_args()


def _write_sources(folder: Path, urls: list[str], arguments: argparse.Namespace) -> Mapping[str, CoyoSource]:
    small = write_coyo_source(folder / "small", urls, rows=arguments.small)
    large = write_coyo_source(folder / "large", urls, rows=arguments.large)
    rows = f"{arguments.large:,} rows"
    return {
        f"{arguments.small:,} rows": small,
        f"{arguments.middle:,} rows": write_coyo_source(folder / "middle", urls, rows=arguments.middle),
        f"{rows}, row groups of 100,000": large,
        f"{rows}, one row group": rewritten(large, folder / "one-group", caption_bytes=0),
        f"{rows}, one row group, long captions": rewritten(large, folder / "long", caption_bytes=_CAPTION_BYTES),
    }


def rewritten(source: CoyoSource, folder: Path, *, caption_bytes: int) -> CoyoSource:
    """Write the same rows in one row group, with captions extended by text that does not compress."""
    folder.mkdir(parents=True)
    for path in source.folder.glob("*.parquet"):
        table = pq.read_table(path)
        if caption_bytes:
            fillers = pa.array(secrets.token_hex(caption_bytes // 2) for _ in range(len(table)))
            column = table.schema.get_field_index("text")
            table = table.set_column(column, "text", pc.binary_join_element_wise(table["text"], fillers, " "))
        pq.write_table(table, folder / path.name, row_group_size=len(table))
        assert pq.read_metadata(folder / path.name).num_row_groups == 1
    return replace(source, folder=folder)


def _measure(case: str, kind: RunKind, *, source: CoyoSource, root: Path, connections: str) -> Run:
    done = prepare(source, root, "--connections", connections, interval_s=_INTERVAL_S)
    details = {
        "total_peak_mib": done.usage.total_peak_bytes / MIB,
        "elapsed_s": done.usage.elapsed_s,
        OTHERS_SHARE: done.usage.others_share * 100,
    }
    return Run(case, kind, done.usage.parent_peak_bytes / MIB, details, done.outcomes())


def _parameters(arguments: argparse.Namespace, sources: Mapping[str, CoyoSource]) -> dict[str, object]:
    sizes = {case: sum(path.stat().st_size for path in source.folder.glob("*")) for case, source in sources.items()}
    return {**vars(arguments), "folder": None, "parquet_bytes": sizes}


if __name__ == "__main__":
    main()
