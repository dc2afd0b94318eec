"""One small file a dataset, and their registry."""

from __future__ import annotations

from dataclasses import replace

from datafetch.datasets.choices import Choices, option_name
from datafetch.datasets.coyo import Coyo
from datafetch.datasets.llm_jp_interleaved import LlmJpInterleaved
from datafetch.datasets.llm_jp_pairs_step0 import LlmJpPairsStep0
from datafetch.datasets.llm_jp_pairs_step1 import LlmJpPairsStep1
from datafetch.datasets.mmc4 import Mmc4Core
from datafetch.datasets.ocr_vqa import OcrVqa
from datafetch.errors import ConfigurationError
from datafetch.model.interfaces import Dataset

_ALL = (Coyo(), Mmc4Core(), LlmJpPairsStep0(), LlmJpPairsStep1(), LlmJpInterleaved(), OcrVqa())
DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _ALL}


def find_dataset(name: str, choices: Choices | None = None, *, has_ids: bool = False) -> Dataset:
    """The dataset of this name, with what was chosen of it.

    Args:
        name: As on the command line.
        choices: What was chosen.
        has_ids: Whether there is an id list.

    Raises:
        ConfigurationError: There is none, or nothing of the kind can be chosen of it.
    """
    dataset = next((dataset for dataset in _ALL if dataset.name == name), None)
    if dataset is None:
        raise ConfigurationError(f"there is no dataset {name!r} (yet); there is: {', '.join(sorted(DATASETS))}")
    said = [*(choices.said() if choices else ()), *(["ids"] if has_ids else [])]
    if strange := [option_name(choice) for choice in said if choice not in dataset.supported_options]:
        known = ", ".join(map(option_name, sorted(dataset.supported_options))) or "none of these options"
        raise ConfigurationError(f"{name} does not take {', '.join(strange)}; it takes {known}")
    if choices is None:
        return dataset
    return replace(dataset, choices=choices)
