"""One small file a dataset, and their registry."""

from datafetch.datasets.registry import DATASETS, find_dataset

__all__ = ["DATASETS", "find_dataset"]
