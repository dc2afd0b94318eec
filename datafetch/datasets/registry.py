"""The datasets that there are: a line each."""

from __future__ import annotations

from datafetch.datasets.coyo import Coyo
from datafetch.datasets.llm_jp_interleaved import LlmJpInterleaved
from datafetch.datasets.llm_jp_pairs_step0 import LlmJpPairsStep0
from datafetch.datasets.llm_jp_pairs_step1 import LlmJpPairsStep1
from datafetch.datasets.mmc4 import Mmc4Core
from datafetch.datasets.ocr_vqa import OcrVqa
from datafetch.errors import ConfigurationError, unknown_name
from datafetch.model.interfaces import Dataset
from datafetch.model.options import DatasetOptions

_ALL: tuple[Dataset, ...] = (
    Coyo(),
    Mmc4Core(),
    LlmJpPairsStep0(),
    LlmJpPairsStep1(),
    LlmJpInterleaved(),
    OcrVqa(),
)
DATASETS = {dataset.name: dataset for dataset in _ALL}
"""By name, each without options."""


def find_dataset(name: str, options: DatasetOptions | None = None, *, has_ids: bool = False) -> Dataset:
    """The dataset of this name, with its options.

    Args:
        name: As on the command line.
        options: Of the dataset's own class; None sets none.
        has_ids: Whether there is an id list.

    Raises:
        ConfigurationError: There is none of this name, the options are another dataset's, or it takes no id list.
    """
    dataset = DATASETS.get(name)
    if dataset is None:
        raise unknown_name("dataset", name, DATASETS)
    if has_ids and dataset.id_list is None:
        raise ConfigurationError(f"{name} does not take --ids")
    return dataset if options is None else dataset.with_options(options)
