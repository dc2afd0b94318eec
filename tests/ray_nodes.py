"""A Ray cluster of several nodes on this machine, in a process of its own, whose nodes join and are killed on request.

Each node is a raylet with processes and ports of its own, as on a machine of its own; they share the filesystem. All
listen on loopback only, and ask for a token. As a program, it starts a head that offers no CPUs, and then reads
commands, one JSON list a line: ``["add", names, environment]``, ``["kill", name]``.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

import psutil
from preloaded import COVERAGE_VARIABLES

_OBJECT_STORE_BYTES = 80 * 1024 * 1024  # the least that Ray takes
_LOOPBACK = "127.0.0.1"
_PATIENCE_S = 60


class RayNodes:
    """The cluster: ``with RayNodes() as nodes: nodes.add("a")``.

    Args:
        has_token: Whether it asks for a token.

    Attributes:
        address: The address of its head.
        environment: The environment in which a driver finds its token.
    """

    def __init__(self, *, has_token: bool = True) -> None:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment = {
            **(token if has_token else {"RAY_AUTH_MODE": "disabled"}),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray then leaves 127.0.0.1 as it is
        }
        self.address = ""
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the cluster
        self._folder = tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**_without_coverage(), **self.environment, "RAY_TMPDIR": self._folder.name},
            start_new_session=True,
        )
        self.address = self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None, "it was entered"
        family = psutil.Process(self._process.pid).children(recursive=True)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.kill()
        self._process.communicate()
        psutil.wait_procs(family, timeout=_PATIENCE_S)
        self._folder.cleanup()
        self._log.close()

    def add(self, *names: str, environment: Mapping[str, str] | None = None) -> None:
        """Let nodes of one CPU join, whose processes have some more variables in their environment."""
        self._command("add", names, dict(environment or {}))

    def kill(self, name: str) -> None:
        """Kill all processes of a node at once, as when a machine loses its power."""
        self._command("kill", name)

    def processes(self) -> list[psutil.Process]:
        """All processes of the cluster."""
        assert self._process is not None, "it was entered"
        return psutil.Process(self._process.pid).children(recursive=True)

    def _command(self, *words: object) -> None:
        assert self._process is not None, "it was entered"
        assert self._process.stdin is not None, "it is a pipe"
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        assert self._answer() == "done"

    def _answer(self) -> str:
        assert self._process is not None, "it was entered"
        assert self._process.stdout is not None, "it is a pipe"
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise AssertionError(f"the cluster has ended: {self._log.read()[-2000:]}")
        return str(json.loads(line))


def _without_coverage() -> dict[str, str]:
    """Return this environment as processes have it that are killed, or run another package."""
    return {name: value for name, value in os.environ.items() if name not in COVERAGE_VARIABLES}


def _kill(node: Any) -> None:
    """Kill a raylet and everything below it, the raylet last, so that it can't report the death of the others."""
    (raylet,) = node.all_processes["raylet"]
    processes = [*psutil.Process(raylet.process.pid).children(recursive=True), psutil.Process(raylet.process.pid)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGSTOP)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _serve() -> None:
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever Ray prints is no answer
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - only this program needs it

    shared: dict[str, Any] = {
        "object_store_memory": _OBJECT_STORE_BYTES,
        "node_ip_address": _LOOPBACK,
        "include_log_monitor": False,
        "include_dashboard": False,
    }
    cluster = Cluster(head_node_args={"num_cpus": 0, "node_name": "head", **shared}, initialize_head=True)
    nodes: dict[str, Any] = {}
    before = dict(os.environ)
    print(json.dumps(cluster.address), file=answer, flush=True)
    for line in sys.stdin:
        match json.loads(line):
            case ["add", names, environment]:
                os.environ.update(environment)
                for name in names:
                    nodes[name] = cluster.add_node(wait=False, num_cpus=1, node_name=name, **shared)
                os.environ.clear()
                os.environ.update(before)
            case ["kill", name]:
                _kill(nodes.pop(name))
        print(json.dumps("done"), file=answer, flush=True)


if __name__ == "__main__":
    _serve()
