"""What the recipe's own scripts would leave of a miniature, and whether that is what is there.

Rules: the expectation is written down from what the recipe's scripts do, with Pillow, json and pickle, and uses nothing
of what datafetch reads and writes with. It is that of a trainer who has done the scripts' work with care: an image that
did not arrive or does not decode is not there, and neither is what needs it.

Source: github.com/llm-jp/llm-jp-VILA, ``data_prepare/README.md``; github.com/NVlabs/VILA, ``data_prepare``.
"""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urljoin

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from datafetch.demo.recipe_source import SYNTHDOG_ROWS, RecipeSource

Json: TypeAlias = dict[str, Any]

_SHORT_SIDE_PX = 336
_STATE = ".datafetch"
_BATCH = 2
_SYNTHDOG = (
    ("写真に写っている文字をすべて書き出してください。", "この写真に写っている文字を以下に示します。"),
    ("画像の中の文字をすべて出力してください。", "入力された画像内の文字は以下の通りです。"),
    ("この画像には何と書かれていますか？", "この画像に書かれているテキストを以下に表示します。"),  # noqa: RUF001 - as published
    ("画像に書かれているテキストを全て出力しなさい。", "この画像に書かれているテキストを以下に示します。"),
    ("与えられた画像中のテキストを全て出力しなさい。", "画像中のテキストは以下の通りです。"),
    ("この写真内の全てのテキストを抜き出してください。", "この写真内のテキストを以下に表示します。"),
)


@dataclass(frozen=True, slots=True)
class Expected:
    """What is expected of one dataset.

    Attributes:
        folder: Its output folder, relative to the trainer's data root.
        images: The files in this folder, by their paths in it.
        list_path: The list that the trainer reads, relative to the root; empty if there is none.
        records: The records of this list.
        rows: The rows of the pickles in the folder, in any order; None if it has no pickles.
        group: How many rows the trainer's loader takes together.
    """

    folder: str
    images: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    list_path: str = ""
    records: Sequence[Json] = field(default=(), repr=False)
    rows: Sequence[Json] | None = field(default=None, repr=False)
    group: int = 1

    def describe(self) -> str:
        """What there is, in a few words."""
        if self.rows is not None:
            return f"{len(self.rows)} rows"
        parts = [f"{len(self.images)} images"] if self.images else []
        return ", ".join([*parts, *([f"{len(self.records)} records"] if self.list_path else [])])


@dataclass(frozen=True, slots=True)
class DatasetFinding:
    """The result of checking one dataset.

    Attributes:
        dataset: Its name.
        expected: What must be there, in a few words.
        there: What is there, in a few words.
        problem: The first difference; empty if there is none.
    """

    dataset: str
    expected: str
    there: str
    problem: str = ""

    @property
    def is_passed(self) -> bool:
        """Whether everything is there as it must be, and nothing else."""
        return not self.problem


def expect(source: RecipeSource) -> dict[str, Expected]:
    """What the recipe's scripts would leave of each dataset."""
    image_sets = _image_sets(source)
    at_root = {f"{one.folder}/{name}": content for one in image_sets.values() for name, content in one.images.items()}
    return {
        "llm-jp-pairs-step0": _step0(source),
        "llava-pretrain": _llava_pretrain(source),
        "coyo": _coyo(source),
        "mmc4-core": _mmc4(source),
        "llm-jp-pairs-step1": _japanese_pairs(source),
        "llm-jp-interleaved": _interleaved(source),
        **image_sets,
        "japanese-photos-conv": _japanese_photos(source),
        "synthdog-ja": _synthdog(source),
        "llava-v1.5-subset": _training_list("LLaVA-Instruct-150K/llava_v1_5_subset_358k", _subset(source), at_root),
        "llava-instruct-ja": _training_list("llava_instruct_ja/llava_instruct_ja_156k", _instruct_ja(source), at_root),
        "ja-vg-vqa": _training_list("ja-vg-vqa/ja-vg-vqa_instruct_99k", _genome(source), at_root),
    }


