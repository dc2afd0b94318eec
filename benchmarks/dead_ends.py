"""Hosts that can't be connected to: some refuse connections, others never accept one."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

_REFUSING_NETWORK = "127.253.0"
_SILENT_NETWORK = "127.254.0"
_MAX_FILLERS = 8
_PATIENCE_MS = 100


@dataclass(frozen=True, slots=True)
class DeadEnds:
    """The hosts, each as ``address:port``.

    Attributes:
        refusing: Hosts that answer a SYN with a reset.
        silent: Hosts that don't answer it, because their queue of connections to accept is full.
    """

    refusing: Sequence[str]
    silent: Sequence[str]

    @property
    def hosts(self) -> list[str]:
        """All hosts, the two kinds in turn; those that one kind has more of come last."""
        pairs = list(zip(self.refusing, self.silent, strict=False))
        rest = [*self.refusing[len(pairs) :], *self.silent[len(pairs) :]]
        return [host for pair in pairs for host in pair] + rest


@contextmanager
def dead_ends(refusing: int, silent: int) -> Iterator[DeadEnds]:
    """Provide these numbers of hosts, each at most 250, for as long as the context lasts."""
    with ExitStack() as resources:
        # It is bound but does not listen, so no other process gets the port, and connections to it are refused.
        closed = resources.enter_context(socket.socket())
        closed.bind(("", 0))
        port = closed.getsockname()[1]
        yield DeadEnds(
            [f"{_REFUSING_NETWORK}.{number + 1}:{port}" for number in range(refusing)],
            [_silent_host(f"{_SILENT_NETWORK}.{number + 1}", resources) for number in range(silent)],
        )


def _silent_host(address: str, resources: ExitStack) -> str:
    """Listen, and fill the queue of connections to accept, so that the kernel drops every further SYN."""
    listener = resources.enter_context(socket.socket())
    listener.bind((address, 0))
    listener.listen(0)
    endpoint = listener.getsockname()
    for _ in range(_MAX_FILLERS):
        if not _is_accepted(resources.enter_context(socket.socket()), endpoint):
            return f"{address}:{endpoint[1]}"
    raise RuntimeError(f"{_MAX_FILLERS} connections did not fill the queue at {endpoint}")


def _is_accepted(filler: socket.socket, endpoint: tuple[str, int]) -> bool:
    filler.setblocking(False)
    if filler.connect_ex(endpoint) not in (0, errno.EINPROGRESS):
        return False
    poll = select.poll()
    poll.register(filler, select.POLLOUT)
    return bool(poll.poll(_PATIENCE_MS))
