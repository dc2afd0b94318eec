"""The hostile mix: a stream of URLs whose hosts behave, in shares, as those that a crawl of the open web meets.

Rules: a host that hangs does so for all its URLs. There are many good hosts, which also have the URLs that are gone,
and a few hosts of each bad behaviour, or one for each bad URL. The same seed gives the same URLs in the same order. The
path of a URL names the behaviour.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.host_farm import Behaviour, HostFarm
from datafetch.fetch import FetchPolicy

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
_BUSY_HOSTS_PER_BAD_HOST = 16  # many good hosts limit their rate at times; one Retry-After pauses all URLs of a host
_FIRST_BAD_HOST = {
    Behaviour.TARPIT: 8 << 20,
    Behaviour.BUSY: 9 << 20,
    Behaviour.RESET: 10 << 20,
    Behaviour.DRIP: 11 << 20,
}


@dataclass(frozen=True, slots=True)
class Web:
    """The hosts of the mix.

    Attributes:
        farm: The server of all hosts that can be connected to.
        dead: The other hosts, as ``address:port``.
        good_hosts: The number of good hosts.
        bad_hosts: The number of hosts of each bad behaviour, of which there are 16 times as many busy ones; 0 gives
            each bad URL its own host.
    """

    farm: HostFarm
    dead: Sequence[str]
    good_hosts: int
    bad_hosts: int


@dataclass(frozen=True, slots=True)
class Bodies:
    """The sizes of the smallest and the largest image."""

    min_bytes: int
    max_bytes: int

    def draw(self, chance: random.Random) -> int:
        """Draw a size in bytes, in full kilobytes."""
        return chance.randint(self.min_bytes // 1000, self.max_bytes // 1000) * 1000


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of a farm that serves pictures: how many there are."""

    count: int

    def draw(self, chance: random.Random) -> int:
        """Draw the number of a picture."""
        return chance.randrange(self.count)


def add_options(parser: argparse.ArgumentParser, good_hosts: int) -> None:
    """Add the command-line options of the benchmarks that fetch the mix.

    Args:
        parser: The parser to add them to.
        good_hosts: The default number of good hosts.
    """
    parser.add_argument("--seed", type=int, default=0, help="seed of the mix and its order")
    parser.add_argument("--connections", type=int, default=0, help="requests open at once; 0 for auto")
    parser.add_argument("--timeout-s", type=float, default=5.0, help="deadline of an attempt")
    parser.add_argument("--connect-timeout-s", type=float, default=2.0, help="part of it for making the connection")
    parser.add_argument("--good-hosts", type=int, default=good_hosts, help="hosts of the good URLs and those gone")
    parser.add_argument("--bad-hosts", type=int, default=8, help="hosts of each bad behaviour; 0 for one a URL")
    parser.add_argument(
        "--delay-ms", type=float, nargs=2, default=(50.0, 200.0), help="the server's shortest and longest latency"
    )


def policy_of(arguments: argparse.Namespace) -> FetchPolicy:
    """Make the policy that the options of ``add_options`` ask for."""
    return FetchPolicy(
        connections=arguments.connections or None,
        timeout_s=arguments.timeout_s,
        connect_timeout_s=arguments.connect_timeout_s,
        allow_net=("127.0.0.0/8",),
    )


def hostile_mix(web: Web, bodies: Bodies | Pictures, seed: int = 0) -> Iterator[str]:
    """Yield URLs without end; each hundred of them has exactly the shares of the mix, shuffled."""
    chance = random.Random(seed)
    hundred = [behaviour for behaviour, share in _SHARES.items() for _ in range(share)]
    number = 0
    while True:
        chance.shuffle(hundred)
        for behaviour in hundred:
            yield _url(web, behaviour, bodies.draw(chance), number, chance)
            number += 1


def good_url(web: Web, bodies: Bodies | Pictures, number: int, chance: random.Random) -> str:
    """Make a URL on one of the good hosts."""
    return _url(web, Behaviour.GOOD, bodies.draw(chance), number, chance)


def dead_url(hosts: Sequence[str], number: int) -> str:
    """Make a URL on one of the dead hosts, which take turns."""
    return f"http://{hosts[number % len(hosts)]}/{DEAD}/0/{number}"


def behaviour_of(url: str) -> str:
    """The behaviour of a URL's host."""
    return url.split("/", 4)[3]


def _url(web: Web, behaviour: str, body: int, number: int, chance: random.Random) -> str:
    if behaviour == DEAD:
        return dead_url([chance.choice(web.dead)], number)
    kind = Behaviour(behaviour)
    first = _FIRST_BAD_HOST.get(kind)
    if first is None:
        host = chance.randrange(web.good_hosts)
    else:
        hosts = web.bad_hosts * (_BUSY_HOSTS_PER_BAD_HOST if kind is Behaviour.BUSY else 1)
        host = first + (chance.randrange(hosts) if hosts else number)
    return web.farm.url(kind, host=host, body=body, number=number)
