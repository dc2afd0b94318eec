"""ShardQueue: which shards are open, which node has which of them, and what becomes of those of a node that is lost.

Theory of operation. A shard is waiting, handed out to one node, or published. A node asks for the next one when it has
room, so fast nodes take more, and no shard is ever handed out a second time because it takes long. It gets none beyond
its fair part of all that are not published, so that one node does not take many small ones before others come. Only
when a node is lost do its shards wait again, at the front, since images of them are in spools already. A node that
finds a shard locked, as by one that is being ended, gives it back: it waits for ``LOCKED_SHARD_RETRY_S`` and is then
handed out again.

Rules: pure bookkeeping, without a clock, a thread or a network. It may be wrong about who works on a shard, since a
node may be lost to the driver and go on for a while; the shard's lock decides that, and its ledger whether it is done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import ceil

from datafetch.engine.feed import SuppliedShard

LOCKED_SHARD_RETRY_S = 2.0
"""How long a shard that a node found locked is not handed out again."""


class ShardQueue:
    """The shards of a run, as they are handed out to nodes.

    Args:
        shards: The open shards, in the order in which they are to be handed out.
    """

    def __init__(self, shards: Iterable[SuppliedShard]) -> None:
        self._waiting = deque(shards)
        self._in_use: list[tuple[float, SuppliedShard]] = []
        self._handed_out: dict[str, dict[str, SuppliedShard]] = {}
        self._held = 0  # all of these
        self._published: set[str] = set()

    @property
    def is_complete(self) -> bool:
        """Whether all shards are published."""
        return not (self._waiting or self._in_use or self._held)

    @property
    def published(self) -> int:
        """The number of shards that are published."""
        return len(self._published)

    def take(self, node: str, now_s: float, nodes: int = 1) -> SuppliedShard | None:
        """The next shard for a node; None if none is to be had now, although some may be later.

        Args:
            node: The node.
            now_s: The time, of any clock that only goes forward.
            nodes: The number of nodes that take shards.
        """
        while self._in_use and self._in_use[0][0] <= now_s:
            self._waiting.appendleft(self._in_use.pop(0)[1])
        fair = ceil((len(self._waiting) + len(self._in_use) + self._held) / nodes)
        while self._waiting and len(self._handed_out.get(node, {})) < fair:
            shard = self._waiting.popleft()
            if shard.name not in self._published:
                self._handed_out.setdefault(node, {})[shard.name] = shard
                self._held += 1
                return shard
        return None

    def mark_published(self, node: str, shard: str) -> None:
        """Record that a node has published a shard, or has found it published."""
        self._take_from(node, shard)
        self._published.add(shard)
        # A node that was given up may have published what another one was handed meanwhile.
        self._in_use = [waiting for waiting in self._in_use if waiting[1].name != shard]

    def give_back(self, node: str, shard: str, now_s: float) -> None:
        """Record that a node has found a shard locked by another process."""
        taken = self._take_from(node, shard)
        if taken is not None and shard not in self._published:
            self._in_use.append((now_s + LOCKED_SHARD_RETRY_S, taken))

    def lose(self, node: str) -> tuple[str, ...]:
        """Let the shards of a node wait again that is lost; return their names."""
        lost = list(self._handed_out.pop(node, {}).values())
        self._held -= len(lost)
        self._waiting.extendleft(reversed(lost))
        return tuple(shard.name for shard in lost)

    def shards_of(self, node: str) -> tuple[str, ...]:
        """The shards that a node has now."""
        return tuple(self._handed_out.get(node, {}))

    def _take_from(self, node: str, shard: str) -> SuppliedShard | None:
        taken = self._handed_out.get(node, {}).pop(shard, None)
        self._held -= taken is not None
        return taken
