"""What a fetcher waits for: the host that most of its calls wait for, and why.

Rules: it is asked several times a second, so only hosts with something that waits are looked at, and details are found
for one of them alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from datafetch.fetch.host_slots import HostSlots
from datafetch.fetch.pauses import Pauses
from datafetch.model.statistics import Waiting

_MAX_HOST_CHARACTERS = 253  # of a host name, by RFC 1035


def find_waiting(hosts: HostSlots, pauses: Pauses) -> Waiting | None:
    """Find what most calls wait for; None if no call waits for a host or its next attempt.

    Args:
        hosts: The requests that wait for a slot at their host.
        pauses: The calls that wait before their next attempt.
    """
    by_host = Counter(dict(hosts.waiting_by_host()))
    for host, count in pauses.by_host():
        by_host[host] += count
    if not by_host:
        return None
    host, count = max(by_host.items(), key=lambda item: item[1])
    now_s = asyncio.get_running_loop().time()
    reason, until_s = hosts.why_waiting(host)
    first = pauses.first_of(host)
    if until_s is None and first is not None:
        reason, until_s = first.reason, first.until_s
    return Waiting(
        images=by_host.total(),
        host=host.rpartition(":")[0][:_MAX_HOST_CHARACTERS],
        host_images=count,
        reason=reason,
        next_attempt_s=None if until_s is None else max(0.0, until_s - now_s),
    )
