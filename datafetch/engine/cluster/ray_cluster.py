"""RayCluster: the only module that knows Ray. Nodes, a NodeServer on each of them, and calls to these.

Theory of operation. Ray starts a process on a node and passes calls to it; it notices when a process or a node dies. A
server is an actor that is bound to its node, and that takes all CPUs which the node offers to Ray, so that there is
exactly one, and nothing else beside it. It is not restarted by Ray and not detached: it ends with the driver, and the
driver decides what becomes of a node.

Rules: anyone who can reach Ray's ports can run code on its nodes. So a cluster that is started here listens on the
loopback interface alone, without a dashboard, and requires a token; and one that others have started is refused if it
requires none, unless the operator has set ``RAY_AUTH_MODE=disabled``. Ray reads these variables when it is imported, so
they are set before, and restored when the connection is closed. Usage statistics are not sent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import socket
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from datafetch.engine.cluster.interface import ClusterNode, NodeLostError, UnfitNodeError
from datafetch.engine.cluster.messages import NodeOutput, NodeReport, NodeTask, Orders
from datafetch.engine.cluster.node import NodeServer
from datafetch.engine.cluster.node_facts import NodeFacts
from datafetch.errors import ConfigurationError, ResourceError
from datafetch.model.untrusted import one_line

LEAST_VERSION = (2, 53)
"""The first version whose token authentication was found to hold; see ``docs/security.md``."""
_TOKEN_MODE = "token"  # noqa: S105 - no password: of RAY_AUTH_MODE, that requests are authenticated
_LOOPBACK = "127.0.0.1"
_LOCAL, _AUTO = "local", "auto"
_ANSWER_TIMEOUT_S = 10.0
_TOKEN_BYTES = 32
_SHORT_ID = 8
_HEAD = "node:__internal_head__"  # a resource that the head alone has
_CLIENT = re.compile(r"[a-z]+://")
_SILENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or a warning about graphics processors is printed
    "RAY_DEDUP_LOGS": "0",
}
_log = logging.getLogger(__name__)


class _RayServer(NodeServer):
    """What runs on a node of Ray."""

    def asks_for_token(self) -> bool:
        """Whether the part of the cluster that has started this process requires a token."""
        return _asks_for_token()


class RayCluster:
    """A connection to a cluster; the driver has it as a ``Cluster``.

    Args:
        ray: Ray's package.
        is_own: Whether the connection was made here, and is closed with it.
        requires_token: Whether nodes without token authentication are refused.
    """

    def __init__(self, ray: Any, *, is_own: bool, requires_token: bool) -> None:
        self._ray = ray
        self._is_own = is_own
        self._requires_token = requires_token

    def close(self) -> None:
        """Close the connection; a cluster that was started for it ends."""
        if self._is_own:
            self._ray.shutdown()

    def nodes(self) -> list[ClusterNode]:
        """The nodes that are alive and offer CPUs.

        Raises:
            ResourceError: The head of the cluster can't be reached.
        """
        alive = [node for node in self._known() if node["Alive"] and node.get("Resources", {}).get("CPU", 0.0) > 0]
        names = Counter(map(_name_of, alive))
        return [
            ClusterNode(
                node["NodeID"],
                _name_of(node) if names[_name_of(node)] == 1 else f"{_name_of(node)}/{node['NodeID'][:_SHORT_ID]}",
                node["Resources"]["CPU"],
            )
            for node in alive
        ]

    def _known(self) -> list[dict[str, Any]]:
        try:
            return cast("list[dict[str, Any]]", self._ray.nodes())
        except (self._ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
            raise ResourceError(
                f"the head of the cluster can't be reached: {one_line(str(error))}; start the cluster, and run the "
                "same command again (nothing written so far is lost)"
            ) from error

    async def refuse_open_head(self) -> None:
        """Refuse a cluster whose head requires no token; nodes are asked by themselves.

        Raises:
            ConfigurationError: It requires none, or it can't be found out.
        """
        if not self._requires_token:
            return
        try:
            is_open = await self._has_open_head()
        except (NodeLostError, UnfitNodeError) as error:
            raise ConfigurationError(
                f"can't find out whether the cluster's head node requires a token ({error}); install the same "
                "datafetch there, or set RAY_AUTH_MODE=disabled for this command if only you can reach its ports"
            ) from error
        if is_open:
            raise ConfigurationError(
                "the cluster's head node does not require a token, so anyone who can reach its ports can run code on "
                "every node; start Ray with RAY_AUTH_MODE=token, or set RAY_AUTH_MODE=disabled for this command if "
                "only you can reach those ports"
            )

    async def _has_open_head(self) -> bool:
        heads = [node["NodeID"] for node in self._known() if _HEAD in node.get("Resources", {})]
        for head in heads:
            remote = self._ray.remote(_asks_for_token).options(
                num_cpus=0, max_retries=0, scheduling_strategy=self._on(head)
            )
            if not await self._result(remote.remote()):
                return True
        return False

    def start(self, node: ClusterNode) -> Any:
        """Start a server on a node, and return its handle."""
        actor = self._ray.remote(_RayServer).options(
            num_cpus=node.cpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=1,
            scheduling_strategy=self._on(node.id),
        )
        return actor.remote()

    async def facts(self, server: Any, output: NodeOutput) -> NodeFacts:
        """Call a server's ``facts``; it waits until the node's CPUs are free. The errors are those of ``exchange``."""
        try:
            requires_token = await self._result(server.asks_for_token.remote())
            facts = cast("NodeFacts", await self._result(server.facts.remote(output)))
        except UnfitNodeError as error:
            raise UnfitNodeError(f"it can't load this datafetch: {error}; install the same version there") from error
        if self._requires_token and not requires_token:
            raise UnfitNodeError(
                "it does not require a token, so anyone who can reach its ports can run code on it; start Ray there "
                "with RAY_AUTH_MODE=token"
            )
        return facts

    async def begin(self, server: Any, task: NodeTask) -> None:
        """Call a server's ``begin``. The errors are those of ``exchange``."""
        await self._result(server.begin.remote(task))

    async def exchange(self, server: Any, orders: Orders, wait_s: float) -> NodeReport:
        """Call a server's ``exchange``.

        Raises:
            NodeLostError: It has ended, or can't be reached.
            UnfitNodeError: It can't do what it is called for, as where there is no such package.
        """
        return cast("NodeReport", await self._result(server.exchange.remote(orders, wait_s)))

    def kill(self, server: Any) -> None:
        """End a server's process at once."""
        self._ray.kill(server, no_restart=True)

    def _on(self, node_id: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - an extra

        return NodeAffinitySchedulingStrategy(node_id, soft=False)

    async def _result(self, reference: Any) -> object:
        errors = self._ray.exceptions
        try:
            return await asyncio.wrap_future(reference.future())
        except errors.ActorUnavailableError as error:
            raise NodeLostError("can't be reached", is_certain=False) from error
        except (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError) as error:
            raise NodeLostError(_reason_of(error), is_certain=True) from error
        except (errors.TaskUnschedulableError, errors.ActorUnschedulableError) as error:
            raise NodeLostError("has left the cluster", is_certain=True) from error
        except errors.RayTaskError as error:
            raise UnfitNodeError(one_line(str(error.cause))) from error
        except errors.RayError as error:  # of Ray itself, which may pass
            raise NodeLostError(one_line(f"can't be used: {error}"), is_certain=False) from error


@contextmanager
def connected(address: str | None) -> Iterator[RayCluster]:
    """Connect to a cluster, or start one on this machine, until the context ends.

    While it connects, the working directory of this process is ``/``. Variables of Ray are set in its environment, and
    those that were changed are restored at the end.

    Args:
        address: ``HOST:PORT`` of its head, or ``auto`` for the one of this machine; None takes ``RAY_ADDRESS``, and
            starts one without it.

    Raises:
        ConfigurationError: Ray is not installed or too old, or there is no cluster, or it refuses this driver.
    """
    address = address or os.environ.get("RAY_ADDRESS") or _LOCAL
    if _CLIENT.match(address):
        raise ConfigurationError(
            f"--ray-address takes HOST:PORT of the cluster's head, or auto, not {address}; run the command on a "
            "machine of the cluster"
        )
    is_disabled = os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled"
    with _environment(starts_cluster=address == _LOCAL):
        ray = _load_ray()
        is_own = not ray.is_initialized()
        logging.getLogger("ray").setLevel(logging.ERROR)  # what matters of its warnings is logged here
        if is_own:
            _init(ray, address)
        if is_disabled:
            _log.warning(
                "RAY_AUTH_MODE=disabled: anyone who can reach the ports of this cluster can run code on every node; "
                "keep it in a network that only you can reach"
            )
        cluster = RayCluster(ray, is_own=is_own, requires_token=not is_disabled)
        try:
            yield cluster
        finally:
            cluster.close()


@contextmanager
def _environment(*, starts_cluster: bool) -> Iterator[None]:
    """Set the variables that Ray reads, until the context ends: a token is that of one cluster."""
    wanted = {name: os.environ.get(name, value) for name, value in {**_SILENT, "RAY_AUTH_MODE": _TOKEN_MODE}.items()}
    if starts_cluster:
        wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(_TOKEN_BYTES)  # of this cluster alone; in no file
        # Ray replaces 127.0.0.1 by an address that others reach, unless it takes this machine for a desktop.
        wanted["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _asks_for_token() -> bool:
    return os.environ.get("RAY_AUTH_MODE", "").lower() == _TOKEN_MODE


def _has_token() -> bool:
    return any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or (
        (Path.home() / ".ray" / "auth_token").exists()
    )


def _load_ray() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray  # noqa: PLC0415 - an extra, which takes a second to load
    except ImportError as error:
        raise ConfigurationError("--engine ray needs Ray; install it: pip install 'vlm-datafetch[ray]'") from error
    version = tuple(int(part) for part in re.findall(r"\d+", ray.__version__)[:2])
    if version < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        raise ConfigurationError(
            f"--engine ray needs Ray {least} or later, which can ask for a token, and this is {ray.__version__}; "
            "install it on all nodes: pip install --upgrade 'vlm-datafetch[ray]'"
        )
    return ray


def _init(ray: Any, address: str) -> None:
    _refuse_silent(address)
    settings: dict[str, Any] = {"address": address}
    if address == _LOCAL:
        settings |= {"include_dashboard": False, "_node_ip_address": _LOOPBACK}
    elif not _has_token() and os.environ["RAY_AUTH_MODE"] == _TOKEN_MODE:
        where = "on this machine" if address == _AUTO else f"at {address}"
        raise ConfigurationError(
            f"there is no token for the cluster {where}; put the one that it was started with into "
            "~/.ray/auth_token or RAY_AUTH_TOKEN (ray get-auth-token prints it)"
        )
    folder = os.open(".", os.O_PATH)  # since a deleted folder has no name
    try:
        # Ray lets nodes import modules from the driver's working directory, which others may write to, such as /tmp.
        os.chdir("/")
        _forget_token()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(log_to_driver=False, configure_logging=False, namespace="datafetch", **settings)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConfigurationError(
            f"can't connect to the Ray cluster at {address}: {one_line(str(error))}; check the address, the token, and "
            f"that this machine has the cluster's versions of Ray ({ray.__version__} here) and Python "
            f"({sys.version_info.major}.{sys.version_info.minor} here)"
        ) from error
    finally:
        os.fchdir(folder)
        os.close(folder)


def _refuse_silent(address: str) -> None:
    """Check that something listens at an address, which Ray itself tries for a quarter of an hour.

    Raises:
        ConfigurationError: Nothing does.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_TIMEOUT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or one_line(str(error))
        raise ConfigurationError(
            f"no Ray cluster answers at {address} ({reason}); start its head there (ray start --head), or check the "
            "address and the port"
        ) from error


def _forget_token() -> None:
    """Let Ray read the token again, which it does once in a process by itself, whatever cluster it connects to."""
    with suppress(ImportError, AttributeError):  # no part of its interface
        import_module("ray._raylet").AuthenticationTokenLoader.instance().reset_cache()


def _name_of(node: dict[str, Any]) -> str:
    """A node's name: the one that it was given, or else that of its machine."""
    address = str(node.get("NodeManagerAddress", ""))
    given = str(node.get("NodeName", ""))
    return given if given and given != address else str(node.get("NodeManagerHostname", "")) or address


def _reason_of(error: Exception) -> str:
    """What Ray knows of the end of a process, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = next(
        (line for line in lines if "cause" in line.lower() or "died" in line.lower()), lines[0] if lines else ""
    )
    return one_line(f"has ended ({cause})" if cause else "has ended")
