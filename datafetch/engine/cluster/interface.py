"""What the driver needs of a cluster: its nodes, a ``NodeServer`` on each of them, and calls to these.

Rules: nothing here knows Ray. ``ray_cluster`` implements it; tests have clusters of processes and simulated ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from datafetch.engine.cluster.messages import NodeOutput, NodeReport, NodeTask, Orders
from datafetch.engine.cluster.node_facts import NodeFacts


class NodeLostError(Exception):
    """A node, or the process on it, has ended or can't be reached.

    Args:
        reason: What is known, in words.
        is_certain: Whether it has surely ended.
    """

    def __init__(self, reason: str, *, is_certain: bool) -> None:
        super().__init__(reason)
        self.is_certain = is_certain


class UnfitNodeError(Exception):
    """A node can't load the same package, or anyone can run code on it. The message says what to do."""


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A node that is alive and offers CPUs.

    Attributes:
        id: Its id, as the cluster has it.
        name: Its name, which no other node has.
        cpus: The number of CPUs that it offers.
    """

    id: str
    name: str
    cpus: float


class Cluster(Protocol):
    """A connection to a cluster."""

    def nodes(self) -> list[ClusterNode]:
        """The nodes that are alive and offer CPUs; it blocks.

        Raises:
            ResourceError: The head of the cluster can't be reached.
        """
        ...

    async def refuse_open_head(self) -> None:
        """Check that not everyone who reaches the head of the cluster can run code on its nodes.

        Raises:
            ConfigurationError: Everyone can, or it can't be found out.
        """
        ...

    def start(self, node: ClusterNode) -> Any:
        """Start a server on a node, and return its handle; it blocks."""
        ...

    async def facts(self, server: Any, output: NodeOutput) -> NodeFacts:
        """Call a server's ``facts``; it waits until the node's CPUs are free. The errors are those of ``exchange``."""
        ...

    async def begin(self, server: Any, task: NodeTask) -> None:
        """Call a server's ``begin``. The errors are those of ``exchange``."""
        ...

    async def exchange(self, server: Any, orders: Orders, wait_s: float) -> NodeReport:
        """Call a server's ``exchange``.

        Raises:
            NodeLostError: It has ended, or can't be reached.
            UnfitNodeError: It can't do the job, and never will.
        """
        ...

    def kill(self, server: Any) -> None:
        """End a server's process at once; it blocks."""
        ...
