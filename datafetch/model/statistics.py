"""Snapshots of a run, for observers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from datafetch.model.bounds import Amount, Count


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
