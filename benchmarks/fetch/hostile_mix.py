"""Does the fetcher get every image out of a hostile mix, and hardly later than if there were good ones alone?

15 % gone (404), 5 % on dead hosts (half refuse, half never accept), 3 % tarpits (never answer), 3 % first turned away
(429, then 200), 2 % reset, 2 % drip (a byte a second), 70 % good over many hosts: first the mix, then the good ones of
it alone. Every image that can be had must arrive, those turned away included; and the mix may take 1.25 times what the
good ones take, plus one deadline.
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice

from benchmarks.claims import lost, time_claim
from benchmarks.dead_ends import dead_ends
from benchmarks.fetch.subprocess_client import Workload, run_in_subprocess
from benchmarks.host_farm import Behaviour, HostFarm
from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from benchmarks.url_mix import Bodies, Web, behaviour_of, hostile_mix
from datafetch.fetch import FetchPolicy

_MIX = "the mix"
_GOOD = "the good ones alone"
_DETAILS = ("last_ok_s", "requests", "cpu_us", "descriptors_peak", "peak_mib", OTHERS_SHARE)


def main() -> int:
    """Measure, print, keep; 1 when an image that can be had did not arrive."""
    arguments = _arguments()
    half = max(1, arguments.dead_hosts // 2)
    with HostFarm(tuple(arguments.delay_ms)) as farm, dead_ends(refusing=half, silent=half) as dead:
        web = Web(farm, dead.hosts, arguments.good_hosts, 0 if arguments.spread else arguments.bad_hosts)
        smallest, largest = arguments.body_kb
        mix = list(islice(hostile_mix(web, Bodies(smallest * 1000, largest * 1000), arguments.seed), arguments.urls))
        cases = {_MIX: mix, _GOOD: [url for url in mix if behaviour_of(url) == Behaviour.GOOD]}
        policy = _policy(arguments)
        runs = [
            _measure(case, kind, Workload(urls, policy))
            for kind in kinds(arguments.warm_ups, arguments.runs)
            for case, urls in cases.items()
        ]
    record = Record("hostile_mix", "time", "s", vars(arguments), runs)
    claim = time_claim(record, _MIX, _GOOD, arguments.timeout_s)
    record.show(_DETAILS, [claim, f"images that could be had and were not: {lost(runs)}"])
    return 1 if lost(runs) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=0, help="runs of each before that")
    parser.add_argument("--urls", type=int, default=20_000, help="URLs in the mix")
    parser.add_argument("--seed", type=int, default=0, help="of the mix and its order")
    parser.add_argument("--connections", type=int, default=0, help="requests open at once; 0 for auto")
    parser.add_argument("--timeout-s", type=float, default=5.0, help="the deadline of an attempt")
    parser.add_argument("--connect-timeout-s", type=float, default=2.0, help="part of it for making the connection")
    parser.add_argument("--good-hosts", type=int, default=2000, help="hosts with the good ones and what is gone")
    parser.add_argument("--bad-hosts", type=int, default=8, help="hosts of each bad behaviour")
    parser.add_argument("--dead-hosts", type=int, default=8, help="hosts that can't be connected to")
    parser.add_argument("--spread", action="store_true", help="worst case: a host of its own for each bad URL")
    parser.add_argument("--body-kb", type=int, nargs=2, default=(10, 100), help="the smallest and the largest body")
    parser.add_argument(
        "--delay-ms", type=float, nargs=2, default=(50.0, 200.0), help="the server's shortest and longest latency"
    )
    return parser.parse_args()


def _policy(arguments: argparse.Namespace) -> FetchPolicy:
    return FetchPolicy(
        connections=arguments.connections or None,
        timeout_s=arguments.timeout_s,
        connect_timeout_s=arguments.connect_timeout_s,
        allow_net=("127.0.0.0/8",),
    )


def _measure(case: str, kind: RunKind, workload: Workload) -> Run:
    done = run_in_subprocess("benchmarks.fetch.client_datafetch", workload)
    return Run(case, kind, done.tally.elapsed_s, done.details(), done.outcomes(behaviour_of))


if __name__ == "__main__":
    sys.exit(main())
