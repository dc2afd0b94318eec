"""The examples of CONTRIBUTING.md work: they are applied to a copy of the package, which is then run."""

import base64
import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from datafetch.demo.manifest import write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import write_pictures

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
SCRIPTS = sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file())
EXAMPLE = re.compile(r"^```(?:diff|python)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATIENCE_S = 100.0


@pytest.fixture(autouse=True)
def _children_without_coverage(without_coverage: None) -> None:
    """Measure the package, and not its copies."""


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    """The demo's server, with one picture."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "picture.jpg").write_bytes((folder / "painted" / write_pictures(folder / "painted", 1)[0]).read_bytes())
    with Origin(folder) as running:
        yield running


def apply_section(heading: str, copy: Path) -> None:
    """Copy the project, and apply the examples of one section to it: hunks of a diff, or a whole new file."""
    shutil.copytree(ROOT / "datafetch", copy / "datafetch", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs", copy / "docs")
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    examples = EXAMPLE.findall(section)
    assert examples, heading
    for name, example in examples:
        path = copy / name
        if path.exists():
            text = path.read_text()
            for hunk in example.split("@@\n"):
                before = "".join(line[1:] for line in hunk.splitlines(keepends=True) if line[0] in " -")
                after = "".join(line[1:] for line in hunk.splitlines(keepends=True) if line[0] in " +")
                assert text.count(before) == 1, f"{name} does not have once:\n{before}"
                text = text.replace(before, after)
            path.write_text(text)
        else:
            path.write_text(example)


def prepare(copy: Path, urls: list[str], *options: str) -> Mapping[str, int]:
    """Fetch these URLs as COYO's, and return the failures by kind."""
    source = write_coyo_source(copy / "source", urls)
    return prepare_dataset(copy, "coyo", source.folder, "--ids", str(source.ids), *options)


def prepare_dataset(copy: Path, dataset: str, source: Path, *options: str) -> Mapping[str, int]:
    """Prepare a dataset with the copy of the package, and return the failures by kind."""
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "datafetch", "prepare", dataset, "--source", str(source), *options),
            *("--root", str(copy / "root"), "--json", "--no-reshard"),
            *("--allow-net", "127.0.0.0/8", "--processes", "1", "--retries", "0"),
        ],
        cwd=copy,  # where the interpreter looks for the package first
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert finished.returncode == 0, finished.stderr
    kinds: dict[str, int] = json.loads(finished.stdout)["images"]["by_kind"]
    return kinds


def check_contract(copy: Path, module: str, name: str) -> None:
    """Run the tests that hold for every dataset, or for every output format, with the one that was added."""
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", copy)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{module}", "-k", name]
    finished = subprocess.run(command, cwd=copy, check=False, capture_output=True, text=True, timeout=PATIENCE_S)
    assert finished.returncode == 0, finished.stdout
    assert re.search(r"\b[5-9] passed", finished.stdout), finished.stdout


@pytest.mark.slow
def test_the_example_of_a_failure_kind_works(tmp_path: Path, origin: Origin) -> None:
    """An image fails as the new kind, which the demo's table expects."""
    apply_section("Add a failure kind", tmp_path)
    assert prepare(tmp_path, [origin.url("html", "picture.jpg"), origin.url("well", "picture.jpg")]) == {"web_page": 1}
    table = "from datafetch.demo.behaviours import BEHAVIOURS; print(BEHAVIOURS['html'].expected)"
    finished = subprocess.run(
        [sys.executable, "-c", table], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert finished.stdout.strip() == "web_page"


@pytest.mark.rotating
def test_the_example_of_an_option_works(tmp_path: Path, origin: Origin) -> None:
    """The command takes the option, and the fetcher obeys it."""
    apply_section("Add an option", tmp_path)
    urls = [origin.url("moved", "picture.jpg"), origin.url("well", "picture.jpg")]
    assert prepare(tmp_path, urls, "--max-redirects", "0") == {"too_many_redirects": 1}


@pytest.mark.rotating
def test_the_example_of_a_dataset_works(tmp_path: Path, origin: Origin) -> None:
    """It writes a pickle for each of its files, and has at most the page's limit of 80 lines."""
    apply_section("Add a dataset", tmp_path)
    urls = [origin.url("well", "picture.jpg"), origin.url("missing", "picture.jpg")]
    source = tmp_path / "tsv"
    source.mkdir()
    lines = [f"{url}\tcaption {number}\n" for number, url in enumerate(urls)]
    (source / "pairs.tsv").write_text("".join([*lines, f"{urls[0]}\tshort\n", "bad\n"]))
    options = ("--min-words", "2", "--skip-bad-lines")
    assert prepare_dataset(tmp_path, "tsv-pairs", source, *options) == {"http_status": 1}
    (row,) = pickle.loads((tmp_path / "root" / "tsv-pairs" / "pairs.pkl").read_bytes())
    assert row["text"] == "caption 0"
    assert len((tmp_path / "datafetch" / "datasets" / "tsv_pairs.py").read_text().splitlines()) <= 80


@pytest.mark.slow
def test_the_example_of_a_dataset_fulfils_the_contract(tmp_path: Path) -> None:
    """It passes the tests that hold for every dataset."""
    apply_section("Add a dataset", tmp_path)
    source = tmp_path / "tests" / "data" / "tsv-pairs" / "source"
    source.mkdir(parents=True)
    (source / "pairs.tsv").write_text(f"http://origin.invalid/well/00000.png\t{'cherry blossoms ' * 20}\n")
    row = {"text": "cherry blossoms " * 20, "rawbytes": "http://origin.invalid/well/00000.png"}
    expected = [{"shard": "pairs", "key": "pairs:0", "row": row}]
    source.with_name("expected.json").write_text(json.dumps(expected))
    check_contract(tmp_path, "test_datasets.py", "tsv-pairs")


@pytest.mark.rotating
@pytest.mark.slow
def test_the_example_of_an_output_format_works(tmp_path: Path, origin: Origin) -> None:
    """Its files are where the trainer looks, a second run finds them, and a retry adds to them."""
    apply_section("Add an output format", tmp_path)
    urls = [origin.url("well", "picture.jpg"), origin.url("flaky", "picture.jpg")]
    source = write_coyo_source(tmp_path / "source", urls)
    for _ in range(2):
        failures = prepare_dataset(tmp_path, "coyo", source.folder, "--ids", str(source.ids))
        assert failures == {"http_status": 1}
    shards = list((tmp_path / "root" / "coyo-700m" / "pkl03-split").iterdir())
    assert [path.suffix for path in shards] == [".jsonl"]
    subprocess.run(
        [sys.executable, "-m", "datafetch", "retry", shards[0].parent, "--json"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    images = [base64.b64decode(json.loads(line)["image"]) for line in shards[0].read_bytes().splitlines()]
    assert [image[:2] for image in images] == [b"\xff\xd8"] * len(urls)
    command = [sys.executable, "-m", "datafetch", "verify", str(shards[0].parent)]
    verified = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (verified.returncode, verified.stderr) == (
        2,
        "datafetch: verify can't read jsonl, the output format of coyo\n",
    )
    check_contract(tmp_path, "test_output_formats.py", "jsonl")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_script_is_listed_and_says_what_it_does(script: Path) -> None:
    """Its ``--help`` begins with a line that is a sentence."""
    finished = subprocess.run([script, "--help"], check=True, capture_output=True, text=True, timeout=PATIENCE_S)
    assert re.fullmatch(r"[A-Z][a-z]+s .+\.", finished.stdout.splitlines()[0])
    assert f"`{script.name}`" in PAGE
