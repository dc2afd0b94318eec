"""The benchmarks are listed, and the figures in the documents are on record."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks.rivals.statement import make_pages, put_block
from benchmarks.runs.instructions import compare

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


def sample_record(match: str, cases: dict[str, float]) -> dict[str, Any]:
    """A record as ``comparison.py`` saves it: of each case three measured runs, and a warm-up that does not count."""
    runs = [
        {
            "case": case,
            "kind": kind,
            "value": value * factor,
            "details": {
                "cpu_ms": 1000 / value,
                "parent_cpu_ms": 1.234,
                "peak_mib": 300.4,
                "requests": 1000,
                "others_cpu_percent": 2.6,
            },
            "outcomes": {"ok": 990, "failed": 10},
        }
        for kind, factor in (("warm-up", 9.0), ("measured", 0.5), ("measured", 1.0), ("measured", 4.0))
        for case, value in cases.items()
    ]
    parameters = {
        "commit": "abc1234",
        "images": 1000,
        "obtainable": 990,
        "pictures": 400,
        "mean_body_bytes": 111_600.0,
        "origin": "nginx",
        "threads": 32,
        "rivals": ["img2dataset==1.47.0", "daft==0.7.26"],
    }
    machine = {"cpu_model": "a CPU", "cores": 2, "python": "3.11.7", "packages": {"pillow": "13.0.0"}}
    return {
        "name": f"comparison-{match}",
        "parameters": parameters,
        "runs": runs,
        "machine": machine,
        "ended_at": "2026-12-01T08:00:00+00:00",
    }


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose README.md has room for the comparison, with records of two matches, one of them twice."""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "README.md").write_text("before\n<!-- comparison -->\nold\n<!-- end of comparison -->\nafter\n")
    for name, match, cases in (
        ("recipe-20261201T070000", "recipe", {"datafetch": 1.0}),
        ("recipe-20261201T080000", "recipe", {"datafetch": 300.0, "img2dataset": 200.0, "Pillow alone": 400.0}),
        ("faults-20261201T080000", "faults", {"datafetch": 1234.0, "img2dataset": 20.0}),
    ):
        (tmp_path / "new" / f"comparison-{name}.json").write_text(json.dumps(sample_record(match, cases)))
    return tmp_path


def state(project: Path) -> subprocess.CompletedProcess[str]:
    """State the newest records of a project."""
    code = "import sys; from benchmarks.rivals.statement import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--root", str(project), "--new", str(project / "new")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_comparison_in_the_documents_is_what_its_records_make() -> None:
    """The table, the page and the figure are made from the records, never typed."""
    pages = make_pages(BENCHMARKS / "results")
    readme = (ROOT / "README.md").read_text()
    assert put_block(readme, pages.block) == readme
    written = {name: ROOT / "docs" / name for name in ("comparison.md", "comparison.svg")}
    assert {name: path.read_text() if path.exists() else "" for name, path in written.items()} == {
        "comparison.md": pages.page,
        "comparison.svg": pages.figure,
    }


@pytest.mark.rotating
def test_the_newest_records_are_stated(project: Path) -> None:
    """Medians of the measured runs of the newest record of each match stand in the table, the page and the figure."""
    done = state(project)
    assert (done.returncode, done.stdout) == (0, "stated: recipe, faults\n"), done.stderr
    readme = (project / "README.md").read_text()
    assert readme.startswith("before\n<!-- comparison -->\n\n| good images/s")
    assert readme.endswith("\n<!-- end of comparison -->\nafter\n")
    assert "old" not in readme
    assert "| encode again, HTTP | 300 · 3.33 · 300 | 200 · 5.0 · 300 |  | Pillow alone: 400 · 2.5 |\n" in readme
    assert "| 1,234 · 0.81 · 300; 990 of 990 arrive | 20 · 50.0 · 300; 990 of 990 arrive |  |  |\n" in readme
    page = (project / "docs" / "comparison.md").read_text()
    assert "| datafetch | 300 | 3.33 | 1.23 | 300 | 990 | 1,000 |\n" in page
    assert "\n## Encode again, HTTP\n" in page
    assert "medians of 3 runs. 2 cores of a CPU" in page
    assert "commit abc1234; other processes took at most 3 % of the machine" in page
    figure = ET.fromstring((project / "docs" / "comparison.svg").read_text())  # noqa: S314 - just written
    assert {"1,234", "300", "200", "20"} <= {text.text for text in figure.iter("{http://www.w3.org/2000/svg}text")}


@pytest.mark.rotating
def test_stating_again_changes_nothing(project: Path) -> None:
    """The same records make the same bytes."""
    state(project)
    written = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    state(project)
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == written


@pytest.mark.rotating
def test_nothing_is_stated_without_records(project: Path) -> None:
    """Where nothing was measured, the documents stay, and a line says what to do."""
    before = (project / "README.md").read_bytes()
    for path in (project / "new").iterdir():
        path.unlink()
    done = state(project)
    assert done.returncode == 2
    assert done.stderr == (f"there is no record of the comparison in {project / 'new'}; run scripts/benchmark first\n")
    assert (project / "README.md").read_bytes() == before


@pytest.mark.parametrize(("instructions", "status"), [(1040, 0), (1060, 1), (900, 0)])
def test_more_than_five_per_cent_more_instructions_fail(
    instructions: int, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """One part is enough, and it is named; another that became cheaper does not make up for it."""
    assert compare({"codec": instructions, "fetch": 50}, {"codec": 1000, "fetch": 100}) == status
    assert ("codec: +6.0% TOO MUCH\n" in capsys.readouterr().out) == bool(status)
