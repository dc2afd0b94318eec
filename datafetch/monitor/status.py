"""The status of a run, read from its files: while it is at work, between two runs, and after the last.

Rules: a run is never disturbed: nothing is locked or written, and files may appear and vanish while they are read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from datafetch.datasets import find_dataset
from datafetch.errors import ConfigurationError
from datafetch.model.bounds import Amount
from datafetch.model.outcome import OK
from datafetch.monitor.heartbeat import ProgressSnapshot, read_snapshots
from datafetch.monitor.host_failures import FailingHost
from datafetch.monitor.output_counts import OutputCounts, count_output, list_folder
from datafetch.store.job_file import JobFile, read_job_file
from datafetch.store.layout import OutputLayout, output_of
from datafetch.store.state_file import read_if_sound

_MAX_HOSTS = 20


class RunState(StrEnum):
    """What a run is doing."""

    RUNNING = "running"
    """A process is at work."""
    INTERRUPTED = "interrupted"
    """No process is at work, and something is left to do."""
    COMPLETE = "complete"
    """Nothing is left to do."""


@dataclass(frozen=True, slots=True)
class Status:
    """The status of a run.

    Attributes:
        dataset: The dataset's name.
        out: The output folder.
        state: What the run is doing.
        shards: The number of shards of the manifest.
        shards_published: The number of these shards that are where the trainer reads them.
        shards_open: The number of these shards that are in progress, which means that they have a spool.
        samples: The number of samples that ended, including those of open shards.
        rows: The number of rows of published shards.
        dropped: The number of samples of published shards that became no row.
        outcomes: The number of images that ended, by outcome.
        expected_images: The approximate number of images in total; None while it is unknown.
        hosts: The hosts with the most failures, most first.
        is_pruned: Whether there were too many hosts to count them all; their failures are then lower bounds.
        published_bytes: The size of the output's files.
        spooled_bytes: The size of the spools of open shards.
        fetched_bytes: The size of the bodies of all images that ended.
        images_per_s: The current rate of all processes at work together; if there are none, the rate of the last run.
        elapsed_s: How long this run has taken so far, or took; of several processes, the one that started first.
        at_work: The last heartbeat of each process at work: of the run, or of processes that each fetch some shards.
        has_open_retry: Whether a retry is at work, or was interrupted.
    """

    dataset: str
    out: Path
    state: RunState
    shards: int
    shards_published: int
    shards_open: int
    samples: int
    rows: int
    dropped: int
    outcomes: dict[str, int]
    expected_images: int | None
    hosts: tuple[FailingHost, ...]
    is_pruned: bool
    published_bytes: int
    spooled_bytes: int
    fetched_bytes: int
    images_per_s: float | None
    elapsed_s: float | None
    at_work: tuple[ProgressSnapshot, ...]
    has_open_retry: bool = False

    @property
    def ended(self) -> int:
        """The number of images that ended, whether they arrived or failed."""
        return sum(self.outcomes.values())

    @property
    def ok(self) -> int:
        """The number of images that arrived."""
        return self.outcomes.get(OK, 0)

    @property
    def failed(self) -> int:
        """The number of images that failed."""
        return self.ended - self.ok

    @property
    def open_images(self) -> int | None:
        """The number of images that have not ended; None while the total is unknown."""
        return None if self.expected_images is None else self.expected_images - self.ended

    @property
    def by_kind(self) -> dict[str, int]:
        """The number of failed images by kind, most first."""
        failures = ((kind, count) for kind, count in self.outcomes.items() if kind != OK)
        return dict(sorted(failures, key=lambda pair: (-pair[1], pair[0])))

    def summary(self) -> dict[str, object]:
        """Return the status as the JSON object that ``--json`` prints."""
        return {
            "dataset": self.dataset,
            "out": os.fsencode(self.out).decode(errors="replace"),
            "state": self.state,
            **({"retry": True} if self.has_open_retry else {}),
            "shards": {"total": self.shards, "published": self.shards_published, "open": self.shards_open},
            "samples": {"rows": self.rows, "dropped": self.dropped, "ended": self.samples},
            "images": {
                "expected": self.expected_images,
                "done": self.ended,
                "ok": self.ok,
                "failed": self.failed,
                "open": self.open_images,
                "by_kind": dict(sorted(self.by_kind.items())),
            },
            "hosts": [{"host": host.host, "failed": host.failed, "by_kind": host.by_kind} for host in self.hosts],
            "bytes": {
                "published": self.published_bytes,
                "spooled": self.spooled_bytes,
                "fetched": self.fetched_bytes,
            },
            "images_per_s": None if self.images_per_s is None else round(self.images_per_s, 1),
            "elapsed_s": None if self.elapsed_s is None else round(self.elapsed_s, 3),
        }


def read_status(out: Path | str) -> Status:
    """Read the status of the run that writes to a folder.

    Args:
        out: The output folder, or its state folder.

    Raises:
        ConfigurationError: There is no run, or the file in place of its job or of a ledger is something else.
    """
    layout = OutputLayout(output_of(Path(out)))
    job = _read_job(layout)
    layout = replace(layout, output_format=find_dataset(job.dataset).output_format)
    snapshots = read_snapshots(layout)
    at_work = tuple(one for one in snapshots if one.is_at_work())
    spools = {Path(one.spools) for one in snapshots}
    spool_folders = set(filter(Path.exists, spools)) or list_folder(layout.all_spools)  # unless the output was moved
    counts = count_output(layout, job.shards, spool_folders)
    has_open_retry = layout.retry.exists()
    if at_work:
        state = RunState.RUNNING
    elif layout.report.exists() and not has_open_retry and _has_all_shards(job, counts):
        state = RunState.COMPLETE
    else:  # without a report the last step is missing: resharding, for example
        state = RunState.INTERRUPTED
    images = counts.outcomes.total()
    pace = _pace(layout, at_work, snapshots)
    return Status(
        dataset=job.dataset,
        out=layout.out,
        state=state,
        shards=len(job.shards),
        shards_published=counts.shards_published,
        shards_open=counts.shards_open,
        samples=counts.samples,
        rows=counts.rows,
        dropped=counts.dropped,
        outcomes=dict(counts.outcomes),
        expected_images=(
            images if state is RunState.COMPLETE else _expected_images(layout, len(job.shards), images, snapshots)
        ),
        hosts=counts.hosts.top(_MAX_HOSTS),
        is_pruned=counts.hosts.is_pruned,
        published_bytes=_published_bytes(layout, counts),
        spooled_bytes=counts.spooled_bytes,
        fetched_bytes=counts.fetched_bytes,
        images_per_s=pace.images_per_s if pace else None,
        elapsed_s=pace.elapsed_s if pace else None,
        at_work=at_work,
        has_open_retry=has_open_retry,
    )


def _read_job(layout: OutputLayout) -> JobFile:
    job = read_job_file(layout)
    if job is None:
        raise ConfigurationError(
            f"there is no run in {layout.out}: {layout.job} is missing; give the folder that a run writes to"
        )
    return job


def _has_all_shards(job: JobFile, counts: OutputCounts) -> bool:
    """Whether all shards are published, or as many samples as the job's limit allows."""
    samples = counts.rows + counts.dropped
    return counts.shards_published == len(job.shards) or (job.limit is not None and samples >= job.limit)


