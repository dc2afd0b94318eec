"""Snapshots of a run, for observers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from datafetch.model.bounds import Amount, Count, ShortText
from datafetch.model.remaining import remaining_s

_MANY_PER_MOVING = 8  # waiting images for each that moves


class ReshardStage(StrEnum):
    """The stages of resharding, in order; each goes through all rows."""

    MEASURE = "measuring"
    COPY = "copying"
    CHECK = "checking"


@dataclass(frozen=True, slots=True)
class ReshardProgress:
    """The progress of resharding.

    Attributes:
        stage: The current stage.
        rows: The number of rows completed in this stage, including those of an interrupted process.
        total_rows: The number of rows in this stage.
        copied_bytes: The bytes written by this process.
    """

    stage: ReshardStage
    rows: Count
    total_rows: Count
    copied_bytes: Count = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits: images whose host is paused or has no room for their request, and those that failed and are retried.

    Attributes:
        images: How many wait.
        host: The host that most of them wait for, as its URLs name it; text from the web.
        host_images: How many wait for that one.
        reason: Why they wait for it, in words, such as "HTTP 503".
        next_attempt_s: Seconds until a request may be sent to it; None if that depends on requests that are open.
    """

    images: Count
    host: ShortText
    host_images: Count
    reason: ShortText
    next_attempt_s: Amount | None = None


@dataclass(frozen=True, slots=True)
class WorkerState:
    """How one worker process stands.

    Attributes:
        number: Its number, from 1.
        pid: The process.
        images: Images that got an outcome in it, or in a process that it replaced.
        failed: Those of them that failed.
        open_requests: The number of requests that it has open.
        kills: How often a process with its number was killed and replaced.
    """

    number: Count
    pid: Count
    images: Count
    failed: Count
    open_requests: Count
    kills: Count


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of a run.

    Attributes:
        expected_images: The approximate number of images in total; None until it can be estimated.
        ok: Images that arrived, including earlier runs.
        failed: Images that failed, including earlier runs.
        earlier: The number of ``ok`` and ``failed`` images that belong to earlier runs.
        shards: The shards of the run: those of the manifest, or those that a process was given.
        shards_published: The number of these shards that are published.
        fetched_bytes: Body bytes received in this run.
        connections: The current limit of open requests; if it is found automatically, hanging requests don't count.
        open_requests: The number of requests open now.
        elapsed_s: Seconds since the run started.
        resharding: The progress of resharding; None before that.
        waiting: What waits for hosts; None if nothing does.
        transcoding: Images that have arrived and are being transcoded, or wait for that.
        workers: The worker processes; none if the process of the run fetches the images itself.
    """

    expected_images: Count | None
    ok: Count
    failed: Count
    earlier: Count
    shards: Count
    shards_published: Count
    fetched_bytes: Count
    connections: Count
    open_requests: Count
    elapsed_s: Amount
    resharding: ReshardProgress | None = None
    waiting: Waiting | None = None
    transcoding: Count = 0
    workers: tuple[WorkerState, ...] = ()

    @property
    def is_stalled(self) -> bool:
        """Whether nothing or little moves, because nearly all images wait for the next attempt at their hosts."""
        waiting, moving = self.waiting, self.open_requests + self.transcoding
        if waiting is None:
            return False
        is_paused = waiting.next_attempt_s is not None
        return not moving or (is_paused and moving * _MANY_PER_MOVING <= waiting.images)

    @property
    def is_writing(self) -> bool:
        """Whether all images have an outcome, and shards remain to be written."""
        return self.ok + self.failed == self.expected_images and self.shards_published < self.shards

    def left_s(self, images: int, images_per_s: float) -> float | None:
        """How many seconds some images will take at a pace; None if there are none, or nothing or little is sent."""
        return None if self.is_stalled else remaining_s(images, images_per_s)
