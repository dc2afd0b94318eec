"""Each dataset's script fetches its tiny source over real HTTP, and the output passes ``verify``."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sources import place_images, place_source, serve_pictures

from datafetch.cli.app import main
from datafetch.datasets import DATASETS

SCRIPTS = Path(__file__).parent.parent / "scripts"
OPTIONS = ("--allow-net", "127.0.0.0/8", "--connections", "8", "--processes", "1", "--retries", "0", "--no-reshard")
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of an origin with the pictures that the tiny sources name."""
    with serve_pictures(tmp_path_factory.mktemp("tiny")) as served:
        yield served


def fetch(script: str, *arguments: object) -> dict[str, object]:
    """Run a script and return its last summary."""
    environment = {**os.environ, "DATAFETCH": str(Path(sys.executable).with_name("datafetch"))}
    finished = subprocess.run(
        [str(SCRIPTS / script), *map(str, arguments), *OPTIONS, "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert finished.returncode == 0, finished.stderr
    summary: dict[str, object] = json.loads(finished.stdout.splitlines()[-1])
    return summary


@pytest.mark.rotating
@pytest.mark.parametrize(
    ("script", "dataset", "between", "rows"),
    [
        ("fetch-coyo", "coyo", ("ids",), 3),
        ("fetch-mmc4", "mmc4-core", ("ids",), 5),
        ("fetch-llm-jp-interleaved", "llm-jp-interleaved", ("", ""), 2),
        # Two runs; those of the next test.
        pytest.param("fetch-llm-jp-pairs", "llm-jp-pairs-step1", (), 4, marks=pytest.mark.slow),
        ("fetch-ocr-vqa", "ocr-vqa", ("",), 2),
        ("fetch-llava-pretrain", "llava-pretrain", (), 2),
        ("fetch-japanese-photos", "japanese-photos-conv", (), 2),
    ],
)
def test_each_script_fetches_its_dataset(
    tmp_path: Path, authority: str, script: str, dataset: str, between: tuple[str, ...], rows: int
) -> None:
    """With the options that its comments name, it writes the trainer's files where the trainer looks for them."""
    source = place_source(dataset, tmp_path, authority)
    if script == "fetch-llm-jp-pairs":
        place_source("llm-jp-pairs-step0", tmp_path, authority)
    words = [source.ids if word == "ids" else word for word in between]
    summary = fetch(script, source.folder, *words, tmp_path / "root")
    assert summary["complete"] is True
    assert summary["samples"]["rows"] == rows  # type: ignore[index]
    out = str(summary["out"])
    assert main(["verify", out, "--world-size", "1", "--batch", "1", "--group", "1"]) == 0


@pytest.mark.rotating
@pytest.mark.slow
def test_the_script_for_pairs_also_fetches_step_0(tmp_path: Path, authority: str) -> None:
    """One source has two datasets; what it writes of either passes ``verify``."""
    place_source("llm-jp-pairs-step1", tmp_path, authority)
    source = place_source("llm-jp-pairs-step0", tmp_path, authority)
    summary = fetch("fetch-llm-jp-pairs", source.folder, tmp_path / "root")
    assert (summary["dataset"], summary["complete"]) == ("llm-jp-pairs-step1", True)
    assert summary["samples"]["rows"] == 4  # type: ignore[index]
    folder = tmp_path / "root" / "alt_pair_ja"
    records = json.loads((folder / "llm-jp_mm_pair_step0_558k.json").read_text())
    assert [record["image"] for record in records] == ["000000001.jpg", "a/000000005.png"]
    assert all((folder / "image_step0" / record["image"]).is_file() for record in records)
    for out in (str(summary["out"]), str(folder / "image_step0")):
        assert main(["verify", out, "--world-size", "1", "--batch", "1", "--group", "1"]) == 0


@pytest.mark.rotating
@pytest.mark.slow  # four sets, two ways
def test_the_script_for_image_sets_fetches_what_lists_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All four sets, from wherever the environment says, with one list or without."""
    for variable, dataset in (
        ("COCO", "coco-train2017"),
        ("GQA", "gqa"),
        ("TEXTVQA", "textvqa"),
        ("VG", "visual-genome"),
    ):
        monkeypatch.setenv(f"BASE_{variable}", str(place_source(dataset, tmp_path / dataset).folder))
    lists = tmp_path / "lists"
    lists.mkdir()
    named = {"coco/train2017/000000000009.jpg", "gqa/images/2327515.jpg", "textvqa/train_images/0054c91397f2fe05.jpg"}
    (lists / "one.json").write_text(json.dumps([{"image": name} for name in sorted(named)]))
    (lists / "two.json").write_text(json.dumps([{"image": "vg/VG_100K_2/1.jpg"}]))
    fetch("fetch-image-sets", lists, tmp_path / "some")
    assert images(tmp_path / "some") == {*named, "vg/VG_100K_2/1.jpg"}
    (lists / "one.json").unlink()
    fetch("fetch-image-sets", lists, tmp_path / "one")
    assert images(tmp_path / "one") == {"vg/VG_100K_2/1.jpg"}
    fetch("fetch-image-sets", "", tmp_path / "all")
    assert len(images(tmp_path / "all")) == 8


@pytest.mark.rotating
def test_the_script_for_synthdog_ja_takes_as_many_rows_as_it_is_told(tmp_path: Path) -> None:
    """The published files have more than the tiny one."""
    source = place_source("synthdog-ja", tmp_path)
    summary = fetch("fetch-synthdog-ja", source.folder, tmp_path / "root", "--count", "2")
    assert summary["samples"] == {"total": 2, "rows": 2, "dropped": 0}
    assert len(images(tmp_path / "root")) == 2


@pytest.mark.rotating
def test_the_script_for_training_lists_makes_those_that_are_there(tmp_path: Path) -> None:
    """Each of what the image sets have; the lists pass the check."""
    lists = {"llava-v1.5-subset": 4, "ja-vg-vqa": 2}
    for dataset in lists:
        place_source(dataset, tmp_path)
        place_images(dataset, tmp_path / "root")
    fetch("fetch-training-lists", tmp_path / "source", tmp_path / "root")
    for dataset, records in lists.items():
        path = tmp_path / "root" / f"{DATASETS[dataset].path}.json"
        assert len(json.loads(path.read_text())) == records
        assert main(["verify", str(path), "--image-root", str(tmp_path / "root")]) == 0


def images(root: Path) -> set[str]:
    """The paths of all images below a folder."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*.jpg")}


