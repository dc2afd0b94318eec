"""Puts the newest records of the comparison on record, and writes the pages that state them.

Rules: no figure is typed. ``results/`` holds what is stated of each match; the table and the figure of README.md and
the page docs/comparison.md are made of that alone, the same bytes each time, and a test compares them.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from benchmarks.record import NEW_RESULTS, OTHERS_SHARE
from benchmarks.rivals.chart import Group, draw_chart
from benchmarks.rivals.matches import MATCHES, Match
from datafetch.model.outcome import OK

_ROOT = Path(__file__).resolve().parents[2]
_PREFIX = "comparison-"
_BEGIN, _END = "<!-- comparison -->\n", "<!-- end of comparison -->\n"
_COLUMNS = ("datafetch", "img2dataset", "Daft")
_LIMITS = ("Pillow alone", "libcurl, multi")
_NONE = ""
_PAGE = """# datafetch beside other tools

Made by `scripts/benchmark --state` from the records in `benchmarks/results/`; don't edit. `scripts/benchmark` measures
again, on your machine; [benchmarks/](../benchmarks/README.md) describes the pictures and the origin.

A command is measured from its start to its end: good images a second, CPU milliseconds of all its processes for each
good image, the peak memory of all its processes (shared pages counted once), good images, and the requests that the
origin saw. What differs:

* datafetch commits each shard to disk and makes equal shards for 64 ranks at the end.
* img2dataset writes WebDataset, with {threads} threads in each of its processes (256, its default, where the web is
  slow or hostile), and does not extract EXIF. It shrinks with OpenCV's INTER_AREA.
* Daft writes parquet. It can't shrink to a ratio, keeps originals that are no JPEGs, and trusts no authority but those
  that are built into it, so over HTTPS it can't take part here.
* Pillow alone is the recipe's few lines of Python in as many processes, with the bodies in memory; its times leave out
  the start.
* Fetching alone, datafetch and libcurl drop the bodies, in one process, and their CPU times leave out the start;
  img2dataset writes nothing, in two, and Daft keeps the sizes. `fetch_images` checks each body at its header and its
  end, and hands it over; so does Daft's `download`, without a check.
"""


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of README.md's table: the match, and the case that stands in datafetch's column."""

    match: str
    title: str
    case: str = "datafetch"


_ROWS = (
    _Row("recipe-https", "encode again, HTTPS"),
    _Row("recipe", "encode again, HTTP"),
    _Row("336", "shrink to 336 px, `--resize fast`", "datafetch, fast"),
    _Row("336", "shrink to 336 px, exact"),
    _Row("336", "the same with Pillow-SIMD", "datafetch, Pillow-SIMD"),
    _Row("original", "keep original JPEGs"),
    _Row("fetch-https", "fetch alone, HTTPS"),
    _Row("list-https", "`get`: a list, original images, HTTPS", "datafetch get"),
    _Row("list-received", "`get`: images as received, HTTP", "datafetch get"),
    _Row("faults", "encode again, 30 % bad URLs"),
)


@dataclass(frozen=True, slots=True)
class Pages:
    """What is written from the records.

    Attributes:
        block: The part of README.md between the markers.
        page: docs/comparison.md.
        figure: docs/comparison.svg.
    """

    block: str
    page: str
    figure: str


