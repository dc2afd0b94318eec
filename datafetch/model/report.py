"""The report of a run, as a value and as the JSON that ``--json`` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from datafetch.model.advice import FailedAlike
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.lost_documents import MAX_COUNTED_IMAGES
from datafetch.model.outcome import OK, FailureKind
from datafetch.model.sample import IdListResult


@dataclass(frozen=True, slots=True)
class ReshardedEpoch:
    """What the ranks of a training read of a resharded output in one epoch.

    Attributes:
        world_size: The number of ranks.
        samples_per_rank: The number of samples that each rank reads.
        used: The number of samples that all ranks read together.
    """

    world_size: int
    samples_per_rank: int
    used: int


@dataclass(frozen=True, slots=True)
class FailureCounts:
    """The failed images of an output, counted by reason (``Failure.reason``).

    Attributes:
        failed: All of them.
        retriable: Those that a retry without options requests again; of documents a lower bound.
    """

    failed: Mapping[str, int] = field(default_factory=dict)
    retriable: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def sum(cls, parts: Iterable[FailureCounts]) -> FailureCounts:
        """Add up the counts of several shards."""
        failed: Counter[str] = Counter()
        retriable: Counter[str] = Counter()
        for part in parts:
            failed.update(part.failed)
            retriable.update(part.retriable)
        return cls(failed, retriable)


@dataclass(frozen=True, slots=True)
class PermittedSince:
    """What a run has that the run before it had not, and the images that had failed for lack of it by then.

    That is a permission, or another way to the web: a proxy, or other name servers.

    Attributes:
        options: The options, as they are given to a command.
        images: The number of images by failure kind; none for kinds that no image has.
    """

    options: tuple[str, ...]
    images: Mapping[FailureKind, int]


@dataclass(frozen=True, slots=True)
class FetchedShards:
    """What one process did for the shards that it was given.

    Attributes:
        totals: What these shards hold now, whichever process fetched them.
        ended: Images that ended in this call, well or not.
        not_requested: Of them, those that were not requested because their document was lost.
        ended_ok: Of them, those that are there now.
        arrived: Of these, those that were fetched.
        reused: Images of the shards that were not fetched in this call; ``repeated`` ones included.
        repeated: Images that have the URL of another one that was fetched.
        fetched_bytes: Body bytes received.
        written_bytes: Size of the files that were published.
        requests: The number of attempts; one with redirects counts once.
        connections: How many requests might be open at the end.
        peak_open_requests: The largest number of requests that were open at once.
        elapsed_s: Wall-clock time.
        failed_alike: How all images that were requested have failed; None unless all did, and alike.
        ended_before: The number of images that had ended before this call, by outcome.
        networks: The networks that would have to be allowed for images that this call was refused.
    """

    totals: ShardCounts
    ended: int = 0
    ended_ok: int = 0
    not_requested: int = 0
    arrived: int = 0
    reused: int = 0
    repeated: int = 0
    fetched_bytes: int = 0
    written_bytes: int = 0
    requests: int = 0
    connections: int = 0
    elapsed_s: float = 0.0
    failed_alike: FailedAlike | None = None
    peak_open_requests: int = 0
    ended_before: Mapping[str, int] = field(default_factory=dict)
    networks: tuple[str, ...] = ()

    @classmethod
    def sum(cls, parts: Iterable[FetchedShards]) -> FetchedShards:
        """What several processes did; without how long it took, and without what they reused or found ended."""
        done = tuple(parts)
        alike = {one.failed_alike for one in done}
        return cls(
            totals=ShardCounts.sum(one.totals for one in done),
            ended=sum(one.ended for one in done),
            ended_ok=sum(one.ended_ok for one in done),
            not_requested=sum(one.not_requested for one in done),
            arrived=sum(one.arrived for one in done),
            repeated=sum(one.repeated for one in done),
            fetched_bytes=sum(one.fetched_bytes for one in done),
            written_bytes=sum(one.written_bytes for one in done),
            requests=sum(one.requests for one in done),
            connections=sum(one.connections for one in done),
            peak_open_requests=sum(one.peak_open_requests for one in done),
            failed_alike=alike.pop() if len(alike) == 1 else None,
            networks=tuple(dict.fromkeys(network for one in done for network in one.networks)),
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did, and what its output holds.

    Attributes:
        dataset: Name of the dataset.
        out: The output folder.
        totals: The counts of the output as it is now, including earlier runs.
        shards: The number of shards in the output.
        reused: Images that were not fetched in this run, ``repeated`` ones included.
        repeated: Images with the URL of another image, whose result they share.
        fetched_bytes: The size of the bodies received in this run.
        written_bytes: The size of the files written in this run.
        requests: The number of attempts of this run; one with redirects counts once.
        connections: The limit of open requests at the end of the run, set by the operator or found automatically.
        elapsed_s: Wall-clock time of this run.
        id_list_result: The result of the id list; None without one.
        retried: The number of images that were fetched again; None if the run was not a retry.
        retried_arrived: Of them, those that are there now; None if the run was not a retry.
        resharded: What the ranks read; None if the output was not resharded.
        permittable: The number of failed images that a permission might let through, by failure kind.
        has_open_retry: Whether a retry of the output was interrupted and is not complete.
        failed_alike: How all images that this run requested have failed; None unless all did, and alike.
        peak_open_requests: The largest number of requests that were open at once in this run.
        permitted_since: Images that a retry may fetch, as this run permits more than the one before, or reaches the web
            in another way; None if there are none.
        networks: The networks that would have to be allowed for images that were refused in this run.
        failures: The failed images by reason, and those that a retry requests again.
    """

    dataset: str
    out: str
    totals: ShardCounts
    shards: int
    reused: int
    repeated: int
    fetched_bytes: int
    written_bytes: int
    requests: int
    connections: int
    elapsed_s: float
    id_list_result: IdListResult | None = None
    retried: int | None = None
    retried_arrived: int | None = None
    resharded: ReshardedEpoch | None = None
    permittable: Mapping[str, int] = field(default_factory=dict)
    has_open_retry: bool = False
    failed_alike: FailedAlike | None = None
    peak_open_requests: int = 0
    permitted_since: PermittedSince | None = None
    networks: tuple[str, ...] = ()
    failures: FailureCounts = field(default_factory=FailureCounts)

    @property
    def images_per_s(self) -> float:
        """Images that arrived in this run, per second of wall-clock time."""
        return (self.totals.ok - self.reused) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def rows_by_keep_at_least(self) -> dict[int, int]:
        """How many rows there would be at least with ``--keep-at-least``, by its value, where there would be more.

        Lower bounds, because images that were not requested might have arrived.
        """
        lost = self.totals.lost
        more = {} if lost is None else {k: lost.with_images(k) for k in range(1, MAX_COUNTED_IMAGES + 1)}
        return {images: self.totals.rows + documents for images, documents in more.items() if documents}

    def summary(self) -> dict[str, object]:
        """The report as the JSON object that ``--json`` prints and ``report.json`` holds."""
        totals = self.totals
        failures = {kind: count for kind, count in sorted(totals.outcomes.items()) if kind != OK}
        summary: dict[str, object] = {
            "dataset": self.dataset,
            "out": self.out,
            "complete": True,
            "samples": {
                "total": totals.samples,
                "rows": totals.rows,
                "dropped": totals.samples - totals.rows,
            },
            "images": {
                "total": totals.images,
                "ok": totals.ok,
                "failed": totals.failed,
                "reused": self.reused,
                **({"repeated": self.repeated} if self.repeated else {}),
                "by_kind": failures,
            },
            "bytes": {"fetched": self.fetched_bytes, "written": self.written_bytes},
            "shards": self.shards,
            "elapsed_s": round(self.elapsed_s, 3),
            "images_per_s": round(self.images_per_s, 1),
            "requests": self.requests,
            "connections": self.connections,
            "peak_open_requests": self.peak_open_requests,
        }
        if totals.lost is not None:
            summary["documents"] = {
                "lost": totals.lost.count,
                "by_kind": dict(sorted(totals.lost.by_kind.items())),
                "keep_at_least": {str(images): rows for images, rows in self.rows_by_keep_at_least.items()},
            }
        if totals.notes:
            summary["notes"] = dict(sorted(totals.notes.items()))
        if self.resharded is not None:
            summary["equal"] = {
                "world_size": self.resharded.world_size,
                "samples_per_rank": self.resharded.samples_per_rank,
                "used": self.resharded.used,
            }
        if self.retried is not None:
            summary["retried"] = self.retried
            summary["retried_arrived"] = self.retried_arrived
        if self.id_list_result is not None:
            ids = self.id_list_result
            summary["ids"] = {
                "wanted": ids.wanted,
                "duplicates": ids.duplicates,
                "not_found": ids.not_found,
                **({"missing_files": ids.missing_files} if ids.missing_files else {}),
                **({"out_of_range": ids.out_of_range} if ids.out_of_range else {}),
                **({"remark": ids.remark} if ids.remark else {}),
            }
        return summary
