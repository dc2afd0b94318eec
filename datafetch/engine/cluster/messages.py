"""What the driver and its nodes say to each other. All of it is pickled by Ray, so nothing of it holds a secret."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import TypeAlias

from datafetch.engine.cluster.limits import NodeLimits
from datafetch.engine.feed import SuppliedShard
from datafetch.model.report import FetchedShards
from datafetch.model.statistics import Statistics
from datafetch.store.buckets.commit_log import LoggedFile
from datafetch.store.buckets.stored_output import StoredOutput


@dataclass(frozen=True, slots=True)
class OutputInFolder:
    """An output that lies in a folder which all nodes see.

    Attributes:
        out: The folder.
        token: Random text that the driver has written to the state folder.
    """

    out: str
    token: str


WATCH_INTERVAL_S = 1.0
"""How often a node looks whether it is still called."""
_LAST_UPLOAD_S = 10.0
_LAST_UPLOAD_SHARE = 0.5  # of the time without a call, so that it is short where that is

NodeOutput: TypeAlias = OutputInFolder | StoredOutput
"""An output, as nodes are told of it."""


@dataclass(frozen=True, slots=True)
class NodeTask:
    """What a node is started with. The job itself lies in the state folder, where the driver has written it.

    Attributes:
        output: The output.
        number: The number of the node, which no other one has that the driver has started.
        heartbeat: The name of the node's heartbeat.
        limits: Its part of the limits of all nodes.
        finish_by: When the run is to finish; None lets it take as long as it takes.
        abandoned_after_s: After how many seconds without a word from the driver it ends itself.
    """

    output: NodeOutput
    number: int
    heartbeat: str
    limits: NodeLimits
    finish_by: datetime | None
    abandoned_after_s: float


@dataclass(frozen=True, slots=True)
class Orders:
    """What the driver tells a node.

    Attributes:
        shards: Shards to fetch.
        limits: Its part of the limits from now on.
        is_over: Whether there are no more shards, so that it ends once its own are published.
        clears: Whether it may publish what it has, since other nodes reach no more hosts than it does.
        urls: URLs that it is to try, since another node could not reach their hosts.
        recorded: Shards that it has uploaded and that are recorded now.
    """

    shards: tuple[SuppliedShard, ...] = ()
    limits: NodeLimits | None = None
    is_over: bool = False
    clears: bool = False
    urls: tuple[str, ...] = ()
    recorded: tuple[str, ...] = ()


def last_upload_s(abandoned_after_s: float) -> float:
    """For how many seconds a node that has lost its driver uploads what it has fetched, before it ends itself."""
    return min(_LAST_UPLOAD_S, abandoned_after_s * _LAST_UPLOAD_SHARE)


def max_absence_s(wait_s: float, abandoned_after_s: float) -> float:
    """How many seconds after the start of its last call a node has ended itself.

    Args:
        wait_s: For how long that call may have waited for news.
        abandoned_after_s: As ``NodeTask`` has it.
    """
    return wait_s + abandoned_after_s + WATCH_INTERVAL_S + last_upload_s(abandoned_after_s)


class EndKind(Enum):
    """Why a node has ended."""

    DONE = auto()
    """There are no more shards."""
    RESOURCES = auto()
    """Its machine lacks something: a name server, a route, descriptors, disk space."""
    REFUSED = auto()
    """It can't do the job that the driver has: it does not see the same files."""
    BUG = auto()
    """Anything else, which stops the run."""


@dataclass(frozen=True, slots=True)
class NodeEnd:
    """How a node has ended, and what it said."""

    kind: EndKind
    message: str = ""


@dataclass(frozen=True, slots=True)
class NodeMessage:
    """A message that a node's library has logged, with its level as ``logging`` has it."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class UploadedShard:
    """A shard that a node has uploaded to a bucket, to be recorded: its files by name."""

    name: str
    files: Mapping[str, LoggedFile]


@dataclass(frozen=True, slots=True)
class TriedUrls:
    """URLs of another node have been requested.

    Attributes:
        answers: How many were answered; None if they could not be requested.
    """

    answers: int | None


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node tells the driver.

    Attributes:
        wanted: The number of shards that it has room for now.
        published: The shards that were published since the last report.
        uploaded: The shards that were uploaded since the last report; they are published once they are recorded.
        in_use: The shards that it found locked since then.
        statistics: How its session stands; None before it has begun.
        done: What it has done; None before it has begun.
        is_in_doubt: Whether most of its latest requests were answered by no server, so that it publishes nothing.
        unreached: The URLs of the latest requests that no server answered.
        tried: What came of the URLs that it was to try; None if it has tried none since then.
        is_within_limits: Whether no host has more open requests than its limits allow, after they were lowered.
        messages: What its library has logged since then.
        end: How it ended; None while it is at work.
    """

    wanted: int = 0
    published: tuple[str, ...] = ()
    uploaded: tuple[UploadedShard, ...] = ()
    in_use: tuple[str, ...] = ()
    statistics: Statistics | None = None
    done: FetchedShards | None = None
    is_in_doubt: bool = False
    unreached: tuple[str, ...] = ()
    tried: TriedUrls | None = None
    is_within_limits: bool = True
    messages: tuple[NodeMessage, ...] = ()
    end: NodeEnd | None = None
