"""The nodes that work on an output, as the run that steers them sees them: a small file, replaced every two seconds.

Rules: it is for observers, like a heartbeat, but for its token: by that, a node knows the state folder that it sees for
the driver's. The file exists while a run on a cluster is not complete.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

import orjson
from msgspec import Meta

from datafetch.model.bounds import Amount, Count, ShortText
from datafetch.store.layout import OutputLayout
from datafetch.store.state_file import read_if_sound

MAX_AGE_S = 30.0


class NodeState(StrEnum):
    """What a node is doing."""

    STARTING = "starting"
    """It is asked for its versions, or opens the manifest."""
    AT_WORK = "at work"
    """It has shards, or waits for some."""
    SICK = "sick"
    """It lacks something that others have, such as a name server, and is tried again later."""
    REFUSED = "refused"
    """It would make other bytes, or does not see the same files."""
    LOST = "lost"
    """It has ended, or does not answer any more."""
    ENDED = "ended"
    """Nothing is left for it."""


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """A node. The names of the fields are those in the file.

    Attributes:
        name: Its name in the cluster.
        state: What it is doing.
        reason: Why it is in that state, in words; mostly empty.
        images_per_s: Images that ended per second lately.
        ok: Images that it brought in this run.
        failed: Images that failed on it in this run.
        shards_published: The shards that it has published.
        open_requests: The number of its requests that are open now.
    """

    name: ShortText
    state: NodeState
    reason: ShortText = ""
    images_per_s: Amount = 0.0
    ok: Count = 0
    failed: Count = 0
    shards_published: Count = 0
    open_requests: Count = 0


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """All nodes of a run.

    Attributes:
        token: Random text that is different for each run.
        pid: The process that steers the nodes.
        host: The machine on which it runs.
        updated_unix_s: When the snapshot was taken.
        expected_images: The approximate number of images in total; None until it can be estimated.
        nodes: The nodes, by name.
    """

    token: ShortText
    pid: Annotated[int, Meta(ge=1, lt=1 << 31)]
    host: str
    updated_unix_s: Amount
    expected_images: Count | None = None
    nodes: tuple[NodeSnapshot, ...] = ()

    def nodes_now(self) -> tuple[NodeSnapshot, ...]:
        """The nodes; if the run that steers them has not been at work for a while, none of them is."""
        if abs(time.time() - self.updated_unix_s) <= MAX_AGE_S:
            return self.nodes
        working = {NodeState.STARTING, NodeState.AT_WORK}
        return tuple(
            replace(node, state=NodeState.LOST, reason="the run that steered it has ended", images_per_s=0.0)
            if node.state in working
            else node
            for node in self.nodes
        )

    @property
    def is_here(self) -> bool:
        """Whether that run is one of this machine."""
        return self.host == socket.gethostname()


def write_cluster(layout: OutputLayout, snapshot: ClusterSnapshot) -> None:
    """Replace the file. It is not synced; a failure to write it is raised."""
    unfinished = layout.cluster.with_name(layout.cluster.name + ".tmp")
    unfinished.write_bytes(orjson.dumps(snapshot))
    unfinished.replace(layout.cluster)


def delete_cluster(layout: OutputLayout) -> None:
    """Delete the file, once there is nothing left to steer."""
    with suppress(OSError):
        layout.cluster.unlink()


def read_cluster(layout: OutputLayout) -> ClusterSnapshot | None:
    """The nodes of a run on a cluster that is not complete; None if there is none."""
    return read_if_sound(layout.cluster, ClusterSnapshot)