@pytest.mark.rotating
@pytest.mark.slow  # two runs
def test_options_about_lines_apply_only_to_step_1(tmp_path: Path, authority: str) -> None:
    """Step 0 has a list with fixed keys."""
    place_source("llm-jp-pairs-step1", tmp_path, authority)
    source = place_source("llm-jp-pairs-step0", tmp_path, authority)
    options = ("--text-key", "text", "--url-key=url", "--skip-bad-lines", "--min-success", "0.01")
    summary = fetch("fetch-llm-jp-pairs", source.folder, tmp_path / "root", *options)
    assert summary["dataset"] == "llm-jp-pairs-step1"


def test_every_script_is_tested_and_prints_its_usage() -> None:
    """A script that is called without its arguments prints its usage."""
    scripts = sorted(path.name for path in SCRIPTS.glob("fetch-*"))
    assert scripts == [
        "fetch-coyo",
        "fetch-image-sets",
        "fetch-japanese-photos",
        "fetch-llava-pretrain",
        "fetch-llm-jp-interleaved",
        "fetch-llm-jp-pairs",
        "fetch-mmc4",
        "fetch-ocr-vqa",
        "fetch-synthdog-ja",
        "fetch-training-lists",
    ]
    environment = {**os.environ, "DATAFETCH": str(Path(sys.executable).with_name("datafetch"))}
    for script in scripts:
        finished = subprocess.run([str(SCRIPTS / script)], env=environment, capture_output=True, text=True, check=False)
        assert finished.returncode == 2
        assert finished.stderr.startswith(f"usage: {script} {'LISTS' if script == 'fetch-image-sets' else 'SOURCE'}")
