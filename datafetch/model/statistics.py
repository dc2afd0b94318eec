"""Snapshots of a run, for those who watch it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from datafetch.model.bounds import Amount, Count


class Stage(StrEnum):
    """What is being done."""

    MEASURE = "measuring"
    COPY = "copying"
    CHECK = "checking"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is.

    Attributes:
        stage: Of three, each of which goes through all rows.
        rows: Done in this stage, by an earlier process too.
        total_rows: To do.
        copied_bytes: Written by this process.
    """

    stage: Stage
    rows: Count
    total_rows: Count
    copied_bytes: Count = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of a run.

    Attributes:
        expected_images: About how many images there will be, once that can be said.
        ok: Images that arrived, earlier runs included.
        failed: Images that did not.
        earlier: Images of ``ok`` and ``failed`` that ended in earlier runs.
        shards: Shards that the run goes through: those of the manifest, or those that a process was given.
        shards_published: Of them, those that are where the trainer reads them.
        fetched_bytes: Body bytes received in this run.
        connections: Requests that may be open now; where the number is found, those that hang come on top.
        open_requests: Requests open now.
        elapsed_s: Since the run began.
        resharding: How far the shards are made equal, once that has begun.
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
    resharding: Progress | None = None
