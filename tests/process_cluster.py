"""A cluster without Ray: each node is a process of this machine that runs a NodeServer, and is killed for real.

It has the interface of ``Cluster``, so that what the driver decides can be tested in seconds; ``test_ray.py`` tests
what Ray does. As a program it is such a process, which reads pickled calls and writes pickled answers. With
``DATAFETCH_TEST_SPOOLS_S`` in its environment it uploads what spools have gained after so many seconds.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from datafetch.engine.cluster.interface import ClusterNode, NodeLostError
from datafetch.engine.cluster.messages import NodeOutput, NodeReport, NodeTask, Orders
from datafetch.engine.cluster.node import NodeServer
from datafetch.engine.cluster.node_facts import NodeFacts
from datafetch.store.buckets import spool_segments


@dataclass(slots=True, eq=False)
class ProcessNode:
    """A node.

    Attributes:
        name: Its name.
        prefix: What its processes are started with, such as ``unshare`` with arguments.
        environment: What they have in their environment besides that of the test.
        process: The one that runs its server.
        task: What it was started with last.
        orders: All orders that it was given.
        reports: All reports that it has made.
    """

    name: str
    prefix: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    task: NodeTask | None = None
    orders: list[Orders] = field(default_factory=list)
    reports: list[NodeReport] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        """Start a process on it."""
        return subprocess.Popen(
            [*self.prefix, sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **self.environment},
        )


class ProcessCluster:
    """The cluster, to which nodes may be added at any time.

    Args:
        names: The names of its first nodes.
    """

    def __init__(self, *names: str) -> None:
        self.all = {name: ProcessNode(name) for name in names}

    @contextmanager
    def connected(self) -> Iterator[ProcessCluster]:
        """The context manager that a driver is given."""
        try:
            yield self
        finally:
            for node in self.all.values():
                if node.process is not None:
                    self.kill(node)

    def nodes(self) -> list[ClusterNode]:
        """All nodes."""
        return [ClusterNode(name, name, 1.0) for name in list(self.all)]

    async def refuse_open_head(self) -> None:
        """It has no ports."""

    def start(self, node: ClusterNode) -> ProcessNode:
        """Start a server on a node."""
        found = self.all[node.id]
        found.process = found.start()
        return found

    async def facts(self, server: ProcessNode, output: NodeOutput) -> NodeFacts:
        """Call a server's ``facts``."""
        assert server.process is not None, "it was started"
        return cast("NodeFacts", await asyncio.to_thread(_call, server.process, "facts", output))

    async def begin(self, server: ProcessNode, task: NodeTask) -> None:
        """Call a server's ``begin``."""
        assert server.process is not None, "it was started"
        server.task = task
        await asyncio.to_thread(_call, server.process, "begin", task)

    async def exchange(self, server: ProcessNode, orders: Orders, wait_s: float) -> NodeReport:
        """Call a server."""
        assert server.process is not None, "it was started"
        server.orders.append(orders)
        report = await asyncio.to_thread(_call, server.process, "exchange", orders, wait_s)
        server.reports.append(cast("NodeReport", report))
        return server.reports[-1]

    def kill(self, server: ProcessNode) -> None:
        """Kill the process of a server; one that has ended its work ends by itself, so that coverage is measured."""
        if server.process is not None:
            if not (server.reports and server.reports[-1].end):
                server.process.kill()
            server.process.communicate()
            server.process = None


def _call(process: subprocess.Popen[bytes], *call: object) -> object:
    assert process.stdin is not None, "it is a pipe"
    assert process.stdout is not None, "it is a pipe"
    try:
        pickle.dump(call, process.stdin)
        process.stdin.flush()
        return pickle.load(process.stdout)
    except (BrokenPipeError, EOFError, ValueError) as error:
        raise NodeLostError("has ended", is_certain=True) from error


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    spool_segments.INTERVAL_S = float(os.environ.get("DATAFETCH_TEST_SPOOLS_S", spool_segments.INTERVAL_S))
    server = NodeServer()
    while True:
        try:
            name, *arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            os._exit(0)
        pickle.dump(getattr(server, name)(*arguments), answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
