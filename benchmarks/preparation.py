"""The command under test: ``datafetch prepare``, from a loopback origin, into a folder that is deleted again."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from benchmarks.meter import Role, Usage, watch
from datafetch.demo.manifest import CoyoSource

IMAGES_PER_DOCUMENT = 5
_TEXTS = ["When you lock the door with the power door lock master switch, all the other doors lock."] * 12


@dataclass(frozen=True, slots=True)
class Preparation:
    """One run of the command.

    Attributes:
        summary: The JSON object that it printed.
        usage: What it cost.
    """

    summary: Mapping[str, Any]
    usage: Usage

    @property
    def images(self) -> int:
        """The number of images that ended, successfully or not."""
        return int(self.summary["images"]["total"])

    @property
    def images_per_s(self) -> float:
        """The speed by the command's own clock, which starts when it is loaded and stops when all is published."""
        return self.images / float(self.summary["elapsed_s"])

    def outcomes(self) -> dict[str, int]:
        """Images by outcome."""
        images = self.summary["images"]
        return {"ok": int(images["ok"]), **images["by_kind"]}

    def cpu_ms_per_image(self) -> dict[str, float]:
        """CPU milliseconds an image by role, as details of a run."""
        roles = (Role.ORIGIN, Role.PARENT, Role.CODEC, Role.COMMIT)
        return {f"{role}_cpu_ms": self.usage.cpu_s[role] / self.images * 1000 for role in roles}


@dataclass(frozen=True, slots=True)
class LinesSource:
    """A folder of JSON lines, and the dataset whose form they have."""

    dataset: str
    folder: Path


def write_documents(path: Path, urls: Iterable[str]) -> None:
    """Write a file of documents in the form of ``mmc4-core``, with five of the images each, in the order of the URLs.

    Args:
        path: Its name must be as the dataset has it, such as ``docs_shard_0_v3.jsonl``; its folder must exist.
        urls: The URLs of the images; read as they are needed.
    """
    matrix = [[0.2 + image / 100] * len(_TEXTS) for image in range(IMAGES_PER_DOCUMENT)]
    remaining = iter(urls)
    with path.open("wb") as file:
        for number, of_document in enumerate(iter(lambda: list(islice(remaining, IMAGES_PER_DOCUMENT)), [])):
            info = [
                {"raw_url": url, "matched_text_index": image, "matched_sim": 0.3}
                for image, url in enumerate(of_document)
            ]
            record = {
                "url": f"http://e.org/{number}",
                "image_info": info,
                "similarity_matrix": matrix[: len(info)],
                "text_list": _TEXTS,
            }
            file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


def prepare(source: CoyoSource | LinesSource, root: Path, *options: str, interval_s: float = 0.1) -> Preparation:
    """Run the command and delete what it wrote.

    Args:
        source: What to fetch.
        root: Where to; must not exist.
        options: Further options of the command.
        interval_s: Time between two readings of the meter.

    Raises:
        subprocess.CalledProcessError: The command failed.
    """
    try:
        usage = watch(command(source, root, *options), interval_s=interval_s)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return Preparation(orjson.loads(usage.stdout), usage)


def command(source: CoyoSource | LinesSource, root: Path, *options: str, python: Sequence[str] = ()) -> list[str]:
    """The command line, which leaves the shards as the manifest has them.

    Args:
        source: What to fetch.
        root: Where to.
        options: Further options of the command.
        python: Options of the interpreter, such as ``-m cProfile``.
    """
    return whole_command(source, root, "--no-reshard", *options, python=python)


def whole_command(source: CoyoSource | LinesSource, root: Path, *options: str, python: Sequence[str] = ()) -> list[str]:
    """The command line that also makes equal shards, with the parameters of ``command``."""
    dataset = source.dataset if isinstance(source, LinesSource) else "coyo"
    ids = () if isinstance(source, LinesSource) else ("--ids", str(source.ids))
    return [
        *(sys.executable, *python, "-m", "datafetch", "prepare", dataset),
        *("--source", str(source.folder), *ids, "--root", str(root)),
        *("--allow-net", "127.0.0.0/8", "--json", *options),
    ]
