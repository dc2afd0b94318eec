"""The recipe of llm-jp-VILA: which datasets each of its three steps trains on, and how many images they have.

Image sets come before the training lists that name their images, since a list keeps only the records whose images are
there. Numbers are those of the recipe's page and of the published files; where images are fetched by URL, fewer arrive.

Source: github.com/llm-jp/llm-jp-VILA, ``data_prepare/README.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from datafetch.datasets.registry import DATASETS
from datafetch.errors import ConfigurationError, unknown_name


@dataclass(frozen=True, slots=True)
class RecipePart:
    """A dataset as the recipe uses it.

    Attributes:
        name: The dataset's name.
        step: The step that trains on it, or on lists that name its images; None if the recipe does not have it.
        images: The number of images, or of rows where those have several; of an image set, all that it has. 0 if it is
            not known.
        listed_images: Of an image set, about how many of them its lists name; 0 for all.
        gigabytes: About how much of the disk it takes, downloads that are kept included: of archives the size of their
            images, and of images by URL, for the half of them that still arrives, 36 kB each (as base64) if they are
            shrunk, 150 kB if they are not, 110 kB as files.
        published: Where it is published: a place on the Hugging Face hub or a GitLab server, or a URL; empty if that is
            not known.
        is_read_there: Whether its source is that place, unless another is given; otherwise one has to be.
        gate: What the operator has to do first; empty if anyone can download it.
        ids: Where the list of the samples is that the recipe takes; empty if it takes all.
        ids_blob: The blob id of that list in its repository, a hash of its content.
        lists: The datasets whose lists name its images, if it is an image set; no others of its images are needed.
    """

    name: str
    step: int | None = None
    images: int = 0
    gigabytes: int = 0
    published: str = ""
    gate: str = ""
    is_read_there: bool = False
    ids: str = ""
    ids_blob: str = ""
    listed_images: int = 0
    lists: tuple[str, ...] = ()

    @property
    def step_name(self) -> str:
        """The step as a target of ``datafetch prepare``; empty if there is none."""
        return "" if self.step is None else f"step-{self.step}"

    @property
    def readable_place(self) -> str:
        """Where it is read if no source is given; empty if one has to be."""
        return self.published if self.is_read_there else ""


_SUBSET = "llava-v1.5-subset"
_PAIRS = "gitlab://gitlab.llm-jp.nii.ac.jp/datasets/llm-jp-japanese-image-text-pairs"
_DOCUMENTS = "gitlab://gitlab.llm-jp.nii.ac.jp/datasets/llm-jp-japanese-interleaved-data"
_IDS = "https://raw.githubusercontent.com/llm-jp/llm-jp-VILA/4c59e0642cf9bafd859cf73c4503ab27881cc3fb/data_prepare/mdx"


def _at_hub(name: str, step: int, images: int, gigabytes: int, repository: str) -> RecipePart:
    """A dataset on the Hugging Face hub."""
    return RecipePart(name, step, images, gigabytes, f"hf://datasets/{repository}", is_read_there=True)


def _image_set(name: str, images: int, gigabytes: int, published: str, *lists: str, listed: int = 0) -> RecipePart:
    """An image set of step 2 whose archives are published at a URL, from which members can be read."""
    return RecipePart(name, 2, images, gigabytes, published, is_read_there=True, lists=lists, listed_images=listed)


RECIPE: tuple[RecipePart, ...] = (
    RecipePart("llm-jp-pairs-step0", 0, 558_000, 31, _PAIRS, is_read_there=True),
    _at_hub("llava-pretrain", 0, 558_128, 28, "liuhaotian/LLaVA-Pretrain@70f9d1e"),
    replace(
        _at_hub("coyo", 1, 6_000_000, 110, "kakaobrain/coyo-700m"),
        ids=f"{_IDS}/coyo/coyo_6m_ids.txt.gz",
        ids_blob="e26ced37bf5ab5b619cca22bea84626bafe4a39b",
    ),
    RecipePart(
        "mmc4-core",
        1,
        6_000_000,
        110,
        "https://github.com/allenai/mmc4",
        "no longer published: hand in a copy of docs_shard_*_v3.jsonl; docs_no_face_shard_*_v3.jsonl of "
        "hf://datasets/jmhessel/mmc4-core-ff, behind a form, can stand in",
        ids=f"{_IDS}/mmc4/mmc4_6m_ids.csv.gz",
        ids_blob="a692d728f722971615718d40792ab1f5cf05c9a8",
    ),
    RecipePart("llm-jp-pairs-step1", 1, 6_000_000, 450, _PAIRS, is_read_there=True),
    RecipePart("llm-jp-interleaved", 1, 6_000_000, 450, _DOCUMENTS, is_read_there=True),
    _image_set("coco-train2017", 118_287, 19, "http://images.cocodataset.org/zips/", _SUBSET, "llava-instruct-ja"),
    _image_set("gqa", 148_854, 22, "https://downloads.cs.stanford.edu/nlp/data/gqa/", _SUBSET, listed=46_000),
    _image_set("visual-genome", 108_249, 15, "https://cs.stanford.edu/people/rak248/VG_100K_2/", "ja-vg-vqa"),
    _image_set("textvqa", 25_119, 7, "https://dl.fbaipublicfiles.com/textvqa/images/", _SUBSET, listed=21_953),
    RecipePart(
        "ocr-vqa",
        2,
        207_572,
        9,
        "https://ocr-vqa.github.io",
        "behind a page that asks to confirm: download dataset.json by hand; or unpack a copy of the covers to "
        "ocr_vqa/images, such as ocr_vqa_images_llava_v15.zip of hf://datasets/weizhiwang/llava_v15_instruction_images",
        lists=(_SUBSET,),
        listed_images=80_000,
    ),
    _at_hub("japanese-photos-conv", 2, 11_808, 29, "llm-jp/japanese-photos-conversation@883347a"),
    _at_hub("synthdog-ja", 2, 101_953, 14, "naver-clova-ix/synthdog-ja@5c895d0"),
    _at_hub(_SUBSET, 2, 358_000, 1, "llm-jp/llava-instruct-v1_5-en-subset-358k@407d05d"),
    _at_hub("llava-instruct-ja", 2, 156_000, 1, "llm-jp/llava-instruct-ja@2f1cb5c"),
    _at_hub("ja-vg-vqa", 2, 99_000, 1, "llm-jp/ja-vg-vqa-conversation@7051feb"),
)
"""All datasets of the recipe, each after those that it needs."""

_PARTS = {part.name: part for part in RECIPE}

STEPS: tuple[str, ...] = tuple(dict.fromkeys(part.step_name for part in RECIPE))
"""The names of the steps."""


def part_of(name: str) -> RecipePart:
    """A dataset as the recipe uses it, or all that is known of one that the recipe does not have."""
    return _PARTS.get(name) or RecipePart(name)


def published_blob(url: str) -> str:
    """The blob id of a file that the recipe has published, a hash of its content; empty if it is not known."""
    return next((part.ids_blob for part in RECIPE if part.ids == url), "")


def default_source(name: str) -> str:
    """The source of a dataset unless another is given.

    Raises:
        ConfigurationError: One has to be given; the message says where it is published.
    """
    part = part_of(name)
    if part.readable_place:
        return part.readable_place
    gate = f", which is {part.gate}" if part.gate else ""
    place = f" ({part.published}){gate}" if part.published else ""
    raise ConfigurationError(f"give a --source for {name}{place}")


def expand_targets(targets: Sequence[str]) -> list[str]:
    """The datasets that targets stand for, each once, in the order of the recipe; others come behind.

    Args:
        targets: Names of datasets and steps.

    Raises:
        ConfigurationError: There is no such dataset or step.
    """
    for target in targets:
        if target not in DATASETS and target not in STEPS:
            raise unknown_name("dataset or step", target, [*DATASETS, *STEPS])
    names = [part.name for part in RECIPE if part.name in targets or part.step_name in targets]
    return [*names, *(name for name in DATASETS if name in targets and name not in _PARTS)]
