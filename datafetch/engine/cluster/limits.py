"""How limits that hold for all nodes together are divided among them.

Rules: the sum over all nodes is never above ``max(per_host, nodes)``, since a node without a single request at a time
could fetch nothing. Limits of a machine, such as connections, memory and codec processes, are not divided.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from datafetch.fetch import FetchPolicy
from datafetch.fetch.policy import MIN_RATE_BYTES_PER_S


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """The part of the limits that one node has.

    Attributes:
        per_host: Number of requests in flight at once to one host.
        max_rate_bytes_per_s: The cap on what is received in a second; None if there is none.
    """

    per_host: int
    max_rate_bytes_per_s: int | None

    def apply_to(self, policy: FetchPolicy) -> FetchPolicy:
        """The policy of a node that has these limits; its cap on the rate is at least what a policy may have."""
        rate = self.max_rate_bytes_per_s
        rate = None if rate is None else max(rate, MIN_RATE_BYTES_PER_S)
        return replace(policy, per_host=self.per_host, max_rate_bytes_per_s=rate)


def divide_limits(policy: FetchPolicy, nodes: int) -> tuple[NodeLimits, ...]:
    """Divide the limits of a policy among a number of nodes, as evenly as whole requests allow."""
    rate = policy.max_rate_bytes_per_s
    share, larger_shares = divmod(policy.per_host, nodes)
    rate_share = None if rate is None else max(1, rate // nodes)
    larger, smaller = NodeLimits(share + 1, rate_share), NodeLimits(max(1, share), rate_share)
    return (larger,) * larger_shares + (smaller,) * (nodes - larger_shares)
