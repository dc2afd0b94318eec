"""The recipe's datasets in miniature, in the form in which they are published.

A few dozen samples of each dataset and image set are painted into folders of the hosts that publish them, as
``demo.published_files`` serves them. What is not published, and has to be handed in, lies next to these. Images that
manifests name by URL are at the demo's server, some of them with faults.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from datafetch.demo.behaviours import BEHAVIOURS
from datafetch.demo.manifest import write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import Kind, encode, paint, write_pictures

HUB, GITLAB = "huggingface.co/datasets", "gitlab.llm-jp.nii.ac.jp/datasets"
LISTS_OF_IDS = "raw.githubusercontent.com/llm-jp/llm-jp-VILA/data_prepare/mdx"
SYNTHDOG_ROWS = 64
"""How many rows of synthdog-ja the miniature is made of. No other dataset has more samples."""

_PICTURES = 22  # one of each kind
_FAULTS = ("missing", "flaky", "moved", "html", "truncated")
_FAULT_EVERY = 8
_DOCUMENTS = 12  # of each file
_REPEATED_EVERY = 5
_COYO_ROWS = 20_000  # so that a file is longer than its last 64 KiB, in which a footer is looked for
_SMALL_PX = (96, 72)
_JPEG, _PNG = Kind(".jpg", "JPEG", "RGB"), Kind(".png", "PNG", "RGB")
_PAGE = "https://page.invalid/{}.html"
_QUESTIONS = ("何が写っていますか", "この写真を説明してください。", "What is this?")


@dataclass(frozen=True, slots=True)
class RecipeSource:
    """A miniature.

    Attributes:
        published: The folder of the hosts.
        mmc4: The folder of mmc4-core's files, which have to be handed in.
        ocr_vqa: OCR-VQA's ``dataset.json``, which has to be handed in.
        bodies: What the server sends for each URL that a manifest names; None if no image arrives from there.
    """

    published: Path
    mmc4: Path
    ocr_vqa: Path
    bodies: Mapping[str, bytes | None] = field(repr=False)

    def repository(self, name: str) -> Path:
        """The folder of a repository of the Hugging Face hub."""
        return self.published / HUB / name

    def project(self, name: str) -> Path:
        """The folder of a GitLab project of llm-jp."""
        return self.published / GITLAB / name

    @property
    def coyo_ids(self) -> Path:
        """The recipe's list of COYO's ids."""
        return self.published / LISTS_OF_IDS / "coyo/coyo_6m_ids.txt.gz"

    @property
    def mmc4_ids(self) -> Path:
        """The recipe's list of mmc4-core's documents."""
        return self.published / LISTS_OF_IDS / "mmc4/mmc4_6m_ids.csv.gz"


def write_recipe_source(folder: Path, origin: Origin, pictures: Path) -> RecipeSource:
    """Write a miniature.

    Args:
        folder: Created if it is missing.
        origin: Serves the images that manifests name by URL.
        pictures: The folder of its pictures, which are painted as well.
    """
    web = _Web(origin, pictures, write_pictures(pictures, _PICTURES))
    source = RecipeSource(
        folder / "published", folder / "handed-in/mmc4", folder / "handed-in/dataset.json", web.bodies
    )
    _write_step0(source, web)
    _write_llava_pretrain(source, web)
    _write_coyo(source, web)
    _write_mmc4(source, web)
    _write_japanese_pairs(source, web)
    _write_interleaved(source, web)
    images = _write_image_sets(source, web)
    _write_training_lists(source, images)
    _write_japanese_photos(source)
    _write_synthdog(source)
    return source


class _Web:
    """Images by URL: each with a URL of its own, and every eighth with a fault."""

    def __init__(self, origin: Origin, folder: Path, names: list[str]) -> None:
        self._origin = origin
        self._folder = folder
        self._pictures = {name: (folder / name).read_bytes() for name in names}
        self._names = names
        self.bodies: dict[str, bytes | None] = {}

    def urls(self) -> Iterator[str]:
        """URLs that have not been given out yet, without end."""
        while True:
            number = len(self.bodies)
            fault = number // _FAULT_EVERY % len(_FAULTS)
            yield self.url(_FAULTS[fault] if number % _FAULT_EVERY == _FAULT_EVERY - 1 else "well")

    def url(self, behaviour: str) -> str:
        """A new URL with a behaviour of the server."""
        number = len(self.bodies)
        # The start of a JPEG still shows a part of the picture, unlike that of other formats.
        name = self._names[0 if behaviour == "truncated" else number % len(self._names)]
        url = self._origin.url(behaviour, name, number)
        self.bodies[url] = None if BEHAVIOURS[behaviour].expected else self._pictures[name]
        return url

    def gone_cover(self) -> str:
        """A new URL of what shops send for a cover that is gone: an image of one pixel."""
        paint((1, 1), 0).convert("P").save(self._folder / "gone.gif")
        url = self._origin.url("well", "gone.gif", len(self.bodies))
        self.bodies[url] = None
        return url


def _record(id_: object, image: str | None, number: int, *, text: str = "") -> dict[str, object]:
    """A record of a training list."""
    question = _QUESTIONS[number % len(_QUESTIONS)]
    asked = question if image is None else f"<image>\n{question}"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": text or f"答え {number}。"}]
    return {"id": id_, **({} if image is None else {"image": image}), "conversations": turns}


def _small(seed: int, kind: Kind = _JPEG) -> bytes:
    return encode(paint(_SMALL_PX, seed), kind)


def _write_json(path: Path, value: object, indent: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent), encoding="utf-8")


def _write_lines(path: Path, records: Iterable[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")


def _write_zip(path: Path, members: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)


def _write_ids(path: Path, lines: Iterable[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))


def _write_step0(source: RecipeSource, web: _Web) -> None:
    records = [
        {**_record(f"{number:09d}", f"{number:09d}.jpg", 0, text=f"写真 {number}"), "url": url}
        for number, url in enumerate(islice(web.urls(), 40))
    ]
    path = source.project("llm-jp-japanese-image-text-pairs") / "llm-jp_mm_pair_step0_558k.json"
    _write_json(path, records)


def _write_llava_pretrain(source: RecipeSource, web: _Web) -> None:
    """Two images are not in the archive: one is still at its URL, the other is gone."""
    names = [f"{number % 4:05d}/{number:09d}.jpg" for number in range(40)]
    lost = {names[17]: web.url("well"), names[31]: web.url("missing")}
    repository = source.repository("liuhaotian/LLaVA-Pretrain")
    records = [_record(name[6:-4], name, number) for number, name in enumerate(names)]
    _write_json(repository / "blip_laion_cc_sbu_558k.json", records)
    meta = [
        {
            "id": name[6:-4],
            "image": name,
            "blip_caption": f"picture {number}",
            "url": lost.get(name) or _PAGE.format(number),
        }
        for number, name in enumerate(names)
    ]
    _write_json(repository / "blip_laion_cc_sbu_558k_meta.json", meta)
    _write_zip(
        repository / "images.zip",
        {name: _small(1000 + number) for number, name in enumerate(names) if name not in lost},
    )


def _write_coyo(source: RecipeSource, web: _Web) -> None:
    repository = source.repository("kakaobrain/coyo-700m")
    written = write_coyo_source(repository, list(islice(web.urls(), 48)), files=2, rows=_COYO_ROWS)
    (repository / "data/_SUCCESS").touch()
    _write_ids(source.coyo_ids, written.ids.read_text().split())
    written.ids.unlink()


def _document(urls: list[str], number: int) -> dict[str, object]:
    """A document in the form of MMC4, with as many texts as images, and one more."""
    texts = [f"文 {number}-{position}" for position in range(len(urls) + 1)]
    images = [
        {
            "image_name": f"{number:06d}{position}.jpg",
            "raw_url": url,
            "matched_text_index": position,
            "matched_sim": 0.25 + position / 64,
            "face_detections": None,
        }
        for position, url in enumerate(urls)
    ]
    similarities = [[(row + column + 1) / 64 for column in range(len(texts))] for row in range(len(urls))]
    return {
        "image_info": images,
        "similarity_matrix": similarities,
        "text_list": texts,
        "url": _PAGE.format(number),
        "could_have_url_duplicate": 0,
    }


def _documents(web: _Web, count: int) -> Iterator[dict[str, object]]:
    """Documents with one to three images, some of which the document before has, too."""
    new, before = web.urls(), ""
    for number in range(count):
        urls = list(islice(new, number % 3 + 1))
        if number % _REPEATED_EVERY == _REPEATED_EVERY - 1:
            urls[0] = before
        before = urls[-1]
        yield _document(urls, number)


def _write_mmc4(source: RecipeSource, web: _Web) -> None:
    """URLs without a scheme are published, too; shards and documents that the list does not name are not needed."""
    ids = []
    for shard, is_listed in ((7, True), (12, True), (100, False)):
        documents = list(_documents(web, _DOCUMENTS))
        for one in documents[::4]:
            images = one["image_info"]
            assert isinstance(images, list), "it was made so"
            images[0]["raw_url"] = images[0]["raw_url"].replace("http://", "//")
            one["url"] = str(one["url"]).replace("https://", "http://")
        _write_lines(source.mmc4 / f"docs_shard_{shard}_v3.jsonl", documents)
        ids += [f"{shard},{index}" for index in range(1, _DOCUMENTS) if is_listed]
    _write_ids(source.mmc4_ids, ids)


def _write_japanese_pairs(source: RecipeSource, web: _Web) -> None:
    project = source.project("llm-jp-japanese-image-text-pairs")
    for file in range(2):
        pairs = ({"url": url, "text": f"写真 {file}-{number}"} for number, url in enumerate(islice(web.urls(), 24)))
        _write_lines(project / f"pairs_{file:02d}.jsonl", pairs)


def _write_interleaved(source: RecipeSource, web: _Web) -> None:
    project = source.project("llm-jp-japanese-interleaved-data")
    for file in range(2):
        _write_lines(project / f"ja-{file:05d}.jsonl", _documents(web, _DOCUMENTS))


def _write_image_sets(source: RecipeSource, web: _Web) -> dict[str, list[str]]:
    """Write the archives of image sets, and the list of OCR-VQA's covers.

    Returns:
        The images of each set, as training lists name them; there are some more that are published.
    """
    archives = {
        "coco": ("images.cocodataset.org/zips/train2017.zip", "train2017/{:012d}.jpg"),
        "gqa": ("downloads.cs.stanford.edu/nlp/data/gqa/images.zip", "images/{}.jpg"),
        "textvqa": ("dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip", "train_images/{:016x}.jpg"),
        "vg": ("cs.stanford.edu/people/rak248/VG_100K_2/images.zip", "VG_100K/{}.jpg"),
        "vg 2": ("cs.stanford.edu/people/rak248/VG_100K_2/images2.zip", "VG_100K_2/{}.jpg"),
    }
    images: dict[str, list[str]] = {}
    for number, (set_, (place, name)) in enumerate(archives.items()):
        members = {name.format(1580 + image): _small(2000 + 100 * number + image) for image in range(24)}
        if set_ == "vg":  # published so
            members["VG_100K/1592.jpg"] = members["VG_100K/1592.jpg"][:700]
        _write_zip(source.published / place, members)
        images[set_] = [f"{set_.split()[0]}/{member}" for member in members]
    covers = {f"{number:09d}X": url for number, url in enumerate(islice(web.urls(), 24))}
    covers["0000000000"] = web.gone_cover()
    dataset = {
        id_: {
            "imageURL": url,
            "title": f"Book {id_}",
            "authorName": "N. N.",
            "genre": "Humor",
            "questions": ["Who is the author of this book?"],
            "answers": ["N. N."],
            "split": 1,
        }
        for id_, url in covers.items()
    }
    _write_json(source.ocr_vqa, dataset)
    images["ocr_vqa"] = [f"ocr_vqa/images/{id_}.jpg" for id_ in covers]
    return images


def _write_training_lists(source: RecipeSource, images: Mapping[str, list[str]]) -> None:
    """Write lists that name some images of each set, in any order, one that no set has, and none at all."""
    named = [
        *images["coco"][:10],
        *images["gqa"][2:12],
        *images["textvqa"][4:14],
        *images["ocr_vqa"][6:],
        *(f"coco/train2017/{99:012d}.jpg", "", ""),
    ]
    Random(0).shuffle(named)  # noqa: S311 - an order that looks like any other
    subset = [
        _record(
            int(Path(image).stem) if image.startswith("gqa") else Path(image).stem or f"text-{number}",
            image or None,
            number,
        )
        for number, image in enumerate(named)
    ]
    repository = source.repository("llm-jp/llava-instruct-v1_5-en-subset-358k")
    _write_json(repository / "llava_v1_5_subset_358k.json", subset, indent=2)
    japanese = [_record(Path(image).stem, image, number) for number, image in enumerate(images["coco"][6:20])]
    _write_json(source.repository("llm-jp/llava-instruct-ja") / "llava_instruct_ja_156k.json", japanese)
    genome = [
        _record(number, f"images/{image.partition('/')[2]}" if number % 2 else image, number)
        for number, image in enumerate([*images["vg"][8:20], *images["vg 2"][:12]])
    ]
    _write_json(source.repository("llm-jp/ja-vg-vqa-conversation") / "ja-vg-vqa_instruct_99k.json", genome, indent=2)


def _write_japanese_photos(source: RecipeSource) -> None:
    prefectures = ("北海道", "京都", "沖縄")
    photos = {f"IMG {number}.jpg": _small(3000 + number) for number in range(24)}
    archive = {
        f"photo data/{prefectures[number % len(prefectures)]}/{name}": content
        for number, (name, content) in enumerate(photos.items())
    }
    _write_zip(source.repository("ThePioneer/japanese-photos") / "photo data.zip", archive)
    records = [_record(Path(name).stem, name, number) for number, name in enumerate([*photos, "IMG 999.jpg"])]
    repository = source.repository("llm-jp/japanese-photos-conversation")
    _write_json(repository / "japanese_photos_conv_12k.json", records)


def _write_synthdog(source: RecipeSource) -> None:
    folder = source.repository("naver-clova-ix/synthdog-ja") / "data"
    folder.mkdir(parents=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for file, rows in (
        ("train-00000-of-00083-26adbcb2fc0d6a53", SYNTHDOG_ROWS + 8),
        ("train-00001-of-00083-0123456789abcdef", 8),
        ("validation-00000-of-00001-0123456789abcdef", 8),
    ):
        values = [{"bytes": _small(4000 + row, _JPEG if row % 2 else _PNG), "path": None} for row in range(rows)]
        texts = [
            json.dumps({"gt_parse": {"text_sequence": f"{file[:5]} 行 {row} の文字"}}, ensure_ascii=False)
            for row in range(rows)
        ]
        table = pa.table({"image": pa.array(values, image), "ground_truth": texts})
        pq.write_table(table, folder / f"{file}.parquet", row_group_size=16)
