"""The recipe in miniature: the demo, the command line on the same files, and its check of every file."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from preloaded import PreloadedCommand
from runs import PATIENCE_S, Run, dying_at_a_step

from datafetch.cli.app import main
from datafetch.datasets.recipes import RECIPE, STEPS
from datafetch.demo.origin import Origin
from datafetch.demo.recipe import WORLD_SIZE, demo_environment, handed_in
from datafetch.demo.recipe_expectation import Expected, check_tree, expect
from datafetch.demo.recipe_source import SYNTHDOG_ROWS, RecipeSource, write_recipe_source

KILLS = 10
_PATIENCE_S = 4 * PATIENCE_S  # sixteen datasets, each with processes of its own
_KILLED = -9
_MAX_RUNS = 30
_READ_HERE = {
    "llava-pretrain": "liuhaotian/LLaVA-Pretrain",
    "synthdog-ja": "naver-clova-ix/synthdog-ja",
    "llava-v1.5-subset": "llm-jp/llava-instruct-v1_5-en-subset-358k",
    "llava-instruct-ja": "llm-jp/llava-instruct-ja",
    "ja-vg-vqa": "llm-jp/ja-vg-vqa-conversation",
}
"""Repositories whose folders are given, since each question to the hub takes a process of a second."""


@dataclass(frozen=True, slots=True)
class Miniature:
    """A miniature that is served, and what a command needs to build it."""

    folder: Path
    origin: Origin
    source: RecipeSource
    expected: Mapping[str, Expected]

    def command(self, root: Path, *, reads_here: bool = False) -> list[str]:
        """The command that builds all steps, with some of the repositories as folders if so wanted."""
        here = {name: str(self.source.repository(place)) for name, place in _READ_HERE.items()}
        sources = {**handed_in(self.source), **(here if reads_here else {})}
        return [
            *(sys.executable, "-m", "datafetch", "prepare", *STEPS, "--root", str(root), "--json"),
            *(word for name, place in sources.items() for word in ("--source", f"{name}={place}")),
            *("--mirror", self.origin.mirror),
            *("--limit", str(SYNTHDOG_ROWS), "--world-size", str(WORLD_SIZE), "--allow-net", "127.0.0.0/8"),
            *("--processes", "1", "--connections", "4"),
        ]

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which a folder of the miniature holds what is downloaded."""
        return demo_environment(self.folder)

    def contents(self) -> int:
        """How often content was asked for."""
        return sum(self.origin.contents().values())


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Miniature]:
    """A miniature that is served."""
    folder = tmp_path_factory.mktemp("miniature")
    (folder / "pictures").mkdir()
    with Origin(folder / "pictures", published=folder / "published") as origin:
        source = write_recipe_source(folder, origin, folder / "pictures")
        yield Miniature(folder, origin, source, expect(source))


@pytest.fixture(scope="module")
def undisturbed(miniature: Miniature) -> Path:
    """The root of a miniature that one run of the command has built."""
    root = miniature.folder / "undisturbed"
    build(miniature, root)
    return root


def build(miniature: Miniature, root: Path) -> dict[str, bool]:
    """Run the command to its end; return which datasets are complete."""
    done = subprocess.run(
        miniature.command(root),
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE_S,
        env={**os.environ, **miniature.environment},
    )
    assert done.returncode == 0, done.stderr
    return {one["dataset"]: one["complete"] for one in json.loads(done.stdout)["datasets"]}


