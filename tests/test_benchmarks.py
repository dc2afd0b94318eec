"""The benchmarks are listed, and the figures in the documents are on record."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(
    path.relative_to(BENCHMARKS).as_posix()
    for path in BENCHMARKS.glob("*/*.py")
    if '\nif __name__ == "__main__":\n' in path.read_text()
)
RECORDS = sorted((BENCHMARKS / "results").glob("*.json"))


def test_every_benchmark_is_listed() -> None:
    """It is listed once, in the table of its group."""
    listed = re.findall(r"^\| \[`\w+\.py`\]\(([\w/]+\.py)\)", (BENCHMARKS / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == SCRIPTS


@pytest.mark.parametrize("page", ["README.md", "docs/design.md"])
def test_documents_name_existing_benchmarks(page: str) -> None:
    """They name benchmarks by their paths below ``benchmarks/``."""
    named = re.findall(r"`((?:fetch|transcode|runs|durability)/\w+\.py)", (ROOT / page).read_text())
    paths = {path for path in named if not (ROOT / "datafetch" / path).exists()}
    assert paths
    assert paths <= set(SCRIPTS)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_figures_in_documents_are_on_record(path: Path) -> None:
    """A figure that is changed only in a document, or only in its record, fails this test."""
    record = json.loads(path.read_text())
    assert f"{record['name'].partition('-')[0]}.py" in [Path(script).name for script in SCRIPTS]
    text = (ROOT / record["stated_in"]).read_text()
    figures = [figure for case in record["cases"].values() for figure in case.values() if figure]
    stated = {f"{figure:,}" for figure in figures}
    assert stated
    assert {
        figure for figure in stated if not re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d]|[.,]\d)", text)
    } == set()
