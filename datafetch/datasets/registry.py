"""The registry of datasets."""

from __future__ import annotations

from collections.abc import Mapping

from datafetch.datasets.archived_lists import JAPANESE_PHOTOS, LLAVA_PRETRAIN
from datafetch.datasets.coyo import Coyo
from datafetch.datasets.image_sets import COCO, GQA, TEXTVQA, VISUAL_GENOME
from datafetch.datasets.lists.list_dataset import ListDataset, ListFormat, ListOptions
from datafetch.datasets.llm_jp_interleaved import LlmJpInterleaved
from datafetch.datasets.llm_jp_pairs_step0 import LlmJpPairsStep0
from datafetch.datasets.llm_jp_pairs_step1 import LlmJpPairsStep1
from datafetch.datasets.mmc4 import Mmc4Core
from datafetch.datasets.ocr_vqa import OcrVqa
from datafetch.datasets.synthdog_ja import SynthdogJa
from datafetch.datasets.training_lists import JA_VG_VQA, LLAVA_INSTRUCT_JA, LLAVA_V15_SUBSET
from datafetch.errors import unknown_name
from datafetch.model.dataset import Dataset
from datafetch.model.options import DatasetOptions

_ALL: tuple[Dataset, ...] = (
    Coyo(),
    Mmc4Core(),
    LlmJpPairsStep0(),
    LLAVA_PRETRAIN,
    LlmJpPairsStep1(),
    LlmJpInterleaved(),
    COCO,
    GQA,
    VISUAL_GENOME,
    TEXTVQA,
    OcrVqa(),
    LLAVA_V15_SUBSET,
    LLAVA_INSTRUCT_JA,
    JAPANESE_PHOTOS,
    JA_VG_VQA,
    SynthdogJa(),
)
DATASETS = {dataset.name: dataset for dataset in _ALL}
"""All published datasets by name, with the default values of their options."""

LIST = ListDataset()
"""Any list of URLs; what names datasets for an operator doesn't name this one."""


def find_dataset(name: str, options: DatasetOptions | None = None) -> Dataset:
    """Return the dataset of a name, with its options.

    Args:
        name: Its name on the command line.
        options: Values for its options, of the dataset's own class; None keeps the defaults.

    Raises:
        ConfigurationError: No dataset has this name, or the options belong to another dataset.
    """
    dataset: Dataset | None = LIST if name == LIST.name else DATASETS.get(name)
    if dataset is None:
        raise unknown_name("dataset", name, DATASETS)
    return dataset if options is None else dataset.with_options(options)


def dataset_of_output(name: str, identity: Mapping[str, object]) -> Dataset:
    """The dataset of an output, in whose identity is what decides the output's format and loader.

    Args:
        name: Its name.
        identity: The identity of the output's job, as its file has it.

    Raises:
        ConfigurationError: No dataset has this name.
    """
    output_format = identity.get("output_format")
    if name == LIST.name and output_format in tuple(ListFormat):
        return LIST.with_options(ListOptions(format=ListFormat(str(output_format))))
    return find_dataset(name)