def check_tree(root: Path, expected: Mapping[str, Expected], world_size: int) -> Iterator[DatasetFinding]:
    """Compare everything below the trainer's data root with what is expected, dataset by dataset.

    Args:
        root: The root.
        expected: What is expected of each dataset.
        world_size: For how many ranks rows are arranged.
    """
    left = {path.relative_to(root).as_posix() for path in _files(root)}
    for name, one in expected.items():
        own = {path for path in left if path == one.list_path or path.startswith(f"{one.folder}/")}
        left -= own
        yield _check(root, name, one, own, world_size)
    yield DatasetFinding(
        "anything else", "nothing", f"{len(left)} files" if left else "nothing", ", ".join(sorted(left)[:1])
    )


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        is_state = any(part.endswith(_STATE) for part in path.relative_to(root).parts)
        if path.is_file() and not is_state:
            yield path


def _check(root: Path, name: str, one: Expected, own: set[str], world_size: int) -> DatasetFinding:
    try:
        if one.rows is not None:
            return _check_rows(root, name, one, own, world_size)
        images = {path.removeprefix(f"{one.folder}/"): (root / path).read_bytes() for path in own - {one.list_path}}
        records = json.loads((root / one.list_path).read_bytes()) if one.list_path in own else []
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a file, it is a difference
        return DatasetFinding(name, one.describe(), "unreadable", f"{type(error).__name__}: {error}")
    there = Expected(one.folder, images, one.list_path, records).describe()
    return DatasetFinding(name, one.describe(), there, _difference(one, images, records))


def _difference(one: Expected, images: Mapping[str, bytes], records: Sequence[Json]) -> str:
    for path in sorted(one.images.keys() | images.keys()):
        if path not in images:
            return f"{path} is missing"
        if path not in one.images:
            return f"{path} is too much"
        if images[path] != one.images[path]:
            return f"{path} differs"
    return "" if list(map(_exact, records)) == list(map(_exact, one.records)) else f"{one.list_path} differs"


def _check_rows(root: Path, name: str, one: Expected, own: set[str], world_size: int) -> DatasetFinding:
    assert one.rows is not None, "the caller has checked this"
    shards = sorted(path.removesuffix(".pkl") for path in own if path.endswith(".pkl"))
    by_shard = [pickle.loads((root / f"{shard}.pkl").read_bytes()) for shard in shards]  # noqa: S301 - made a moment ago
    counts = [int((root / f"{shard}.count").read_text()) for shard in shards]
    rows = [row for of_shard in by_shard for row in of_shard]
    problem = ""
    if own != {f"{shard}{suffix}" for shard in shards for suffix in (".pkl", ".count")}:
        problem = "there are other files than a .pkl and a .count a shard"
    elif counts != list(map(len, by_shard)):
        problem = "a .count is not that of its shard"
    elif sorted(map(_exact, rows)) != sorted(map(_exact, one.rows)):
        problem = "the rows differ"
    elif (read := _read_by_ranks(counts, world_size, one.group)) != (best := _best(len(rows), world_size, one.group)):
        problem = f"{world_size} ranks read {read} rows of {best}"
    return DatasetFinding(name, one.describe(), f"{len(rows)} rows", problem)


def _read_by_ranks(counts: Sequence[int], world_size: int, group: int) -> int:
    """How many rows the trainer reads: each rank as many groups as the one with the fewest, in whole batches."""
    shards = len(counts) // world_size
    of_ranks = [sum(counts[rank * shards : (rank + 1) * shards]) for rank in range(world_size)]
    return min(of_ranks) // (group * _BATCH) * group * _BATCH * world_size


def _best(rows: int, world_size: int, group: int) -> int:
    step = world_size * group * _BATCH
    return rows // step * step


def _exact(value: object) -> str:
    """A value as text, in which the order of keys and the types of numbers show."""
    return json.dumps(value, ensure_ascii=False)


def _jpeg(body: bytes, short_side_px: int | None = None) -> bytes:
    """The recipe's image; those of VILA's scripts are shrunk first."""
    image: Image.Image = Image.open(BytesIO(body)).convert("RGB")
    width, height = image.size
    if short_side_px is not None and min(width, height) > short_side_px:
        if width < height:
            image = image.resize((short_side_px, int(short_side_px * height / width)))
        else:
            image = image.resize((int(short_side_px * width / height), short_side_px))
    buffer = BytesIO()
    image.save(buffer, format="JPEG")
    return buffer.getvalue()


def _text(jpeg: bytes) -> str:
    return base64.b64encode(jpeg).decode()


