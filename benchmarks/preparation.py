"""The command under test: ``datafetch prepare``, from a loopback origin, into a folder that is deleted again."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks.meter import Role, Usage, watch
from datafetch.demo.manifest import CoyoSource


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
    """The command line.

    Args:
        source: What to fetch.
        root: Where to.
        options: Further options of the command.
        python: Options of the interpreter, such as ``-m cProfile``.
    """
    dataset = source.dataset if isinstance(source, LinesSource) else "coyo"
    ids = () if isinstance(source, LinesSource) else ("--ids", str(source.ids))
    return [
        *(sys.executable, *python, "-m", "datafetch", "prepare", dataset),
        *("--source", str(source.folder), *ids, "--root", str(root)),
        *("--allow-net", "127.0.0.0/8", "--no-reshard", "--json", *options),
    ]