def tree(root: Path) -> dict[str, bytes]:
    """All files that the trainer may read."""
    paths = [path for path in root.rglob("*") if path.is_file() and ".datafetch/" not in path.as_posix()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def wrong(root: Path, expected: Mapping[str, Expected]) -> list[str]:
    """The names of what is not as it is expected."""
    return [finding.dataset for finding in check_tree(root, expected, WORLD_SIZE) if not finding.is_passed]


@pytest.mark.slow
@pytest.mark.measured
@pytest.mark.timeout(900)
def test_the_recipe_passes_the_checks_of_the_demo(tmp_path: Path) -> None:
    """All datasets are built by the command, its exit code says that all is well, and the operator's cache is left."""
    cache = tmp_path / "cache of the hub"
    done = subprocess.run(
        [sys.executable, "-m", "datafetch", "demo", "--recipe", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE_S,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "120", "HF_HOME": str(cache), "HF_HUB_CACHE": str(cache)},
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["complete"] is True
    assert [one["dataset"] for one in summary["datasets"]] == [part.name for part in RECIPE]
    assert "the recipe: all checks passed" in done.stderr
    assert done.stderr.count("the same") == len(RECIPE) + 2  # nothing else, and a second run
    assert done.stderr.count("building all of it once more") == 1
    assert "all datasets" not in done.stderr  # of a miniature, the recipe's numbers say nothing
    assert not cache.exists()


@pytest.mark.rotating
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_steps_leave_what_the_scripts_of_the_recipe_would(miniature: Miniature, undisturbed: Path) -> None:
    """By one command, file by file; the same command again asks for no content, and changes nothing."""
    assert wrong(undisturbed, miniature.expected) == []
    before, asked = tree(undisturbed), miniature.contents()
    complete = build(miniature, undisturbed)
    assert list(complete) == [part.name for part in RECIPE]
    assert all(complete.values())
    assert miniature.contents() == asked
    assert tree(undisturbed) == before


def _change_row(root: Path) -> None:
    path = min((root / "mmc4-core/pkl-core-limit-tokens").glob("*.pkl"))
    rows = pickle.loads(path.read_bytes())
    rows[0]["image_info"][0]["matched_text_index"] += 1
    path.write_bytes(pickle.dumps(rows))


def _drop_record(root: Path) -> None:
    path = root / "LLaVA-Instruct-150K/llava_v1_5_subset_358k.json"
    path.write_text(json.dumps(json.loads(path.read_text())[1:]))


def _count_wrongly(root: Path) -> None:
    path = min((root / "coyo-700m/pkl03-split").glob("*.count"))
    path.write_text(str(int(path.read_text()) + 1))


def _join_shards(root: Path) -> None:
    folder = root / "alt_pair_ja/pkl02"
    first, *others = sorted(folder.glob("*.pkl"))
    rows = [row for path in (first, *others) for row in pickle.loads(path.read_bytes())]
    first.write_bytes(pickle.dumps(rows))
    first.with_suffix(".count").write_text(str(len(rows)))
    for path in others:
        path.write_bytes(pickle.dumps([]))
        path.with_suffix(".count").write_text("0")


CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "an image is missing": ("gqa", lambda root: min((root / "gqa/images").iterdir()).unlink()),
    "an image differs": ("textvqa", lambda root: min((root / "textvqa/train_images").iterdir()).write_bytes(b"x")),
    "a file is too much": ("visual-genome", lambda root: (root / "vg/VG_100K/0.jpg").write_bytes(b"x")),
    "a record is missing": ("llava-v1.5-subset", _drop_record),
    "a list is no JSON": (
        "llava-pretrain",
        lambda root: (root / "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json").write_text("["),
    ),
    "a row differs": ("mmc4-core", _change_row),
    "a count is wrong": ("coyo", _count_wrongly),
    "a rank has nothing to read": ("llm-jp-pairs-step1", _join_shards),
    "a file is of no dataset": ("anything else", lambda root: (root / "coco/notes.txt").write_bytes(b"x")),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_check_notices_every_kind_of_change(miniature: Miniature, undisturbed: Path, tmp_path: Path) -> None:
    """And names the dataset that is wrong, and no other."""
    for number, (change, (dataset, apply)) in enumerate(CHANGES.items()):
        root = tmp_path / str(number)
        shutil.copytree(undisturbed, root)
        apply(root)
        assert wrong(root, miniature.expected) == [dataset], change


@pytest.mark.rotating
@pytest.mark.slow
@pytest.mark.timeout(2400)  # some fifteen runs over sixteen datasets
def test_steps_killed_ten_times_leave_the_tree_of_an_undisturbed_run(
    miniature: Miniature, undisturbed: Path, preloaded: PreloadedCommand, tmp_path: Path
) -> None:
    """Whether it is killed after some content has come, or before some operation on a file."""
    whole, rng = tree(undisturbed), random.Random(11)
    kills = runs = roots = 0
    while kills < KILLS:
        root, code = tmp_path / str(roots), _KILLED
        roots += 1
        while code != 0:
            runs += 1
            assert runs <= _MAX_RUNS, f"{kills} kills in {runs} runs"
            by_step = kills % 2 == 0
            dies = dying_at_a_step(" prepare step-0 ", rng.randrange(1, 700), root) if by_step else {}
            last = miniature.contents() + rng.randrange(1, 60)
            environment = {**miniature.environment, **(dies if kills < KILLS else {})}
            with Run(miniature.command(root, reads_here=True), environment, preloaded) as run:
                for _ in run.readings():
                    if kills < KILLS and not by_step and miniature.contents() >= last:
                        run.process.kill()
                        break
                code = run.end()
                assert code in (0, _KILLED), run.messages()
            kills += code == _KILLED
        assert tree(root) == whole


@pytest.mark.parametrize("is_installed", [True, False])
def test_what_the_miniature_lacks_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *, is_installed: bool
) -> None:
    """A number of images that it has not, or the library that reads the hub; before anything is written."""
    words = ["demo", "--recipe", "--out", str(tmp_path / "demo")]
    if is_installed:
        words += ["--images", "50"]
    else:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(words) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert ("leave out --images or --recipe" if is_installed else "pip install 'vlm-datafetch[hub]'") in error
    assert not (tmp_path / "demo").exists()
