"""Read a shard with the library that its format is meant for, in a process of its own, and print what it makes of it.

``python read_by_ecosystem.py READER FOLDER SHARD`` prints a JSON list with an object for each sample. Images are given
as format, width and height. A process of its own, because these libraries warn, and change global state.
"""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

from PIL import Image

_Sample = TypeVar("_Sample")


def _described(value: object) -> Any:
    if isinstance(value, Image.Image):
        return [value.format, *value.size]
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [_described(element) for element in value]
    return value


def read_webdataset(folder: Path, shard: str) -> Iterator[Mapping[str, Any]]:
    """Read the tar with ``webdataset``, which decodes images and JSON."""
    import webdataset  # noqa: PLC0415

    yield from webdataset.WebDataset(str(folder / f"{shard}.tar"), shardshuffle=False, empty_check=False).decode("pil")


def read_wids(folder: Path, shard: str) -> Iterator[Mapping[str, Any]]:
    """Read the tar with ``wids``, by the number of a sample, the last one first."""
    if find_spec("torch") is None:
        _stand_in_for_torch()
    import wids  # noqa: PLC0415

    shards = [{"url": str(folder / f"{shard}.tar"), "nsamples": _samples_in_tar(folder, shard)}]
    with TemporaryDirectory() as cache:
        dataset = wids.ShardListDataset(shards, cache_dir=cache, keep=True)
        yield from reversed([dataset[number] for number in reversed(range(len(dataset)))])


def _stand_in_for_torch() -> None:
    """Let ``wids`` be imported without torch, of which it takes two base classes, and the number of processes."""
    modules = [types.ModuleType(name) for name in ("torch", "torch.distributed", "torch.utils", "torch.utils.data")]
    sys.modules |= {module.__name__: module for module in modules}
    vars(modules[0])["distributed"] = modules[1]
    vars(modules[3]).update(Dataset=_Base, Sampler=_Base)


class _Base(Generic[_Sample]):
    pass


def _samples_in_tar(folder: Path, shard: str) -> int:
    import pyarrow.parquet as pq  # noqa: PLC0415

    statuses = pq.read_table(folder / f"{shard}.parquet", columns=["status"])["status"].to_pylist()
    return sum("success" in status for status in statuses)


def _load_dataset(builder: str, **data: str) -> Iterator[Mapping[str, Any]]:
    with TemporaryDirectory() as cache:
        os.environ |= {"HF_HOME": cache, "HF_HUB_OFFLINE": "1"}
        import datasets  # noqa: PLC0415

        datasets.disable_progress_bars()
        yield from datasets.load_dataset(builder, **data, split="train")


def read_datasets(folder: Path, shard: str) -> Iterator[Mapping[str, Any]]:
    """Read the parquet with ``datasets``, which decodes what the schema says is an image."""
    yield from _load_dataset("parquet", data_files=str(folder / f"{shard}.parquet"))


def read_datasets_of_tars(folder: Path, shard: str) -> Iterator[Mapping[str, Any]]:
    """Read the tar with ``datasets``."""
    yield from _load_dataset("webdataset", data_files=str(folder / f"{shard}.tar"))


def read_image_folder(folder: Path, shard: str) -> Iterator[Mapping[str, Any]]:
    """Read the images of a folder with ``datasets``."""
    yield from _load_dataset("imagefolder", data_dir=str(folder / shard))


def read_arrow(folder: Path, shard: str) -> Iterator[Mapping[str, Any]]:
    """Read the folder's parquet files with ``pyarrow.dataset``, and only rows whose image arrived."""
    import pyarrow.compute as pc  # noqa: PLC0415
    import pyarrow.dataset  # noqa: PLC0415

    dataset = pyarrow.dataset.dataset(sorted(folder.glob(f"{shard[:-1]}*.parquet")))
    for row in dataset.to_table(filter=pc.field("status") == "success").to_pylist():
        yield {name: value["path"] if name == "image" else value for name, value in row.items()}


_READERS: Mapping[str, Callable[[Path, str], Iterator[Mapping[str, Any]]]] = {
    "webdataset": read_webdataset,
    "wids": read_wids,
    "datasets": read_datasets,
    "datasets of tars": read_datasets_of_tars,
    "image folder": read_image_folder,
    "pyarrow.dataset": read_arrow,
}


def main() -> None:
    """Print what a reader makes of a shard."""
    _, reader, folder, shard = sys.argv
    samples = [
        {name: _described(value) for name, value in sample.items()} for sample in _READERS[reader](Path(folder), shard)
    ]
    json.dump(samples, sys.stdout)


if __name__ == "__main__":
    main()
