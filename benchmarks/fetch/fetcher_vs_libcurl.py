"""What does an image cost the fetching process, compared with libcurl's multi interface on the same URLs?

Each client fetches the same images with the same number of transfers at once, in a process of its own, from a server in
another one: over a new connection for each image, to a host that closes it afterwards, and over kept-alive connections
to one host. libcurl is driven in two ways: its multi interface with ``select``, and the event-driven variant of that,
``multi_socket``, with epoll. User and system CPU time is measured.
"""

from __future__ import annotations

import argparse
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
_TARGET = 1.25
_DETAILS = ("elapsed_s", "images_per_s", "descriptors_peak", "peak_mib", OTHERS_SHARE)


def main() -> int:
    """Measure, print and save; return 1 if an image did not arrive."""
    arguments = _arguments()
    with HostFarm(tuple(arguments.delay_ms)) as farm:
        workloads = _workloads(farm, arguments)
        if arguments.profile:
            _profile(workloads["fresh"])
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
        "--profile", action="store_true", help="instead, show what the fetcher's functions cost with new connections"
    )
    return parser.parse_args()


def _workloads(farm: HostFarm, arguments: argparse.Namespace) -> Mapping[str, Workload]:
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
    return {"fresh": Workload(fresh, policy, is_fresh=True), "kept alive": Workload(kept, policy)}


def _measure(case: str, kind: RunKind, module: str, workload: Workload) -> Run:
    done = run_in_subprocess(module, workload)
    return Run(case, kind, done.cpu_us, done.details(), done.outcomes())


def _comparison(record: Record, way: str) -> str:
    multi, multi_socket = (record.ratio(f"{way}: datafetch", f"{way}: {rival}") for rival in (_MULTI, _MULTI_SOCKET))
    target = f" (target: at most {_TARGET}, {'holds' if multi <= _TARGET else 'MISSED'})" if way == "fresh" else ""
    return (
        f"{way}: datafetch takes {multi:.2f} × the CPU time of libcurl's multi interface{target}, "
        f"and {multi_socket:.2f} × that of its event-driven flavour, multi_socket"
    )


def _profile(workload: Workload) -> None:
    with TemporaryDirectory(prefix="datafetch-benchmark-") as name:
        profile = Path(name) / "profile"
        run_in_subprocess(DATAFETCH, Workload(workload.urls, workload.policy, workload.is_fresh, profile))
        show_costs(profile, len(workload.urls), "the fetching process")


if __name__ == "__main__":
    sys.exit(main())