def _expected_images(
    layout: OutputLayout, shards: int, ended: int, snapshots: Sequence[ProgressSnapshot]
) -> int | None:
    """The expected number of images, which was an estimate while shards had not been counted, and may be too low.

    Processes that fetch some shards each expect the images of these alone, so the sum is known once they have all.
    """
    expected = [one.statistics.expected_images for one in snapshots if one.statistics.expected_images is not None]
    if not expected or len(expected) < len(snapshots):
        return None
    if layout.shard_progress_folder.exists() and sum(one.statistics.shards for one in snapshots) != shards:
        return None
    return max(ended, sum(expected))


@dataclass(frozen=True, slots=True)
class _Pace:
    images_per_s: Amount
    elapsed_s: Amount


def _pace(
    layout: OutputLayout, at_work: Sequence[ProgressSnapshot], snapshots: Sequence[ProgressSnapshot]
) -> _Pace | None:
    """The pace of the run at work; without one, the pace in the last report, or else in the last heartbeats."""
    if not at_work:
        reported = read_if_sound(layout.report, _Pace)
        if reported is not None:
            return reported
    latest = at_work or snapshots
    if not latest:
        return None
    return _Pace(sum(one.images_per_s for one in latest), max(one.statistics.elapsed_s for one in latest))


def _published_bytes(layout: OutputLayout, counts: OutputCounts) -> int:
    """The size of the output; that of image files is taken from the ledgers, as there may be half a million."""
    if layout.image_index_folder.exists():
        return counts.written_bytes
    return sum(_size_bytes(path) for path in list_folder(layout.out))


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
