"""Does the fetcher get every image out of a hostile mix, and hardly later than if all URLs were good?

Of the mix, 70 % of the URLs are good, on many hosts; 15 % are gone (404); 5 % are on dead hosts, of which half refuse
connections and half never accept one; 3 % are tarpits, which never answer; 3 % are turned away at first (429, then
200); 2 % are reset; 2 % send a byte a second. The mix is fetched, and then its good URLs alone. Every image that can be
had must arrive, including those that were turned away at first. The mix may take 1.25 times as long as the good URLs
alone, plus one deadline.
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice

from benchmarks.bad_hosts import lost, run_in_turn, time_claim
from benchmarks.dead_ends import dead_ends
from benchmarks.host_farm import Behaviour, HostFarm
from benchmarks.record import OTHERS_SHARE, Record, kinds
from benchmarks.url_mix import Bodies, Web, add_options, behaviour_of, hostile_mix, policy_of

_MIX = "the mix"
_GOOD = "the good ones alone"
_DETAILS = ("last_ok_s", "requests", "cpu_us", "descriptors_peak", "peak_mib", OTHERS_SHARE)


def main() -> int:
    """Measure, print and save; return 1 if an image that can be had did not arrive."""
    arguments = _arguments()
    half = max(1, arguments.dead_hosts // 2)
    with HostFarm(tuple(arguments.delay_ms)) as farm, dead_ends(refusing=half, silent=half) as dead:
        web = Web(farm, dead.hosts, arguments.good_hosts, arguments.bad_hosts)
        smallest, largest = arguments.body_kb
        mix = list(islice(hostile_mix(web, Bodies(smallest * 1000, largest * 1000), arguments.seed), arguments.urls))
        cases = {_MIX: mix, _GOOD: [url for url in mix if behaviour_of(url) == Behaviour.GOOD]}
        rounds = kinds(arguments.warm_ups, arguments.runs)
        runs = run_in_turn(cases, policy_of(arguments), rounds, lambda done: done.tally.elapsed_s)
    record = Record("hostile_mix", "time", "s", vars(arguments), runs)
    claim = time_claim(record, _MIX, _GOOD, arguments.timeout_s)
    record.show(_DETAILS, [claim, f"images that could be had and were not: {lost(runs)}"])
    return 1 if lost(runs) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=0, help="unmeasured runs of each before those")
    parser.add_argument("--urls", type=int, default=20_000, help="URLs in the mix")
    add_options(parser, good_hosts=2000)
    parser.add_argument("--dead-hosts", type=int, default=8, help="hosts that can't be connected to")
    parser.add_argument("--body-kb", type=int, nargs=2, default=(10, 100), help="the smallest and the largest body")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
