"""What is there of the recipe's datasets, read from their state folders.

Rules: nothing is locked or written. A dataset that is complete is counted by its report, which costs hardly anything;
only one that is not has its ledgers read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

from datafetch.datasets import DATASETS
from datafetch.datasets.recipes import RECIPE, RecipePart
from datafetch.model.bounds import Count
from datafetch.monitor.resharding import read_resharding
from datafetch.monitor.status import read_status
from datafetch.store.job_file import read_job_file
from datafetch.store.layout import OutputLayout
from datafetch.store.state_file import read_if_sound


class DatasetState(StrEnum):
    """How much of a dataset is there."""

    MISSING = "missing"
    """No run has begun."""
    PARTIAL = "partial"
    """A run has begun and is not complete; the same command resumes it."""
    COMPLETE = "complete"
    """A run is complete, although not every image may have arrived."""


@dataclass(frozen=True, slots=True)
class DatasetStatus:
    """What is there of a dataset.

    Attributes:
        part: The dataset as the recipe uses it.
        path: Where the trainer expects it, below its data root.
        state: How much of it is there.
        present: The number of images that are there.
        rows: The number of rows of a complete run; None if there is none.
        limit: The limit of that run; None for all samples.
        ids: The id list of that run, as its job names it; None if it had none, or that is not known.
    """

    part: RecipePart
    path: str
    state: DatasetState
    present: int
    rows: int | None = None
    limit: int | None = None
    ids: str | None = None

    def summary(self) -> dict[str, object]:
        """The status as the JSON object that ``--json`` prints."""
        return {
            "name": self.part.name,
            "step": self.part.step,
            "images": self.part.images,
            "source": self.part.published,
            "path": self.path,
            "gate": self.part.gate,
            "state": self.state,
            "present": self.present,
            "rows": self.rows,
            "limit": self.limit,
            "ids": self.ids,
        }


class _Images(msgspec.Struct, frozen=True):
    ok: Count


class _Samples(msgspec.Struct, frozen=True):
    rows: Count


class _Report(msgspec.Struct, frozen=True):
    images: _Images
    samples: _Samples


def read_recipe_status(root: Path) -> list[DatasetStatus]:
    """Read what is there of all datasets of the recipe.

    Args:
        root: The trainer's data root.

    Raises:
        ConfigurationError: The file in place of a job or of a ledger is something else.
    """
    return [_read(part, root) for part in RECIPE]


def _read(part: RecipePart, root: Path) -> DatasetStatus:
    path = DATASETS[part.name].path
    layout = OutputLayout(root / path)
    report, job = read_if_sound(layout.report, _Report), read_job_file(layout)
    if job is None:
        is_set_aside = layout.previous.is_dir()
        return DatasetStatus(part, path, DatasetState.PARTIAL if is_set_aside else DatasetState.MISSING, 0)
    if report is not None and not read_resharding(layout).is_damaged:
        images, rows = report.images.ok, report.samples.rows
        return DatasetStatus(part, path, DatasetState.COMPLETE, images, rows, job.limit, job.ids)
    return DatasetStatus(part, path, DatasetState.PARTIAL, read_status(layout.out).ok)
