"""The recipe: which datasets a step has, in which order they are built, and what several targets leave behind."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from outputs import write_job
from runs import PATIENCE_S
from sources import DATA, place_source, serve_pictures

from datafetch.cli.app import main
from datafetch.cli.exit_code import without_fresh
from datafetch.datasets import DATASETS
from datafetch.datasets.recipes import RECIPE, STEPS, expand_targets
from datafetch.datasets.synthdog_ja import SynthdogJaOptions
from datafetch.engine.recipe import plan_recipe
from datafetch.errors import ConfigurationError
from datafetch.store.layout import OutputLayout

Command = Callable[..., tuple[int, str, str]]
OPTIONS = ("--allow-net", "127.0.0.0/8", "--connections", "8", "--processes", "1", "--retries", "0", "--no-reshard")
LISTS = {
    "llava-v1.5-subset": (
        "llava_v1_5_subset_358k.json",
        [
            "coco/train2017/000000000009.jpg",
            "gqa/images/2327515.jpg",
            "textvqa/train_images/0054c91397f2fe05.jpg",
            "ocr_vqa/images/140031996X.jpg",
        ],
    ),
    "llava-instruct-ja": ("llava_instruct_ja_156k.json", ["coco/train2017/000000000025.jpg"]),
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of an origin with the pictures that the tiny sources name."""
    with serve_pictures(tmp_path_factory.mktemp("tiny")) as served:
        yield served


def record(image: str) -> dict[str, object]:
    """A record of a training list."""
    turns = [{"from": "human", "value": "<image>\n何ですか"}, {"from": "gpt", "value": "猫です。"}]
    return {"id": image, "image": image, "conversations": turns}


@pytest.fixture
def command(_commands_in_threads: None, capfd: pytest.CaptureFixture[str]) -> Command:
    """Calls datafetch, and returns its exit code and what it wrote to standard output and error."""

    def call(*words: object) -> tuple[int, str, str]:
        code = main([*map(str, words)])
        return code, *capfd.readouterr()

    return call


