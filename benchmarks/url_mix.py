"""The hostile mix: what a crawl of the open web meets, in shares, as a stream of URLs.

Rules: a host that hangs does so for all its URLs. The good hosts, which also have what is gone, are many; those of each
bad behaviour are a handful, or one a URL where they are spread. Seeded: the same seed gives the same URLs in the same
order. A URL's behaviour stands in its path.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.host_farm import Behaviour, HostFarm

DEAD = "dead"
"""The behaviour of a URL whose host can't be connected to."""

OBTAINABLE = frozenset({Behaviour.GOOD, Behaviour.BUSY})
"""The behaviours of URLs whose image can be had."""

_SHARES = {
    Behaviour.GOOD: 70,
    Behaviour.GONE: 15,
    DEAD: 5,
    Behaviour.TARPIT: 3,
    Behaviour.BUSY: 3,
    Behaviour.RESET: 2,
    Behaviour.DRIP: 2,
}
_BUSY_HOSTS_PER_BAD_HOST = 16  # many good hosts ration now and then; a second of Retry-After holds for all of a host
_FIRST_BAD_HOST = {
    Behaviour.TARPIT: 8 << 20,
    Behaviour.BUSY: 9 << 20,
    Behaviour.RESET: 10 << 20,
    Behaviour.DRIP: 11 << 20,
}


@dataclass(frozen=True, slots=True)
class Web:
    """The hosts.

    Attributes:
        farm: Serves all that can be connected to.
        dead: The others, as ``address:port``.
        good_hosts: How many serve well.
        bad_hosts: The number of each bad behaviour, of busy ones 16 times as many; 0 gives each bad URL its own host.
    """

    farm: HostFarm
    dead: Sequence[str]
    good_hosts: int
    bad_hosts: int


@dataclass(frozen=True, slots=True)
class Bodies:
    """How large the smallest and the largest image is."""

    least_bytes: int
    most_bytes: int

    def draw(self, chance: random.Random) -> int:
        """A size, in full kilobytes."""
        return chance.randint(self.least_bytes // 1000, self.most_bytes // 1000) * 1000


def hostile_mix(web: Web, bodies: Bodies, seed: int = 0) -> Iterator[str]:
    """URLs without end, each hundred of them with exactly the shares of the mix, shuffled."""
    chance = random.Random(seed)
    hundred = [behaviour for behaviour, share in _SHARES.items() for _ in range(share)]
    number = 0
    while True:
        chance.shuffle(hundred)
        for behaviour in hundred:
            yield _url(web, behaviour, bodies.draw(chance), number, chance)
            number += 1


def good_url(web: Web, bodies: Bodies, number: int, chance: random.Random) -> str:
    """A URL on one of the good hosts."""
    return _url(web, Behaviour.GOOD, bodies.draw(chance), number, chance)


def dead_url(hosts: Sequence[str], number: int) -> str:
    """A URL on one of the dead hosts, each in turn."""
    return f"http://{hosts[number % len(hosts)]}/{DEAD}/0/{number}"


def behaviour_of(url: str) -> str:
    """How the host of a URL behaves."""
    return url.split("/", 4)[3]


def _url(web: Web, behaviour: str, size_bytes: int, number: int, chance: random.Random) -> str:
    if behaviour == DEAD:
        return dead_url([chance.choice(web.dead)], number)
    kind = Behaviour(behaviour)
    first = _FIRST_BAD_HOST.get(kind)
    if first is None:
        host = chance.randrange(web.good_hosts)
    else:
        hosts = web.bad_hosts * (_BUSY_HOSTS_PER_BAD_HOST if kind is Behaviour.BUSY else 1)
        host = first + (chance.randrange(hosts) if hosts else number)
    return web.farm.url(kind, host=host, size_bytes=size_bytes, number=number)
