"""The datasets that datafetch can prepare: a module for each, and their registry."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datafetch.datasets.registry import DATASETS, LIST, dataset_of_output, find_dataset

__all__ = ["DATASETS", "LIST", "dataset_of_output", "find_dataset"]


# Lazy, so that the process that asks the hub, which imports one submodule, loads neither all datasets nor Arrow.
def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'datafetch.datasets' has no attribute {name!r}")
    return getattr(import_module("datafetch.datasets.registry"), name)
