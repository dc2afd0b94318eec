"""A driver that can be killed: runs a job on a cluster of processes, which end with it.

As a program, it reads a pickled job, and then names of nodes with what they have in their environment.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping

from process_cluster import ProcessCluster, ProcessNode

from datafetch import Job
from datafetch.engine.cluster.cluster_run import run_on_cluster


def start_driver(job: Job, nodes: Mapping[str, Mapping[str, str]]) -> subprocess.Popen[bytes]:
    """Start a process that runs a job on nodes, each of which has some variables in its environment."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, env=dict(os.environ))
    assert process.stdin is not None, "it is a pipe"
    pickle.dump((job, {name: dict(environment) for name, environment in nodes.items()}), process.stdin)
    process.stdin.flush()
    return process


def _drive() -> None:
    job, nodes = pickle.load(sys.stdin.buffer)
    cluster = ProcessCluster()
    cluster.all = {name: ProcessNode(name, environment=environment) for name, environment in nodes.items()}
    asyncio.run(run_on_cluster(job, cluster.connected))


if __name__ == "__main__":
    _drive()
