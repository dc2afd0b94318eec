"""A node of the cluster, as the driver knows it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from datafetch.engine.cluster.interface import ClusterNode
from datafetch.engine.cluster.limits import NodeLimits
from datafetch.engine.cluster.messages import NodeReport
from datafetch.monitor.cluster_snapshot import NodeSnapshot, NodeState
from datafetch.monitor.throughput import Throughput


@dataclass(slots=True, eq=False)
class Member:
    """A node of the cluster.

    Attributes:
        node: Which one.
        state: What it is doing.
        reason: Why, in words.
        limits: Its part of the limits; None while it has none.
        confirmed: The limits that it keeps.
        report: Its latest report.
        published: The number of shards that it has published.
        failures: How often it was given up since it last published a shard.
        given: The sizes of the shards that it was given since it started.
        is_at_work: Whether a process runs on it that has answered.
        is_over: Whether it is never tried again.
        is_sick: Whether another node has reached what it did not reach.
        is_asked_about: Whether another node is trying URLs that it did not reach.
        is_cleared: Whether it is to be told that its network is sound.
        reports_without_urls: In how many reports in a row it was in doubt and named none.
        could_not_check: The processes of other nodes that could not try URLs for it.
        urls: URLs of another node that it is to try.
        asked_for: The node whose URLs it is trying, and how many.
        throughput: How many images end on it.
        number: The number of the process that was started last on it.
        gone_by_s: When all processes that were ever started on it have ended, unless it is called again.
        recording: What it has uploaded, and is being recorded, by shard.
        recorded: The shards that are recorded, and of which it was not told yet.
    """

    node: ClusterNode
    state: NodeState = NodeState.STARTING
    reason: str = ""
    limits: NodeLimits | None = None
    confirmed: NodeLimits | None = None
    report: NodeReport = field(default_factory=NodeReport)
    published: int = 0
    failures: int = 0
    given: int = 0
    is_at_work: bool = False
    is_over: bool = False
    is_sick: bool = False
    is_asked_about: bool = False
    is_cleared: bool = False
    reports_without_urls: int = 0
    could_not_check: list[str] = field(default_factory=list)
    urls: tuple[str, ...] = ()
    asked_for: tuple[Member, int] | None = None
    throughput: Throughput = field(default_factory=Throughput)
    number: int = 0
    gone_by_s: float = 0.0
    recording: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    recorded: list[str] = field(default_factory=list)

    @property
    def holder(self) -> str:
        """By what name its process has shards: an earlier one on the same node may still have some."""
        return f"{self.node.id}#{self.number}"

    @property
    def name(self) -> str:
        """Its name."""
        return self.node.name

    @property
    def is_settled(self) -> bool:
        """Whether it keeps within its part of the limits; one that was lost may still use what it had."""
        if not self.is_at_work:
            return self.limits is None or time.monotonic() >= self.gone_by_s
        return self.confirmed == self.limits and self.report.is_within_limits

    def snapshot(self) -> NodeSnapshot:
        """How it stands, for observers."""
        now = self.report.statistics
        if now is None:
            return NodeSnapshot(self.name, self.state, self.reason, shards_published=self.published)
        return NodeSnapshot(
            self.name,
            self.state,
            self.reason,
            images_per_s=self.throughput.pace(now).images_per_s if self.is_at_work else 0.0,
            ok=now.ok,
            failed=now.failed,
            shards_published=self.published,
            open_requests=now.open_requests if self.is_at_work else 0,
        )