def start_command(*words: object) -> tuple[int, str, str]:
    """Run datafetch with all of its processes; returns the same."""
    line = [sys.executable, "-m", "datafetch", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    return done.returncode, done.stdout, done.stderr


def sources_of(names: Sequence[str], folder: Path, authority: str) -> list[str]:
    """Place the tiny sources of datasets; return the options that name them and their id lists."""
    options = []
    for name in names:
        source = place_source(name, folder / name, authority)
        if name in LISTS:
            file, images = LISTS[name]
            (source.folder / file).write_text(json.dumps([*map(record, images), {"id": "text", "conversations": []}]))
        options += ["--source", f"{name}={source.folder}"]
        if source.ids is not None:
            options += ["--ids", f"{name}={source.ids}"]
    return options


def test_the_recipe_has_image_sets_before_their_lists() -> None:
    """Each dataset once, its steps in order, and an image set ahead of all lists that name its images."""
    names = [part.name for part in RECIPE]
    assert len(set(names)) == len(names)
    assert set(names) <= set(DATASETS)
    assert list(dict.fromkeys(part.step_name for part in RECIPE)) == list(STEPS)
    assert STEPS == ("step-0", "step-1", "step-2")
    for part in RECIPE:
        assert all(names.index(name) > names.index(part.name) for name in part.lists)


def test_targets_are_datasets_and_steps_each_built_once() -> None:
    """In the order of the recipe, however they are named."""
    assert expand_targets(["coyo", "step-0", "llava-pretrain"]) == ["llm-jp-pairs-step0", "llava-pretrain", "coyo"]
    with pytest.raises(ConfigurationError, match="there is no dataset or step 'step-3'; did you mean 'step-"):
        expand_targets(["coyo", "step-3"])


def test_image_sets_fetch_what_the_lists_among_the_targets_name(tmp_path: Path) -> None:
    """Without those lists they fetch everything."""
    sources = {"gqa": "images.zip", "llava-v1.5-subset": str(tmp_path)}
    _, with_list = plan_recipe(["gqa", "llava-v1.5-subset"], tmp_path, sources, {})[::-1]
    assert [(one.dataset, one.source) for one in with_list.lists] == [("llava-v1.5-subset", str(tmp_path))]
    (alone,) = plan_recipe(["gqa"], tmp_path, {}, {})
    assert alone.job is not None
    assert alone.lists == ()
    assert alone.job.source == "https://downloads.cs.stanford.edu/nlp/data/gqa/"


def test_a_step_takes_the_samples_of_the_recipe_and_no_others(tmp_path: Path) -> None:
    """The recipe's own list is taken unless another is given; by its own name, COYO takes VILA's own choice."""
    planned = {one.part.name: one for one in plan_recipe(["step-1"], tmp_path, {"coyo": "x"}, {})}
    assert planned["coyo"].job is not None
    assert str(planned["coyo"].job.ids).endswith("/coyo/coyo_6m_ids.txt.gz")
    assert "no longer published" in planned["mmc4-core"].problem
    (other,) = (one for one in plan_recipe(["step-1"], tmp_path, {}, {"coyo": "mine"}) if one.part.name == "coyo")
    assert other.job is not None
    assert other.job.ids == "mine"
    (alone,) = plan_recipe(["coyo"], tmp_path, {"coyo": "x"}, {})
    assert alone.job is not None
    assert alone.job.ids is None


def test_the_numbers_of_the_recipe_hold_for_its_own_sources_alone(tmp_path: Path) -> None:
    """Of another source nothing is known but its limit, however large what is published is; a mirror has the same."""

    def open_images(sources: dict[str, str], **fields: Any) -> dict[str, int | None]:
        planned = plan_recipe(["mmc4-core", "textvqa"], tmp_path, sources, {}, lambda job: replace(job, **fields))
        return {one.part.name: one.open_images for one in planned}

    mmc4 = {"mmc4-core": "mine"}
    assert open_images(mmc4) == {"mmc4-core": None, "textvqa": 25_119}
    assert open_images({**mmc4, "textvqa": "mine.zip"}) == {"mmc4-core": None, "textvqa": None}
    assert open_images(mmc4, mirror="http://127.0.0.1:1") == {"mmc4-core": None, "textvqa": 25_119}
    assert open_images({**mmc4, "textvqa": "mine.zip"}, limit=7) == {"mmc4-core": 7, "textvqa": 7}


def test_nothing_is_estimated_of_own_sources(tmp_path: Path, command: Command) -> None:
    """Neither the disk that what is published would take, nor when all would be done."""
    names = ("coco-train2017", "mmc4-core")
    words = [*names, *sources_of(names, tmp_path / "sources", "127.0.0.1:1"), "--root", tmp_path / "data", *OPTIONS]
    code, _, error = command("prepare", *words)
    assert code == 0, error
    assert "estimated disk space: needs about" in error
    assert "will take about" not in error


@pytest.mark.parametrize(
    ("sources", "ids", "message"),
    [
        ({"gqa": "x"}, {}, "--source gqa=… is given, and gqa is not among the datasets"),
        ({}, {"llava-pretrain": "x"}, "llava-pretrain does not take --ids"),
    ],
)
def test_what_is_given_for_no_target_is_refused(
    tmp_path: Path, sources: dict[str, str], ids: dict[str, str], message: str
) -> None:
    """It would be a mistyped name."""
    with pytest.raises(ConfigurationError, match=message):
        plan_recipe(["step-0"], tmp_path, sources, ids)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with one of the lists, and rows of synthdog-ja that are fewer than the recipe takes."""
    file, images = LISTS["llava-instruct-ja"]
    (rows,) = (DATA / "synthdog-ja/source").glob("*.parquet")
    repositories = {
        "llm-jp/llava-instruct-ja": {file: json.dumps(list(map(record, images))).encode()},
        "naver-clova-ix/synthdog-ja": {f"data/{rows.name}": rows.read_bytes()},
    }
    with HubServer(repositories) as server:
        server.use(monkeypatch, tmp_path / "cache")
        yield server


@pytest.mark.rotating
def test_several_datasets_are_built_by_one_command(tmp_path: Path, hub: HubServer) -> None:
    """An image set has what the list on the hub names, and the list its records; what stops one stops no other."""
    source = place_source("coco-train2017", tmp_path / "coco").folder
    words = ["coco-train2017", "llava-instruct-ja", "synthdog-ja", "--source", f"coco-train2017={source}"]
    code, out, error = start_command("prepare", *words, "--root", tmp_path / "data", *OPTIONS)
    assert code == 2
    assert "datafetch: synthdog-ja: the train-*.parquet in" in error
    assert f"    the trainer's list: {tmp_path}/data/llava_instruct_ja/llava_instruct_ja_156k.json" in out.splitlines()
    assert "2 of 3 datasets will take about 15.0 GB, downloads and caches included" in error
    assert [line.split()[0] for line in out.splitlines() if line and line[0] not in " d"] == [
        *("coco-train2017", "synthdog-ja", "llava-instruct-ja")
    ]
    assert files(tmp_path / "data", "coco/train2017") == ["000000000025.jpg"]
    assert hub.contents().count("llava_instruct_ja_156k.json") == 1


@pytest.mark.rotating
@pytest.mark.slow
def test_all_steps_are_built_by_one_command(tmp_path: Path, authority: str, hub: HubServer, command: Command) -> None:
    """What the trainer reads is there, a second run fetches nothing, and the table says that all is complete."""
    names = [name for name in DATASETS if name not in ("synthdog-ja", "llava-instruct-ja")]
    root = tmp_path / "data"
    words = ["prepare", *STEPS, "--root", root, *sources_of(names, tmp_path / "sources", authority), *OPTIONS]
    code, out, error = command(*words, "--json")
    summary = json.loads(out)
    built = {one["dataset"]: one for one in summary["datasets"]}
    assert list(built) == [part.name for part in RECIPE]
    stopped = {name: one["error"] for name, one in built.items() if not one["complete"]}
    assert stopped.keys() == {"synthdog-ja"}, (stopped, error)
    assert "3 rows, and 101,953 are needed" in stopped["synthdog-ja"]
    assert "datafetch: synthdog-ja: the train-*.parquet in" in error
    assert code == 2
    assert hub.contents().count("llava_instruct_ja_156k.json") == 1
    assert files(root, "coco/train2017") == ["000000000009.jpg", "000000000025.jpg"]
    assert files(root, "gqa/images") == ["2327515.jpg"]
    assert files(root, "vg") == ["VG_100K/2.jpg", "VG_100K_2/1.jpg"]
    assert files(root, "textvqa/train_images") == ["0054c91397f2fe05.jpg"]
    for path in (
        *(f"LLaVA-Instruct-150K/{LISTS['llava-v1.5-subset'][0]}", f"llava_instruct_ja/{LISTS['llava-instruct-ja'][0]}"),
        *("LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", "alt_pair_ja/llm-jp_mm_pair_step0_558k.json"),
        *("japanese-photos/japanese_photos_conv_12k.json", "ja-vg-vqa/ja-vg-vqa_instruct_99k.json"),
    ):
        assert json.loads((root / path).read_text()), path
    subset = json.loads((root / "LLaVA-Instruct-150K/llava_v1_5_subset_358k.json").read_text())
    assert [one["id"] for one in subset] == [*LISTS["llava-v1.5-subset"][1], "text"]

    code, out, _ = command(*words)
    lines = out.splitlines()
    assert code == 2
    assert [line.split()[0] for line in lines if line and line[0] not in " d"] == list(built)
    again = json.loads(command(*words, "--json")[1])
    assert {one["dataset"] for one in again["datasets"] if one["complete"] and one["requests"]} == set()

    code, out, _ = command("datasets", "--root", root, "--json")
    states: list[dict[str, Any]] = json.loads(out)
    assert code == 0
    assert {one["name"]: one["state"] for one in states} == {
        name: "missing" if name == "synthdog-ja" else "complete" for name in built
    }
    assert {one["name"]: one["present"] for one in states} == {
        name: one["images"]["ok"] if one["complete"] else 0 for name, one in built.items()
    }


@pytest.mark.parametrize(("limit", "count"), [(None, 101_953), (48, 48), (200_000, 101_953)])
def test_a_limit_is_the_number_of_rows_that_are_needed(tmp_path: Path, limit: int | None, count: int) -> None:
    """Of synthdog-ja, which otherwise requires all rows of the recipe; its list has that many records."""
    (planned,) = plan_recipe(["synthdog-ja"], tmp_path, {}, {}, lambda job: replace(job, limit=limit))
    assert planned.job is not None
    assert planned.job.options == SynthdogJaOptions(count=count)


def test_a_list_on_a_server_shows_no_secret(tmp_path: Path, command: Command) -> None:
    """Also where it would only decide which images of a set are fetched."""
    source = "llava-v1.5-subset=http://user:hunter2@127.0.0.1:1/list.json"
    words = ("prepare", "gqa", "llava-v1.5-subset", "--source", source, "--source", f"gqa={tmp_path}")
    code, out, error = command(*words, "--root", tmp_path / "data", *OPTIONS)
    assert code == 2
    assert error.count("http://127.0.0.1:1/list.json can't be read") == 2
    assert "hunter2" not in out + error


def test_after_a_fresh_start_the_advice_is_to_go_on() -> None:
    """The same command again would delete what has been fetched."""
    later = without_fresh("a.zip can't be read now; run the same command again later to resume")
    assert later == "a.zip can't be read now; run the same command without --fresh later to resume"
    message = without_fresh("the disk is full; run the same command again to resume")
    assert message == "the disk is full; run the same command without --fresh to resume"


def test_the_table_is_for_a_terminal_of_80_columns(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """But for places, which are too long."""
    assert main(["datasets", "--root", str(tmp_path)]) == 0
    table, _, places = capfd.readouterr().out.partition("\n\n")
    assert len(table.splitlines()) == len(RECIPE) + 1
    assert all(len(line) <= 80 for line in table.splitlines())
    assert all(part.published in places and DATASETS[part.name].path in places for part in RECIPE)


def test_a_complete_run_over_a_part_says_of_which(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In the table by the options, and below it with their values and the number of rows; in JSON, too."""
    selections: dict[str, dict[str, Any]] = {
        "coyo": {"limit": 10_000_000, "ids": "/lists/coyo ids.txt"},
        "mmc4-core": {"limit": 100, "ids": None},
        "gqa": {"limit": None, "ids": None},
    }
    for name, selection in selections.items():
        layout = OutputLayout(tmp_path / DATASETS[name].path)
        write_job(layout, "a", limit=selection["limit"])
        job = json.loads(layout.job.read_bytes()) | {"asked": {"ids": selection["ids"]}}
        layout.job.write_text(json.dumps(job))
        layout.report.write_text(json.dumps({"images": {"ok": 100}, "samples": {"rows": 95}}))
    assert main(["datasets", "--root", str(tmp_path)]) == 0
    table, _, places = capfd.readouterr().out.partition("\n\n")
    assert all(len(line) <= 80 for line in table.splitlines())
    states = {line.split()[1]: line.split("100  ")[-1] for line in table.splitlines() if "complete" in line}
    assert states == {"coyo": "complete (--limit --ids)", "mmc4-core": "complete (--limit 100)", "gqa": "complete"}
    assert [line.strip() for line in places.splitlines() if "95 rows" in line] == [
        "95 rows, selected by --limit 10000000 --ids '/lists/coyo ids.txt'",
        "95 rows, selected by --limit 100",
    ]
    assert main(["datasets", "--root", str(tmp_path), "--json"]) == 0
    shown = {one["name"]: one for one in json.loads(capfd.readouterr().out)}
    for name, selection in selections.items():
        assert {key: shown[name][key] for key in ("state", "rows", "limit", "ids")} == {
            "state": "complete",
            "rows": 95,
            **selection,
        }
    assert (shown["gqa"]["present"], shown["textvqa"]["rows"]) == (100, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["step-9", "coyo"], "there is no dataset or step 'step-9'"),
        (["step-0", "--source", "somewhere"], "with several datasets --source takes NAME=PATH"),
        (["step-0", "--source", "coyo=a"], "coyo is not among the datasets"),
        (["gqa", "textvqa", "--source", "gqa=a", "--source", "gqa=b"], "--source is given twice for gqa"),
        (["mmc4-core", "coyo", "--keep-at-least", "2"], "--keep-at-least is for single datasets"),
        (["gqa", "textvqa", "--max-body", "32Q"], "--max-body takes bytes"),
        ([], "name a dataset or a step"),
    ],
)
def test_wrong_commands_are_refused_in_one_line(
    tmp_path: Path, words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """With what to do, and before anything is written."""
    assert main(["prepare", *words, "--root", str(tmp_path / "data")]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "data").exists()


def files(root: Path, folder: str) -> list[str]:
    """The files of a folder, by their relative paths."""
    return sorted(path.relative_to(root / folder).as_posix() for path in (root / folder).rglob("*") if path.is_file())


def test_what_stops_a_fresh_start_stops_no_other(tmp_path: Path, command: Command) -> None:
    """Whatever kind of error it is; its line does not advise to start over once more."""
    source = f"textvqa={tmp_path / 'nothing'}"
    with HubServer({}) as server:
        words = ["prepare", "gqa", "textvqa", "--source", f"gqa={server.endpoint}/images.zip", "--source", source]
        code, out, error = command(*words, "--root", tmp_path / "data", "--fresh", *OPTIONS)
    assert code == 2
    assert "datafetch: gqa: " in error
    assert "datafetch: textvqa: " in error
    assert out.count("not built: ") == 2
    assert "Traceback" not in error
