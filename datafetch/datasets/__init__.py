"""The datasets that datafetch can prepare: a module for each, and their registry."""

from datafetch.datasets.registry import DATASETS, find_dataset

__all__ = ["DATASETS", "find_dataset"]
