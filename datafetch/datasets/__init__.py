"""One small file a dataset, and their registry."""

from __future__ import annotations

from datafetch.datasets.coyo import Coyo
from datafetch.errors import ConfigurationError
from datafetch.model import Dataset

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in (Coyo(),)}


def find_dataset(name: str) -> Dataset:
    """The dataset of this name.

    Raises:
        ConfigurationError: There is none.
    """
    if name not in DATASETS:
        raise ConfigurationError(f"there is no dataset {name!r} (yet); there is: {', '.join(sorted(DATASETS))}")
    return DATASETS[name]
