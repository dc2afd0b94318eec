"""Does the fetcher lose an image when no host makes a mistake, and how many descriptors does it hold?

20,000 images over more and more connections, and with as many as the fetcher finds right (auto): each from a host of
its own, 20,000 loopback addresses that would all keep the connection; and all from one host, with the usual number of
requests to a host and with as many as there are connections. Every failure is ours, so there must be none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from errand import Errand, send
from record import OTHERS_SHARE, Record, Run, RunKind, kinds
from swarm import Manner, Swarm

from datafetch.fetch import FetchPolicy
from datafetch.model import OK

_AUTO = "auto"
_AUTO_PER_HOST = 1024  # more than auto can be expected to find on loopback
_DETAILS = ("cpu_us", "descriptors_peak", "peak_mib", "elapsed_s", OTHERS_SHARE)


def main() -> int:
    """Measure, print, keep; 1 when an image failed."""
    arguments = _arguments()
    with Swarm(tuple(arguments.delay_ms)) as swarm:
        fresh = _urls(swarm, arguments, range(arguments.images))
        one = _urls(swarm, arguments, [0] * arguments.images)
        runs = [
            _measure(case, kind, errand)
            for kind in kinds(arguments.warm_ups, arguments.runs)
            for connections in arguments.connections
            for case, errand in _cases(fresh, one, connections)
        ]
    record = Record("perfect_web", "speed", "images/s", vars(arguments), runs)
    failed = sum(count for run in runs for outcome, count in run.outcomes.items() if outcome != OK)
    record.show(_DETAILS, [f"failures over all runs: {failed}"])
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=0, help="runs of each before that")
    parser.add_argument("--images", type=int, default=20_000, help="images a run")
    parser.add_argument("--body-kb", type=int, default=20, help="size of each")
    parser.add_argument(
        "--connections", nargs="+", default=["64", "256", "1024", _AUTO], help="requests open at once, or auto"
    )
    parser.add_argument(
        "--delay-ms", type=float, nargs=2, default=(0.0, 0.0), help="the server's shortest and longest latency"
    )
    return parser.parse_args()


def _urls(swarm: Swarm, arguments: argparse.Namespace, hosts: Sequence[int]) -> list[str]:
    size_bytes = arguments.body_kb * 1000
    return [
        swarm.url(Manner.GOOD, host=host, size_bytes=size_bytes, number=number) for number, host in enumerate(hosts)
    ]


def _cases(fresh: Sequence[str], one: Sequence[str], connections: str) -> Iterator[tuple[str, Errand]]:
    wanted = None if connections == _AUTO else int(connections)
    usual = FetchPolicy(connections=wanted, allow_net=("127.0.0.0/8",))
    raised = FetchPolicy(connections=wanted, per_host=wanted or _AUTO_PER_HOST, allow_net=("127.0.0.0/8",))
    yield f"{connections} connections, a host each", Errand(fresh, usual)
    yield f"{connections} connections, one host, {usual.per_host} to it", Errand(one, usual)
    yield f"{connections} connections, one host, all to it", Errand(one, raised)


def _measure(case: str, kind: RunKind, errand: Errand) -> Run:
    done = send("by_datafetch", errand)
    details = done.details()
    return Run(case, kind, details["images_per_s"], details, done.outcomes())


if __name__ == "__main__":
    sys.exit(main())
