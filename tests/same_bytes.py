"""Does another state of the project leave the same files? Prepares every dataset's tiny source with two checkouts.

    .venv/bin/python tests/same_bytes.py BEFORE AFTER

Each dataset is prepared twice from one server: with the package of BEFORE and with that of AFTER. The outputs must be
equal to the byte, the ledgers in all columns that both have but for times and texts, and so must the JSON summaries.
Then the output of BEFORE is prepared once more with AFTER, which must find nothing to do, or say why it refuses it.
This is not a test, because it takes two states. Prints what differs, and ends with 1 where something does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
from sources import DATA, place_source

from datafetch.demo.manifest import write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import write_pictures

_DATASETS = sorted(path.name for path in DATA.iterdir() if (path / "source").is_dir())
_OPTIONS = ("--allow-net", "127.0.0.0/8", "--processes", "1", "--retries", "0", "--json")
_MANY = "coyo, many and faulty"
_MORE_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "synthdog-ja": ("--count", "2"),
    "ocr-vqa": (),
    _MANY: ("--world-size", "2"),
}
_FAULTS = ("well", "missing", "truncated", "moved", "html", "until_close")
_UNSTABLE_COLUMNS = {"detail", "fetch_ms"}
_UNSTABLE_FACTS = {"elapsed_s", "images_per_s", "connections", "out"}


def main() -> int:
    """Prepare and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="another")
    arguments = parser.parse_args()
    differences = 0
    with TemporaryDirectory(prefix="datafetch-same-") as name:
        folder = Path(name)
        pictures = folder / "pictures"
        for number, picture in enumerate(write_pictures(pictures, 10)):
            (pictures / f"{number:05d}.png").write_bytes((pictures / picture).read_bytes())
        with Origin(pictures) as origin:
            for dataset, source, ids in _sources(folder, origin):
                roots = {state: folder / state / dataset.replace(" ", "-") for state in ("before", "after")}
                command = _command(dataset, source, ids)
                summaries = {
                    state: _prepare(getattr(arguments, state).resolve(), command, root) for state, root in roots.items()
                }
                if "there is no dataset" in str(summaries["before"].get("stderr")):
                    print(f"{dataset}: is new")  # noqa: T201 - its report
                    continue
                if "exit" in summaries["before"]:
                    raise SystemExit(f"{dataset} can't be prepared: {summaries['before']}")
                found = [
                    *_compare(roots["before"], roots["after"]),
                    *_compare_facts(summaries["before"], summaries["after"]),
                ]
                again = _prepare(arguments.after.resolve(), command, roots["before"])
                if again.get("requests") not in (0, None):
                    found.append(f"an output of before is not taken up: {again}")
                differences += len(found)
                print(f"{dataset}: {len(found)} differences", *found, sep="\n  ", flush=True)  # noqa: T201 - its report
    return int(differences > 0)


def _sources(folder: Path, origin: Origin) -> Iterator[tuple[str, Path, Path | None]]:
    authority = origin.url("", "").split("/")[2]
    for dataset in _DATASETS:
        tiny = place_source(dataset, folder / f"source of {dataset}", authority)
        files = sorted(tiny.folder.iterdir())
        yield dataset, files[0] if len(files) == 1 and files[0].suffix == ".json" else tiny.folder, tiny.ids
    names = sorted(path.name for path in (folder / "pictures").iterdir())
    urls = [origin.url(_FAULTS[number % len(_FAULTS)], names[number % len(names)], number) for number in range(400)]
    many = write_coyo_source(folder / "many", urls)
    yield _MANY, many.folder, many.ids


def _command(dataset: str, source: Path, ids: Path | None) -> list[str]:
    listed = ["--ids", str(ids)] if ids else []
    more = _MORE_OPTIONS.get(dataset, ("--no-reshard",))
    return ["prepare", dataset.partition(",")[0], "--source", str(source), *listed, *_OPTIONS, *more]


def _prepare(project: Path, command: list[str], root: Path) -> dict[str, object]:
    """Prepare with the package of a checkout; return the summary, or the error if there is none."""
    finished = subprocess.run(
        [sys.executable, "-m", "datafetch", *command, "--root", str(root)],
        env={**os.environ, "PYTHONPATH": str(project)},
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        return {"exit": finished.returncode, "stderr": finished.stderr.strip()[-500:]}
    summary: dict[str, object] = json.loads(finished.stdout.splitlines()[-1])
    return summary


def _compare(before: Path, after: Path) -> Iterator[str]:
    files = {
        state: {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
        for state, root in (("before", before), ("after", after))
    }
    for name in sorted(files["before"].keys() | files["after"].keys()):
        paths = [files[state].get(name) for state in ("before", "after")]
        is_state = any(part.endswith(".datafetch") for part in name.parts)
        if is_state and "ledger" not in name.parts:
            continue
        if paths[0] is None or paths[1] is None:
            yield f"{name} is {'new' if paths[0] is None else 'missing'}"
        elif not is_state and paths[0].read_bytes() != paths[1].read_bytes():
            yield f"{name} has other bytes"
        elif is_state:
            yield from _compare_ledgers(paths[0], paths[1])


def _compare_ledgers(before: Path, after: Path) -> Iterator[str]:
    tables = [pq.read_table(path) for path in (before, after)]
    for column in tables[0].column_names:
        if column not in tables[1].column_names:
            yield f"{after.name} lacks the column {column}"
        elif column not in _UNSTABLE_COLUMNS and not tables[0][column].equals(tables[1][column]):
            yield f"{after.name} has another {column}"


def _compare_facts(before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[str]:
    for name in before.keys() - _UNSTABLE_FACTS:
        if before[name] != after.get(name):
            yield f"{name}: {before[name]} is {after.get(name)}"


if __name__ == "__main__":
    sys.exit(main())
