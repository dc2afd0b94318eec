"""How much later do 200 good images arrive when other hosts send bodies in chunks of a few bytes?

The good images come from one host, with the usual number of requests to a host. They are fetched alone, and shuffled
with as many bodies of 8 to 30 MB, in chunks of one byte or of two to six, from a few hosts or from one host each. Every
such chunk costs CPU time: a client that keeps reading has none left for the good images, and blames their host for the
delay. Every good image must arrive, and the last one at most 1.5 times as late as when they are fetched alone.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence

from benchmarks.bad_hosts import lost, run_in_turn
from benchmarks.fetch.subprocess_client import CompletedWorkload
from benchmarks.host_farm import Behaviour, HostFarm
from benchmarks.record import OTHERS_SHARE, Record, kinds
from datafetch.fetch import FetchPolicy

_ALONE = "alone"
_MAX_RATIO = 1.5
_FIRST_COSTLY_HOST = 1 << 20
_CHUNKS = {Behaviour.ONE_BYTE_CHUNKS: "beside chunks of 1 byte", Behaviour.SMALL_CHUNKS: "beside chunks of 2 to 6"}
_COSTLY_BYTES = (8_000_000, 30_000_000)
_DETAILS = ("elapsed_s", "cpu_us", "requests", "peak_mib", OTHERS_SHARE)


def main() -> int:
    """Measure, print and save; return 1 if a good image did not arrive."""
    arguments = _arguments()
    policy = FetchPolicy(connections=arguments.connections or None, allow_net=("127.0.0.0/8",))
    with HostFarm(tuple(arguments.delay_ms)) as farm:
        cases = _cases(farm, arguments)
        runs = run_in_turn(cases, policy, kinds(arguments.warm_ups, arguments.runs), CompletedWorkload.last_ok_s)
    record = Record("tiny_chunks", "the last good image", "s", vars(arguments), runs)
    claims = [_claim(record, case) for case in cases if case != _ALONE]
    record.show(_DETAILS, [*claims, f"images that could be had and were not: {lost(runs)}"])
    return 1 if lost(runs) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=0, help="unmeasured runs of each before those")
    parser.add_argument("--good", type=int, default=200, help="good images")
    parser.add_argument("--costly", type=int, default=200, help="bodies in chunks of one byte")
    parser.add_argument("--costly-hosts", type=int, default=8, help="hosts of them, where they are few")
    parser.add_argument("--connections", type=int, default=0, help="requests open at once; 0 for auto")
    parser.add_argument(
        "--delay-ms", type=float, nargs=2, default=(200.0, 300.0), help="the server's shortest and longest latency"
    )
    return parser.parse_args()


def _cases(farm: HostFarm, arguments: argparse.Namespace) -> Mapping[str, Sequence[str]]:
    chance = random.Random(0)
    good = [farm.url(Behaviour.GOOD, host=0, body=50_000, number=number) for number in range(arguments.good)]
    cases = {_ALONE: good}
    for hosts in (arguments.costly_hosts, arguments.costly):
        for behaviour, chunks in _CHUNKS.items():
            costly = [
                farm.url(
                    behaviour,
                    host=_FIRST_COSTLY_HOST + number % hosts,
                    body=chance.randint(*_COSTLY_BYTES),
                    number=number,
                )
                for number in range(arguments.costly)
            ]
            urls = good + costly
            chance.shuffle(urls)
            cases[f"{chunks}, {hosts} hosts"] = urls
    return cases


def _claim(record: Record, case: str) -> str:
    ratio = record.ratio(case, _ALONE)
    missing = lost([run for run in record.runs if run.case == case])
    verdict = "holds" if ratio <= _MAX_RATIO and not missing else "MISSED"
    return f"{case}: {ratio:.2f} × {_ALONE}, {missing} good ones lost (target: at most {_MAX_RATIO}, none; {verdict})"


if __name__ == "__main__":
    sys.exit(main())
