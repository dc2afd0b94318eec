"""The status of a run, read from its files: while it is at work, between two runs, and after the last.

Rules: a run is never disturbed: nothing is locked or written, and files may appear and vanish while they are read.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from datafetch.errors import ConfigurationError
from datafetch.model.bounds import Amount
from datafetch.model.outcome import OK
from datafetch.model.remaining import remaining_s
from datafetch.model.report import ReshardedEpoch
from datafetch.model.statistics import Waiting, WorkerState
from datafetch.monitor.at_work import find_holder, is_held
from datafetch.monitor.cluster_snapshot import ClusterSnapshot, NodeSnapshot, read_cluster
from datafetch.monitor.heartbeat import ProgressSnapshot
from datafetch.monitor.host_failures import FailingHost
from datafetch.monitor.observed_output import observe_output
from datafetch.monitor.output_counts import OutputCounts, count_output, list_folder
from datafetch.monitor.outputs_below import OutputsBelow
from datafetch.monitor.resharding import read_resharding
from datafetch.store.buckets.view import observed_place
from datafetch.store.job_file import JobFile
from datafetch.store.last_stop import LastStop, read_last_stop
from datafetch.store.layout import OutputLayout
from datafetch.store.lock_holder import LockHolder
from datafetch.store.state_file import read_if_sound

_MAX_HOSTS = 20


class RunState(StrEnum):
    """What a run is doing."""

    STARTING = "starting"
    """A process of this machine holds the lock, and has not written a heartbeat yet."""
    RUNNING = "running"
    """A process is at work."""
    UNRESPONSIVE = "unresponsive"
    """A process of this machine holds the lock, but its last heartbeat is too old."""
    INTERRUPTED = "interrupted"
    """No process is at work, and something is left to do."""
    COMPLETE = "complete"
    """Nothing is left to do."""


@dataclass(frozen=True, slots=True)
class Status:
    """The status of a run.

    Attributes:
        dataset: The dataset's name.
        out: The output folder, or the output's place in a bucket.
        state: What the run is doing.
        shards: The number of shards of the manifest.
        shards_published: The number of these shards that are where the trainer reads them.
        shards_open: The number of these shards that are in progress, which means that they have a spool.
        samples: The number of samples that ended, including those of open shards.
        rows: The number of rows of published shards.
        dropped: The number of samples of published shards that became no row.
        outcomes: The number of images that ended, by outcome.
        by_status: The number of those that failed for their HTTP status, by status, most first.
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
        waiting: What the processes at work wait for; None if nothing waits for a host.
        equal: What each rank reads; None if the output is not resharded.
        missing_shards: The shards of a resharded output that are missing or have changed, so that it is not complete.
        damaged_ledgers: The shards whose ledger is damaged, so that nothing of them is counted.
        problem: What else keeps an output from being complete although nothing is left to fetch; mostly empty.
        last_stop: Why the last run or retry stopped; None if it was killed or interrupted, or has nothing left to do.
        nodes: The nodes of a cluster that work on the output, or did when the run that steers them was interrupted.
        holder: Who holds the lock; None if nobody does, as far as is known here. One on another machine may have ended.
    """

    dataset: str
    out: Path | str
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
    waiting: Waiting | None = None
    by_status: Mapping[int, int] = field(default_factory=dict)
    equal: ReshardedEpoch | None = None
    missing_shards: tuple[str, ...] = ()
    damaged_ledgers: tuple[str, ...] = ()
    problem: str = ""
    holder: LockHolder | None = None
    last_stop: LastStop | None = None
    nodes: tuple[NodeSnapshot, ...] = ()

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
    def left_s(self) -> float | None:
        """How many seconds the rest will take at the current rate; None if that is unknown, or nothing is sent."""
        is_stalled = all(one.statistics.is_stalled for one in self.at_work)
        if is_stalled or self.open_images is None or self.images_per_s is None:
            return None
        return remaining_s(self.open_images, self.images_per_s)

    @property
    def by_kind(self) -> dict[str, int]:
        """The number of failed images by kind, most first."""
        failures = ((kind, count) for kind, count in self.outcomes.items() if kind != OK)
        return dict(sorted(failures, key=lambda pair: (-pair[1], pair[0])))

    @property
    def workers(self) -> list[WorkerState]:
        """The worker processes of all processes at work."""
        return [worker for one in self.at_work for worker in one.statistics.workers]

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
                **(
                    {"by_status": {str(code): self.by_status[code] for code in self.by_status}}
                    if self.by_status
                    else {}
                ),
            },
            **({} if self.equal is None else {"equal": asdict(self.equal)}),
            **({"missing_shards": list(self.missing_shards)} if self.missing_shards else {}),
            **({"damaged_ledgers": list(self.damaged_ledgers)} if self.damaged_ledgers else {}),
            **({"problem": self.problem} if self.problem else {}),
            **({} if self.holder is None else {"lock": self._lock_fields(self.holder)}),
            **({} if self.last_stop is None else {"stopped": asdict(self.last_stop)}),
            **({"workers": [asdict(worker) for worker in self.workers]} if self.workers else {}),
            **({"nodes": [asdict(node) for node in self.nodes]} if self.nodes else {}),
            "hosts": [{"host": host.host, "failed": host.failed, "by_kind": host.by_kind} for host in self.hosts],
            **({"hosts_are_lower_bounds": True} if self.is_pruned else {}),
            "bytes": {
                "published": self.published_bytes,
                "spooled": self.spooled_bytes,
                "fetched": self.fetched_bytes,
            },
            "images_per_s": None if self.images_per_s is None else round(self.images_per_s, 1),
            "elapsed_s": None if self.elapsed_s is None else round(self.elapsed_s, 3),
            "left_s": None if self.left_s is None else round(self.left_s, 1),
            "waiting": None if self.waiting is None else asdict(self.waiting),
        }

    def _lock_fields(self, holder: LockHolder) -> dict[str, object]:
        return {"pid": holder.pid, "host": holder.host, "since_unix_s": round(holder.since_unix_s, 3)}


def read_status(out: Path | str) -> Status:
    """Read the status of the run that writes to a folder.

    Args:
        out: The output folder, its state folder, or its place in a bucket.

    Raises:
        ConfigurationError: There is no run, or the file in place of its job is something else.
        ResourceError: The bucket can't be reached.
        TypeError: It is no path.
    """
    with observed_place(out) as place:
        found = _read_status(place.out)
    return found if place.view is None else replace(found, out=place.location)


def _read_status(out: Path) -> Status:
    output = observe_output(out)
    layout, job, snapshots = output.layout, output.job, output.snapshots
    at_work = tuple(one for one in snapshots if one.is_at_work())
    cluster = read_cluster(layout)
    counts = count_output(layout, job.shards, output.spool_folders)
    has_open_retry = layout.retry.exists()
    resharded = read_resharding(layout)
    holder = find_holder(layout)
    if at_work:
        state = RunState.RUNNING
    elif (
        layout.report.exists()
        and not (has_open_retry or counts.damaged_ledgers)
        and _has_all_shards(job, counts)
        and not resharded.is_damaged
    ):
        state = RunState.COMPLETE
    elif holder is not None and is_held(holder, snapshots):
        is_silent = any(one.pid == holder.pid and one.started_unix_s >= holder.since_unix_s for one in snapshots)
        state = RunState.UNRESPONSIVE if is_silent else RunState.STARTING
    else:  # without a report the last step is missing: resharding, for example
        state = RunState.INTERRUPTED
    images = counts.outcomes.total()
    timing = _timing(layout, at_work, snapshots)
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
            images
            if state is RunState.COMPLETE
            else _expected_images(layout, len(job.shards), images, snapshots, cluster)
        ),
        hosts=counts.hosts.top(_MAX_HOSTS),
        is_pruned=counts.hosts.is_pruned,
        published_bytes=_published_bytes(layout, counts),
        spooled_bytes=counts.spooled_bytes,
        fetched_bytes=counts.fetched_bytes,
        images_per_s=timing.images_per_s if timing else None,
        elapsed_s=timing.elapsed_s if timing else None,
        at_work=at_work,
        has_open_retry=has_open_retry,
        waiting=_waiting(at_work),
        by_status=dict(sorted(counts.statuses.items(), key=lambda pair: (-pair[1], pair[0]))),
        equal=resharded.epoch,
        missing_shards=resharded.missing_shards,
        damaged_ledgers=tuple(counts.damaged_ledgers),
        problem=resharded.problem,
        holder=holder,
        last_stop=read_last_stop(layout) if state is RunState.INTERRUPTED else None,
        nodes=() if cluster is None or state is RunState.COMPLETE else cluster.nodes_now(),
    )


def _waiting(at_work: Sequence[ProgressSnapshot]) -> Waiting | None:
    """What all processes together wait for, as of now; of several hosts, the one that most images wait for."""
    now_unix_s = time.time()
    found = [(one.statistics.waiting, one.updated_unix_s) for one in at_work if one.statistics.waiting is not None]
    if not found:
        return None
    by_host: Counter[str] = Counter()
    for waiting, _ in found:
        by_host[waiting.host] += waiting.host_images
    ((host, host_images),) = by_host.most_common(1)
    most, updated_unix_s = next(pair for pair in found if pair[0].host == host)
    next_s = most.next_attempt_s
    return replace(
        most,
        images=sum(waiting.images for waiting, _ in found),
        host_images=host_images,
        next_attempt_s=None if next_s is None else max(0.0, next_s - max(0.0, now_unix_s - updated_unix_s)),
    )


@dataclass(frozen=True, slots=True)
class StatusBelow:
    """The status of one of several outputs.

    Attributes:
        out: The output folder.
        status: Its status; None if it can't be read.
        problem: Why it can't be read.
    """

    out: Path
    status: Status | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class StatusesBelow:
    """The statuses of the outputs below a folder.

    Attributes:
        outputs: A status for each, one at a time, as reading one may take a while.
        is_complete: Whether there may be no others, within the depth that was searched.
    """

    outputs: Iterator[StatusBelow]
    is_complete: bool


def read_statuses(below: OutputsBelow) -> StatusesBelow:
    """Read the statuses of several outputs; what is wrong with one does not keep the others from being read."""
    return StatusesBelow(map(_read_status_below, below.outputs), below.is_complete)


def _read_status_below(out: Path) -> StatusBelow:
    try:
        return StatusBelow(out, read_status(out))
    except ConfigurationError as error:
        return StatusBelow(out, None, str(error))


def _has_all_shards(job: JobFile, counts: OutputCounts) -> bool:
    """Whether all shards are published, or as many samples as the job's limit allows."""
    samples = counts.rows + counts.dropped
    return counts.shards_published == len(job.shards) or (job.limit is not None and samples >= job.limit)


