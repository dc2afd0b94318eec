"""Counts failures by host and kind, over millions of ledger lines.

Rules: memory is bounded, whatever hosts the URLs name. Host names are cut at the length of the longest valid one. If
there are very many hosts, those with the fewest failures are dropped, and the counts are lower bounds from then on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datafetch.model.outcome import OK
from datafetch.model.untrusted import to_printable

_MAX_PAIRS = 200_000  # of a host and a kind, about 40 MB
_KEPT_PAIRS = 100_000
_MAX_CHARACTERS = 255
# As browsers parse it: either slash, credentials before the last @, a port at the end. RE2 takes linear time.
_HOST = r"^\s*(?:(?i:https?):[/\\]*|[/\\]{2,})(?:[^/\\?#]*@)?(?P<host>\[[^\]/\\?#]*\]|[^:/\\?#]*)"


@dataclass(frozen=True, slots=True)
class FailingHost:
    """A host and its failures by kind; the name is empty for URLs without a host."""

    host: str
    by_kind: dict[str, int]

    @property
    def failed(self) -> int:
        """The number of its images that failed."""
        return sum(self.by_kind.values())


class FailingHosts:
    """Failures, counted by host and kind.

    Attributes:
        is_pruned: Whether hosts were dropped, so that the counts are lower bounds.
    """

    def __init__(self) -> None:
        self.is_pruned = False
        self._pairs: Counter[tuple[str, str]] = Counter()

    def count(self, urls: pa.Array, outcomes: pa.Array) -> None:
        """Count ledger lines, ignoring those of images that arrived.

        Args:
            urls: The column ``url``.
            outcomes: The column ``outcome``.

        Raises:
            pa.ArrowException: The columns do not contain text.
        """
        failed: Any = pc.not_equal(outcomes, OK)
        kinds: Any = pc.filter(outcomes, failed)
        table = pa.table({"host": hosts_of(pc.filter(urls, failed)), "kind": kinds})
        grouped = table.group_by(["host", "kind"]).aggregate([([], "count_all")])
        hosts, kinds, counts = (grouped[name].to_pylist() for name in ("host", "kind", "count_all"))
        self._add(Counter(dict(zip(zip(hosts, kinds, strict=True), counts, strict=True))))

    def merge(self, other: FailingHosts) -> None:
        """Add the counts of another instance."""
        self.is_pruned |= other.is_pruned
        self._add(other._pairs)

    def top(self, hosts: int) -> tuple[FailingHost, ...]:
        """Return this many hosts with the most failures, most first; their names are safe to print."""
        by_host: Counter[str] = Counter()
        for (host, _), count in self._pairs.items():
            by_host[host] += count
        chosen = sorted(by_host.items(), key=lambda pair: (-pair[1], pair[0]))[:hosts]
        kinds: dict[str, Counter[str]] = {host: Counter() for host, _ in chosen}
        for (host, kind), count in self._pairs.items():
            if host in kinds:
                kinds[host][kind] += count
        return tuple(FailingHost(to_printable(host), dict(kinds[host].most_common())) for host, _ in chosen)

    def _add(self, pairs: Counter[tuple[str, str]]) -> None:
        self._pairs.update(pairs)
        if len(self._pairs) > _MAX_PAIRS:
            self.is_pruned = True
            self._pairs = Counter(dict(self._pairs.most_common(_KEPT_PAIRS)))


def hosts_of(urls: pa.Array) -> pa.Array:
    """Return the host of each URL, in lower case and without its port; empty if it has none."""
    hosts: Any = pc.struct_field(pc.extract_regex(urls, _HOST), "host")
    return pc.utf8_slice_codeunits(pc.utf8_lower(pc.fill_null(hosts, "")), 0, _MAX_CHARACTERS)
