"""How much longer do 10,000 URLs take when 3,000 of them are on three dead hosts?

Three cases: 7,000 good URLs on many hosts; these shuffled with 3,000 URLs on three hosts that refuse connections; and
shuffled with 3,000 on three hosts that never accept one. Every good image must arrive. Each of the last two cases may
take 1.25 times as long as the good URLs alone, plus one connect timeout, before which no client can know that a host is
dead.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence

from benchmarks.bad_hosts import lost, run_in_turn, time_claim
from benchmarks.dead_ends import DeadEnds, dead_ends
from benchmarks.host_farm import HostFarm
from benchmarks.record import OTHERS_SHARE, Record, kinds
from benchmarks.url_mix import Bodies, Web, dead_url, good_url
from datafetch.fetch import FetchPolicy

_GOOD = "the good ones alone"
_REFUSING = "with refusing hosts"
_SILENT = "with silent hosts"
_DETAILS = ("last_ok_s", "requests", "cpu_us", "descriptors_peak", OTHERS_SHARE)


def main() -> int:
    """Measure, print and save; return 1 if a good image did not arrive."""
    arguments = _arguments()
    policy = FetchPolicy(
        connections=arguments.connections or None,
        connect_timeout_s=arguments.connect_timeout_s,
        allow_net=("127.0.0.0/8",),
    )
    hosts = arguments.dead_hosts
    with HostFarm(tuple(arguments.delay_ms)) as farm, dead_ends(refusing=hosts, silent=hosts) as dead:
        rounds = kinds(arguments.warm_ups, arguments.runs)
        runs = run_in_turn(_cases(farm, dead, arguments), policy, rounds, lambda done: done.tally.elapsed_s)
    record = Record("dead_hosts", "time", "s", vars(arguments), runs)
    claims = [time_claim(record, case, _GOOD, arguments.connect_timeout_s) for case in (_REFUSING, _SILENT)]
    record.show(_DETAILS, [*claims, f"images that could be had and were not: {lost(runs)}"])
    return 1 if lost(runs) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=0, help="unmeasured runs of each before those")
    parser.add_argument("--good", type=int, default=7000, help="URLs that serve")
    parser.add_argument("--dead", type=int, default=3000, help="URLs on dead hosts")
    parser.add_argument("--dead-hosts", type=int, default=3, help="hosts of either dead kind")
    parser.add_argument("--good-hosts", type=int, default=2000, help="hosts of the good ones")
    parser.add_argument("--connections", type=int, default=256, help="requests open at once; 0 for auto")
    parser.add_argument("--connect-timeout-s", type=float, default=2.0, help="for making a connection")
    parser.add_argument(
        "--delay-ms", type=float, nargs=2, default=(50.0, 200.0), help="the server's shortest and longest latency"
    )
    return parser.parse_args()


def _cases(farm: HostFarm, dead: DeadEnds, arguments: argparse.Namespace) -> Mapping[str, Sequence[str]]:
    chance = random.Random(0)
    web = Web(farm, (), arguments.good_hosts, 0)
    bodies = Bodies(10_000, 100_000)
    good = [good_url(web, bodies, number, chance) for number in range(arguments.good)]
    cases = {_GOOD: good}
    for case, hosts in ((_REFUSING, dead.refusing), (_SILENT, dead.silent)):
        urls = good + [dead_url(hosts, number) for number in range(arguments.dead)]
        chance.shuffle(urls)
        cases[case] = urls
    return cases


if __name__ == "__main__":
    sys.exit(main())