def _expected_images(
    layout: OutputLayout,
    shards: int,
    ended: int,
    snapshots: Sequence[ProgressSnapshot],
    cluster: ClusterSnapshot | None,
) -> int | None:
    """The expected number of images, which was an estimate while shards had not been counted, and may be too low.

    Nodes of a cluster are given shards as they go, so there the run that steers them knows it. Other processes that
    fetch some shards each expect the images of these alone, so the sum is known once they have all.
    """
    if cluster is not None:
        return None if cluster.expected_images is None else max(ended, cluster.expected_images)
    expected = [one.statistics.expected_images for one in snapshots if one.statistics.expected_images is not None]
    if not expected or len(expected) < len(snapshots):
        return None
    if layout.shard_progress_folder.exists() and sum(one.statistics.shards for one in snapshots) != shards:
        return None
    return max(ended, sum(expected))


@dataclass(frozen=True, slots=True)
class _Timing:
    images_per_s: Amount
    elapsed_s: Amount


def _timing(
    layout: OutputLayout, at_work: Sequence[ProgressSnapshot], snapshots: Sequence[ProgressSnapshot]
) -> _Timing | None:
    """The pace of the run at work; without one, the pace in the last report, or else in the last heartbeats."""
    if not at_work:
        reported = read_if_sound(layout.report, _Timing)
        if reported is not None:
            return reported
    latest = at_work or snapshots
    if not latest:
        return None
    return _Timing(sum(one.images_per_s for one in latest), max(one.statistics.elapsed_s for one in latest))


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