def _decodes(content: bytes) -> bool:
    try:
        Image.open(BytesIO(content)).load()
    except OSError:
        return False
    return True


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_lines(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def _with_images(folder: str, list_path: str, records: Iterable[Json], images: Mapping[str, bytes]) -> Expected:
    """Images that arrived, and the records of which the image arrived."""
    return Expected(folder, images, list_path, [one for one in records if one["image"] in images])


def _step0(source: RecipeSource) -> Expected:
    name = "llm-jp_mm_pair_step0_558k.json"
    records = _read_json(source.project("llm-jp-japanese-image-text-pairs") / name)
    bodies = {one["image"]: source.bodies[one["url"]] for one in records}
    images = {image: body for image, body in bodies.items() if body is not None}
    return _with_images("alt_pair_ja/image_step0", f"alt_pair_ja/{name}", records, images)


def _llava_pretrain(source: RecipeSource) -> Expected:
    name = "blip_laion_cc_sbu_558k"
    repository = source.repository("liuhaotian/LLaVA-Pretrain")
    images = _members(repository / "images.zip")
    for one in _read_json(repository / f"{name}_meta.json"):
        body = source.bodies.get(one["url"])
        if one["image"] not in images and body is not None:
            images[one["image"]] = body
    records = _read_json(repository / f"{name}.json")
    return _with_images("LLaVA-Pretrain/images", f"LLaVA-Pretrain/{name}.json", records, images)


def _coyo(source: RecipeSource) -> Expected:
    wanted = set(map(int, gzip.decompress(source.coyo_ids.read_bytes()).split()))
    rows = []
    for path in sorted((source.repository("kakaobrain/coyo-700m") / "data").glob("part-*.parquet")):
        for one in pq.read_table(path).to_pylist():
            body = source.bodies.get(one["url"])
            if one["id"] in wanted and body is not None:
                clip_sim = np.float32(one["clip_similarity_vitb32"]) + np.float32(one["clip_similarity_vitl14"])
                image = _text(_jpeg(body, _SHORT_SIDE_PX))
                rows.append(
                    {
                        "id": one["id"],
                        "url": one["url"],
                        "text": one["text"],
                        "clip_sim": float(clip_sim),
                        "image": image,
                    }
                )
    return Expected("coyo-700m/pkl03-split", rows=rows, group=4)


def _with_image_texts(document: Json, source: RecipeSource, short_side_px: int | None) -> Json | None:
    """A document with its images; None unless all arrived."""
    images = []
    for one in document["image_info"]:
        body = source.bodies[urljoin(document["url"], one["raw_url"])]
        if body is None:
            return None
        images.append({**one, "image_base64": _text(_jpeg(body, short_side_px))})
    return {**document, "image_info": images}


def _mmc4(source: RecipeSource) -> Expected:
    rows = []
    for line in gzip.decompress(source.mmc4_ids.read_bytes()).decode().split():
        shard, index = line.split(",")
        document = _read_lines(source.mmc4 / f"docs_shard_{shard}_v3.jsonl")[int(index)]
        if (row := _with_image_texts(document, source, _SHORT_SIDE_PX)) is not None:
            rows.append(row)
    return Expected("mmc4-core/pkl-core-limit-tokens", rows=rows)


def _japanese_pairs(source: RecipeSource) -> Expected:
    project = source.project("llm-jp-japanese-image-text-pairs")
    pairs = [one for path in sorted(project.glob("*.jsonl")) for one in _read_lines(path)]
    bodies = [(one, source.bodies[one["url"]]) for one in pairs]
    rows = [{**one, "image": _text(_jpeg(body))} for one, body in bodies if body is not None]
    return Expected("alt_pair_ja/pkl02", rows=rows, group=4)


def _interleaved(source: RecipeSource) -> Expected:
    project = source.project("llm-jp-japanese-interleaved-data")
    documents = [one for path in sorted(project.glob("*.jsonl")) for one in _read_lines(path)]
    rows = [row for one in documents if (row := _with_image_texts(one, source, None)) is not None]
    return Expected("interleaved_ja/pkl-limit-tokens", rows=rows)


def _subset(source: RecipeSource) -> list[Json]:
    repository = source.repository("llm-jp/llava-instruct-v1_5-en-subset-358k")
    records: list[Json] = _read_json(repository / "llava_v1_5_subset_358k.json")
    return records


def _instruct_ja(source: RecipeSource) -> list[Json]:
    records: list[Json] = _read_json(source.repository("llm-jp/llava-instruct-ja") / "llava_instruct_ja_156k.json")
    return records


def _genome(source: RecipeSource) -> list[Json]:
    """The records with the paths that images have below the trainer's root."""
    path = source.repository("llm-jp/ja-vg-vqa-conversation") / "ja-vg-vqa_instruct_99k.json"
    return [{**one, "image": "/".join(["vg", *one["image"].split("/")[-2:]])} for one in _read_json(path)]


def _image_sets(source: RecipeSource) -> dict[str, Expected]:
    """Of each set, the images that a list names and that decode."""
    records = (*_subset(source), *_instruct_ja(source), *_genome(source))
    named = {one["image"] for one in records if "image" in one}
    places = {
        "coco-train2017": ("coco/train2017", "coco", ["images.cocodataset.org/zips/train2017.zip"]),
        "gqa": ("gqa/images", "gqa", ["downloads.cs.stanford.edu/nlp/data/gqa/images.zip"]),
        "visual-genome": (
            "vg",
            "vg",
            [f"cs.stanford.edu/people/rak248/VG_100K_2/{name}" for name in ("images.zip", "images2.zip")],
        ),
        "textvqa": (
            "textvqa/train_images",
            "textvqa",
            ["dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip"],
        ),
    }
    expected = {}
    for name, (folder, top, archives) in places.items():
        members = {
            f"{top}/{member}": content
            for archive in archives
            for member, content in _members(source.published / archive).items()
        }
        images = {
            path.removeprefix(f"{folder}/"): content
            for path, content in members.items()
            if path in named and _decodes(content)
        }
        expected[name] = Expected(folder, images)
    covers = {f"{id_}.jpg": source.bodies[cover["imageURL"]] for id_, cover in _read_json(source.ocr_vqa).items()}
    images = {name: body for name, body in covers.items() if body and f"ocr_vqa/images/{name}" in named}
    return {**expected, "ocr-vqa": Expected("ocr_vqa/images", images)}


def _training_list(path: str, records: Iterable[Json], at_root: Mapping[str, bytes]) -> Expected:
    """The records whose image is below the root, and those without one."""
    there = [one for one in records if "image" not in one or one["image"] in at_root]
    return Expected(path, list_path=f"{path}.json", records=there)


def _japanese_photos(source: RecipeSource) -> Expected:
    name = "japanese_photos_conv_12k.json"
    archive = source.repository("ThePioneer/japanese-photos") / "photo data.zip"
    images = {path.rpartition("/")[2]: content for path, content in _members(archive).items()}
    records = _read_json(source.repository("llm-jp/japanese-photos-conversation") / name)
    return _with_images("japanese-photos/images", f"japanese-photos/{name}", records, images)


def _synthdog(source: RecipeSource) -> Expected:
    folder = source.repository("naver-clova-ix/synthdog-ja") / "data"
    images: dict[str, bytes] = {}
    records: list[Json] = []
    for number, path in enumerate(sorted(folder.glob("train-*.parquet"))):
        for row, one in enumerate(pq.read_table(path).to_pylist()):
            if len(records) == SYNTHDOG_ROWS:
                break
            name = f"{number:03d}/{row:05d}"
            images[f"{name}.jpg"] = _jpeg(one["image"]["bytes"])
            records.append(_synthdog_record(name, len(records), one["ground_truth"]))
    return Expected(
        "synthdog-ja/image", images, f"synthdog-ja/synthdog_ja_{round(SYNTHDOG_ROWS / 1000)}k.json", records
    )


def _synthdog_record(name: str, number: int, ground_truth: str) -> Json:
    question, prefix = _SYNTHDOG[number % len(_SYNTHDOG)]
    text = json.loads(ground_truth)["gt_parse"]["text_sequence"].replace(" ", "\n")
    asked = f"{question}\n<image>" if number % 2 else f"<image>\n{question}"
    turns = [
        {"from": "human", "value": asked},
        {"from": "gpt", "value": f"{prefix}\n```\n{text}\n```\n"},
    ]
    return {"id": f"synthdog-ja/image/{name}", "image": f"synthdog-ja/image/{name}.jpg", "conversations": turns}