def main() -> int:
    """Put records into ``results/`` and write the pages; return 2 if there is no record."""
    parser = argparse.ArgumentParser(
        "scripts/benchmark --state", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=_ROOT, help="the project's folder")
    parser.add_argument("--new", type=Path, default=NEW_RESULTS, help="the folder of the new records")
    arguments = parser.parse_args()
    results: Path = arguments.root / "benchmarks" / "results"
    newest = {match.name: _newest(arguments.new, match.name) for match in MATCHES}
    found = {name: path for name, path in newest.items() if path is not None}
    if not found:
        print(f"there is no record of the comparison in {arguments.new}; run scripts/benchmark first", file=sys.stderr)
        return 2
    for name, path in found.items():
        stated = state(orjson.loads(path.read_bytes()))
        (results / f"{_PREFIX}{name}.json").write_bytes(
            orjson.dumps(stated, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        )
    write_pages(arguments.root)
    print(f"stated: {', '.join(found)}")
    return 0


def state(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is stated of a record: the medians over its measured runs, rounded as they are printed."""
    measured = [run for run in record["runs"] if run["kind"] == "measured"]
    by_case: dict[str, list[Mapping[str, Any]]] = {}
    for run in measured:
        by_case.setdefault(run["case"], []).append(run)
    parameters = dict(record["parameters"])
    return {
        "name": record["name"],
        "stated_in": "docs/comparison.md",
        "stated_on": record["ended_at"].partition("T")[0],
        "commit": parameters.pop("commit"),
        "statistic": f"medians of {len(measured) // len(by_case)} runs",
        "machine": {name: record["machine"][name] for name in ("cpu_model", "cores", "python", "packages")},
        "others_cpu_percent_most": round(max(run["details"][OTHERS_SHARE] for run in measured)),
        "parameters": parameters,
        "cases": {case: _figures(runs) for case, runs in by_case.items()},
    }


def _figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {
        "images_per_s": round(median([run["value"] for run in runs])),
        "cpu_ms": round(median([run["details"]["cpu_ms"] for run in runs]), 2),
        "parent_cpu_ms": round(median([run["details"]["parent_cpu_ms"] for run in runs]), 2),
        "peak_mib": round(median([run["details"]["peak_mib"] for run in runs])),
        "good": min(run["outcomes"].get(OK, 0) for run in runs),
        "requests": round(median([run["details"]["requests"] for run in runs])),
    }


def write_pages(root: Path) -> None:
    """Write what ``make_pages`` returns."""
    pages = make_pages(root / "benchmarks" / "results")
    readme = root / "README.md"
    readme.write_text(put_block(readme.read_text(), pages.block))
    (root / "docs" / "comparison.md").write_text(pages.page)
    (root / "docs" / "comparison.svg").write_text(pages.figure)


def put_block(text: str, block: str) -> str:
    """Replace what is between the markers."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    return f"{before}{begin}{block}{end}{after}"


def make_pages(results: Path) -> Pages:
    """Make the pages of the records in a folder."""
    paths = {match.name: results / f"{_PREFIX}{match.name}.json" for match in MATCHES}
    records = {name: orjson.loads(path.read_bytes()) for name, path in paths.items() if path.exists()}
    if not records:
        return Pages("", "", "")
    threads = next(iter(records.values()))["parameters"]["threads"]
    sections = (line for match in MATCHES if match.name in records for line in _section(match, records[match.name]))
    rows = [row for row in _ROWS if row.match in records and row.case in records[row.match]["cases"]]
    return Pages(
        "".join(_block(rows, records)),
        _PAGE.format(threads=threads) + "".join(sections),
        draw_chart([_group(row, records[row.match]["cases"]) for row in rows]),
    )


def _newest(folder: Path, match: str) -> Path | None:
    pattern = re.compile(rf"{re.escape(_PREFIX + match)}-\d{{8}}T\d{{6}}\.json")
    return max((path for path in folder.glob("*.json") if pattern.fullmatch(path.name)), default=None)


def _section(match: Match, record: Mapping[str, Any]) -> Iterator[str]:
    parameters = record["parameters"]
    yield f"\n## {match.title[0].upper()}{match.title[1:]}\n\n"
    yield "| | good images/s | CPU ms an image | of its first process | peak MiB | good images | requests |\n"
    yield "|---|---|---|---|---|---|---|\n"
    for case, figures in record["cases"].items():
        yield f"| {case} | {' | '.join(f'{figure:,}' for figure in figures.values())} |\n"
    yield (
        f"\n{parameters['images']:,} URLs, of which {parameters['obtainable']:,} lead to an image; "
        f"{parameters['pictures']:,} pictures, mean {parameters['mean_body_bytes'] / 1000:.0f} KB; origin: "
        f"{parameters['origin']}; {record['statistic']}. {_conditions([record])}\n"
    )


def _conditions(records: Sequence[Mapping[str, Any]]) -> str:
    """The machine, the packages, the dates and commits of records, and how busy others kept it; what is alike, once."""
    machines, rivals = (record["machine"] for record in records), (record["parameters"]["rivals"] for record in records)
    parts = (
        *_distinct(
            f"{machine['cores']} cores of {machine['cpu_model']}, Python {machine['python']}, Pillow "
            f"{machine['packages']['pillow']}"
            for machine in machines
        ),
        *_distinct(", ".join(packages).replace("==", " ") for packages in rivals),
        *_distinct(f"{record['stated_on']}, commit {record['commit']}" for record in records),
        f"other processes took at most {max(record['others_cpu_percent_most'] for record in records)} % of the machine",
    )
    return f"{'; '.join(parts)}."


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _block(rows: Sequence[_Row], records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    yield f"\n| good images/s · CPU ms an image · peak MiB | {' | '.join(_COLUMNS)} | the limit |\n"
    yield "|---|---|---|---|---|\n"
    for row in rows:
        record = records[row.match]
        limit = next((f"{case}: {_speed(record['cases'][case])}" for case in _LIMITS if case in record["cases"]), _NONE)
        yield f"| {row.title} | {' | '.join(_cells(row, record))} | {limit} |\n"
    yield (
        "\nMade by `scripts/benchmark`: each command from its start to its end, with all its processes. "
        f"{_conditions([records[row.match] for row in rows])} [docs/comparison.md](docs/comparison.md) has every "
        "match, and says what each tool does differently.\n\n"
        "![Good images a second, next to other tools](docs/comparison.svg)\n\n"
    )


def _cells(row: _Row, record: Mapping[str, Any]) -> Iterator[str]:
    obtainable = record["parameters"]["obtainable"]
    for figures in _columns(row, record["cases"]).values():
        cell = f"{_speed(figures)} · {figures['peak_mib']:,}" if figures else _NONE
        yield f"{cell}; {figures['good']:,} of {obtainable:,} arrive" if row.match == "faults" and figures else cell


def _columns(row: _Row, cases: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    return {column: cases.get(row.case if column == _COLUMNS[0] else column, {}) for column in _COLUMNS}


def _speed(figures: Mapping[str, float]) -> str:
    return f"{figures['images_per_s']:,} · {figures['cpu_ms']}"


def _group(row: _Row, cases: Mapping[str, Mapping[str, float]]) -> Group:
    columns = _columns(row, cases)
    values = {column: figures["images_per_s"] for column, figures in columns.items() if figures}
    return Group(row.title.replace("`", ""), values)
