"""What does an image cost the fetching process, compared with libcurl's multi interface on the same URLs?

Each client fetches the same images with the same number of transfers at once, in a process of its own, from a server in
another one: over a new connection for each image, to a host that closes it afterwards; over kept-alive connections to
one host; and over a new TLS connection for each image, to a few hosts whose certificates are verified. libcurl is
driven in two ways: its multi interface with ``select``, and the event-driven variant of that, ``multi_socket``, with
epoll. User and system CPU time is measured.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.fetch.subprocess_client import DATAFETCH, Workload, run_in_subprocess
from benchmarks.host_farm import Behaviour, HostFarm
from benchmarks.profiling import show_costs
from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from datafetch.fetch import FetchPolicy
from datafetch.model.outcome import OK

_MULTI = "libcurl, multi"
_MULTI_SOCKET = "libcurl, multi_socket"
_MODULES = {
    "datafetch": DATAFETCH,
    _MULTI: "benchmarks.fetch.client_libcurl_select",
    _MULTI_SOCKET: "benchmarks.fetch.client_libcurl_epoll",
}
# By case: whose CPU time datafetch is to be compared with, and how many times that it may take.
_TARGETS = {"fresh": (_MULTI_SOCKET, 1.25), "kept alive": (_MULTI_SOCKET, 1.7), "fresh, HTTPS": (_MULTI, 1.3)}
_TLS_HOSTS = 250  # the first connection to each takes a full handshake, and later ones may resume a session
_DETAILS = ("elapsed_s", "images_per_s", "descriptors_peak", "peak_mib", OTHERS_SHARE)


def main() -> int:
    """Measure, print and save; return 1 if an image did not arrive."""
    arguments = _arguments()
    delay_ms = tuple(arguments.delay_ms)
    with TemporaryDirectory(prefix="datafetch-benchmark-") as folder:
        authority = Path(folder) / "authority.pem"
        os.environ["SSL_CERT_FILE"] = str(authority)  # for the processes that fetch
        with HostFarm(delay_ms) as farm, HostFarm(delay_ms, authority) as secure:
            return _compare(_workloads(farm, secure, arguments), arguments)


def _compare(workloads: Mapping[str, Workload], arguments: argparse.Namespace) -> int:
    if arguments.profile:
        _profile(workloads[arguments.profile])
        return 0
    runs = [
        _measure(f"{way}: {fetcher}", kind, module, workload)
        for kind in kinds(arguments.warm_ups, arguments.runs)
        for way, workload in workloads.items()
        for fetcher, module in _MODULES.items()
    ]
    record = Record("fetcher_vs_libcurl", "CPU time", "us/image", vars(arguments), runs)
    record.show(_DETAILS, [_comparison(record, way) for way in workloads])
    return 0 if all(set(run.outcomes) == {OK} for run in runs) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=1, help="unmeasured runs of each before those")
    parser.add_argument("--images", type=int, default=5000, help="images a run")
    parser.add_argument("--connections", type=int, default=256, help="transfers at once")
    parser.add_argument("--body-kb", type=int, nargs=2, default=(10, 100), help="the smallest and the largest body")
    parser.add_argument(
        "--delay-ms", type=float, nargs=2, default=(50.0, 200.0), help="the server's shortest and longest latency"
    )
    parser.add_argument(
        "--profile", choices=_TARGETS, help="instead, show what the fetcher's functions cost in one of the cases"
    )
    return parser.parse_args()


def _workloads(farm: HostFarm, secure: HostFarm, arguments: argparse.Namespace) -> Mapping[str, Workload]:
    sizes = random.Random(0)
    smallest, largest = arguments.body_kb
    sizes_bytes = [sizes.randint(smallest, largest) * 1000 for _ in range(arguments.images)]
    policy = FetchPolicy(
        connections=arguments.connections, per_host=arguments.connections, allow_net=("127.0.0.0/8",), retries=0
    )
    fresh = [
        farm.url(Behaviour.ONCE, host=number, body=size_bytes, number=number)
        for number, size_bytes in enumerate(sizes_bytes)
    ]
    kept = [
        farm.url(Behaviour.GOOD, host=0, body=size_bytes, number=number)
        for number, size_bytes in enumerate(sizes_bytes)
    ]
    over_tls = [
        secure.url(Behaviour.ONCE, host=number % _TLS_HOSTS, body=size_bytes, number=number)
        for number, size_bytes in enumerate(sizes_bytes)
    ]
    return {
        "fresh": Workload(fresh, policy, is_fresh=True),
        "kept alive": Workload(kept, policy),
        "fresh, HTTPS": Workload(over_tls, policy, is_fresh=True),
    }


def _measure(case: str, kind: RunKind, module: str, workload: Workload) -> Run:
    done = run_in_subprocess(module, workload)
    return Run(case, kind, done.cpu_us, done.details(), done.outcomes())


def _comparison(record: Record, way: str) -> str:
    ratios = {rival: record.ratio(f"{way}: datafetch", f"{way}: {rival}") for rival in (_MULTI, _MULTI_SOCKET)}
    rival, target = _TARGETS[way]
    holds = "holds" if ratios[rival] <= target else "MISSED"
    return (
        f"{way}: datafetch takes {ratios[_MULTI]:.2f} × the CPU time of libcurl's multi interface, and "
        f"{ratios[_MULTI_SOCKET]:.2f} × that of its event-driven flavour, multi_socket "
        f"(target: at most {target} × {rival.removeprefix('libcurl, ')}, {holds})"
    )


def _profile(workload: Workload) -> None:
    with TemporaryDirectory(prefix="datafetch-benchmark-") as name:
        profile = Path(name) / "profile"
        run_in_subprocess(DATAFETCH, Workload(workload.urls, workload.policy, workload.is_fresh, profile))
        show_costs(profile, len(workload.urls), "the fetching process")


if __name__ == "__main__":
    sys.exit(main())
