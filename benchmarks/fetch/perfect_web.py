"""Does the fetcher lose an image when no host makes a mistake, and how many descriptors does it hold?

20,000 images are fetched over more and more connections, and over the number that the fetcher finds (auto). There are
these cases: each image from its own host, 20,000 loopback addresses that would all keep the connection; all images
from one host, with the usual number of requests to a host, and with the number of connections; and each image from a
host that closes the connection after its answer, with small images and a tenth as many large ones. ``--tls`` does the
same over HTTPS, and the fetcher verifies each host's certificate. Any failure would be ours, so there must be none, and
no second attempt hides one.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.fetch.subprocess_client import DATAFETCH, Workload, run_in_subprocess
from benchmarks.host_farm import Behaviour, HostFarm
from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from datafetch.fetch import FetchPolicy
from datafetch.model.outcome import OK

_AUTO = "auto"
_AUTO_PER_HOST = 1024  # more than auto can be expected to find on loopback
_SMALL_IMAGES_PER_LARGE_ONE = 10
_DETAILS = ("cpu_us", "descriptors_peak", "peak_mib", "elapsed_s", OTHERS_SHARE)


def main() -> int:
    """Measure, print and save; return 1 if an image failed."""
    arguments = _arguments()
    with TemporaryDirectory(prefix="datafetch-benchmark-") as folder:
        authority = Path(folder) / "authority.pem" if arguments.tls else None
        if authority:
            os.environ["SSL_CERT_FILE"] = str(authority)  # for the process that fetches
        with HostFarm(tuple(arguments.delay_ms), authority) as farm:
            cases = _Cases(farm, arguments)
            runs = [
                _measure(case, kind, workload)
                for kind in kinds(arguments.warm_ups, arguments.runs)
                for connections in arguments.connections
                for case, workload in cases.over(connections)
            ]
    record = Record("perfect_web", "speed", "images/s", vars(arguments), runs)
    failed = sum(count for run in runs for outcome, count in run.outcomes.items() if outcome != OK)
    record.show(_DETAILS, [f"over {'HTTPS' if arguments.tls else 'HTTP'}; failures over all runs: {failed}"])
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=0, help="unmeasured runs of each before those")
    parser.add_argument("--images", type=int, default=20_000, help="images a run")
    parser.add_argument("--body-kb", type=int, default=20, help="size of each")
    parser.add_argument("--large-kb", type=int, default=1000, help="size of each large one")
    parser.add_argument("--tls", action="store_true", help="over HTTPS")
    parser.add_argument(
        "--connections", nargs="+", default=["64", "256", "1024", _AUTO], help="requests open at once, or auto"
    )
    parser.add_argument(
        "--delay-ms", type=float, nargs=2, default=(0.0, 0.0), help="the server's shortest and longest latency"
    )
    return parser.parse_args()


class _Cases:
    """The workloads of each case."""

    def __init__(self, farm: HostFarm, arguments: argparse.Namespace) -> None:
        self._farm = farm
        self._images = arguments.images
        small_bytes, large_bytes = arguments.body_kb * 1000, arguments.large_kb * 1000
        self._one = [farm.url(Behaviour.GOOD, host=0, body=small_bytes, number=n) for n in range(self._images)]
        self._fresh = self._a_host_each(Behaviour.GOOD, small_bytes, self._images)
        self._closing = self._a_host_each(Behaviour.ONCE, small_bytes, self._images)
        self._large = self._a_host_each(Behaviour.ONCE, large_bytes, self._images // _SMALL_IMAGES_PER_LARGE_ONE)

    def over(self, connections: str) -> Iterator[tuple[str, Workload]]:
        """Yield each case with its workload, for this number of requests open at once."""
        wanted = None if connections == _AUTO else int(connections)
        usual = FetchPolicy(connections=wanted, allow_net=("127.0.0.0/8",), retries=0)
        raised = replace(usual, per_host=wanted or _AUTO_PER_HOST)
        yield f"{connections} connections, a host each", Workload(self._fresh, usual)
        yield f"{connections} connections, one host, {usual.per_host} to it", Workload(self._one, usual)
        yield f"{connections} connections, one host, all to it", Workload(self._one, raised)
        yield f"{connections} connections, a host each that closes", Workload(self._closing, usual)
        yield f"{connections} connections, a host each that closes, large images", Workload(self._large, usual)

    def _a_host_each(self, behaviour: Behaviour, size_bytes: int, images: int) -> list[str]:
        return [self._farm.url(behaviour, host=n, body=size_bytes, number=n) for n in range(images)]


def _measure(case: str, kind: RunKind, workload: Workload) -> Run:
    done = run_in_subprocess(DATAFETCH, workload)
    details = done.details()
    return Run(case, kind, details["images_per_s"], details, done.outcomes())


if __name__ == "__main__":
    sys.exit(main())
