"""The webs that the URLs lead to: a perfect one, one with a heavy tail of latency, and a hostile one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from benchmarks.dead_ends import dead_ends
from benchmarks.host_farm import Behaviour, HeavyTail, HostFarm
from benchmarks.rivals.corpus import Corpus
from benchmarks.rivals.origin import ADDRESSES, Hosts, Scheme, picture_origin
from benchmarks.url_mix import OBTAINABLE, Pictures, Web, behaviour_of, hostile_mix

ALL = ""
"""The label of the URLs where there are no others."""
OBTAINABLE_ALONE = ", without the bad URLs"
"""The label of those whose image can be had, without the others."""

_TAIL = HeavyTail(median_ms=120.0, sigma=1.0)  # the slowest hundredth takes ten times the median or longer
_DEAD_HOSTS = 4  # that refuse connections, and as many that never accept one
_BAD_HOSTS = 8


@dataclass(frozen=True, slots=True)
class Served:
    """What is served while a web is up.

    Attributes:
        urls: Label → URLs.
        is_fresh: Whether each URL needs a connection of its own.
        requests: Returns the number of requests so far.
        obtainable: The number of images that can be had.
        parameters: What the record says about the web.
        bundle: The file of the authorities to trust; None for those of the system.
    """

    urls: Mapping[str, Sequence[str]]
    is_fresh: bool
    requests: Callable[[], int]
    obtainable: int
    parameters: Mapping[str, object]
    bundle: Path | None = None


WebOf = Callable[[Corpus, Path, int], AbstractContextManager[Served]]
"""Starts a web with the pictures of a corpus, with a folder for its files, and this number of URLs."""


def perfect_web(scheme: Scheme, hosts: Hosts) -> WebOf:
    """A web that makes no mistake."""
    return partial(_perfect, scheme, hosts)


@contextmanager
def _perfect(scheme: Scheme, hosts: Hosts, corpus: Corpus, folder: Path, count: int) -> Iterator[Served]:
    with picture_origin(folder, corpus.folder, corpus.names) as origin:
        urls = [origin.url(number, scheme=scheme, hosts=hosts) for number in range(count)]
        parameters = {"origin": origin.name, "scheme": scheme, "hosts": hosts, "authorities": origin.authorities}
        yield Served({ALL: urls}, hosts is Hosts.FRESH, origin.requests, count, parameters, origin.bundle)


@contextmanager
def slow_web(corpus: Corpus, folder: Path, count: int) -> Iterator[Served]:  # noqa: ARG001 - it has no files
    """A web whose latency has a heavy tail."""
    with HostFarm(_TAIL, pictures=corpus.folder) as farm:
        urls = [
            farm.url(
                Behaviour.ONCE,
                host=ADDRESSES[number % len(ADDRESSES)],
                body=number % len(corpus.names),
                number=number,
            )
            for number in range(count)
        ]
        parameters = {"origin": "host farm", "median_latency_ms": _TAIL.median_ms, "latency_sigma": _TAIL.sigma}
        yield Served({ALL: urls}, True, farm.requests, count, parameters)


@contextmanager
def hostile_web(corpus: Corpus, folder: Path, count: int) -> Iterator[Served]:  # noqa: ARG001 - it has no files
    """A web of which 30 % are bad, and the rest of it alone."""
    with HostFarm(pictures=corpus.folder) as farm, dead_ends(_DEAD_HOSTS, _DEAD_HOSTS) as dead:
        web = Web(farm, dead.hosts, good_hosts=count, bad_hosts=_BAD_HOSTS)
        urls = list(islice(hostile_mix(web, Pictures(len(corpus.names))), count))
        obtainable = [url for url in urls if behaviour_of(url) in OBTAINABLE]
        labelled = {ALL: urls, OBTAINABLE_ALONE: obtainable}
        yield Served(labelled, True, farm.requests, len(obtainable), {"origin": "host farm"})
