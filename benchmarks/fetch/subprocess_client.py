"""Fetch a list of URLs in a child process, with datafetch or another client, and measure what it costs.

Rules: each workload has a child process of its own, whichever client fetches it, so that CPU time, memory and
descriptors are those of that client alone. The child's clocks start once it has loaded its modules and its URLs.
"""

from __future__ import annotations

import cProfile
import pickle
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.meter import MIB, Usage, watch
from benchmarks.record import OTHERS_SHARE
from datafetch.fetch import FetchPolicy
from datafetch.model.outcome import OK
from datafetch.process.child import child_command

DATAFETCH = "benchmarks.fetch.client_datafetch"
"""The module of datafetch's own client."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What to fetch, and how.

    Attributes:
        urls: The URLs, of one image each.
        policy: The policy, as an operator would set it.
        is_fresh: Whether each URL gets a connection of its own.
        profile: The file for the output of ``cProfile``; None for a run at full speed.
    """

    urls: Sequence[str]
    policy: FetchPolicy
    is_fresh: bool = False
    profile: Path | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """The result of a workload.

    Attributes:
        outcomes: The outcome of each URL, in the order of the URLs: ``ok`` or the kind of failure.
        ended_s: When each URL ended, in seconds since the start.
        requests: The number of requests that were sent, retries included.
        elapsed_s: The time from the start to the end of the last URL.
        cpu_s: The CPU time of the process in that time.
    """

    outcomes: Sequence[str]
    ended_s: Sequence[float]
    requests: int
    elapsed_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class CompletedWorkload:
    """A workload, its results and its cost."""

    workload: Workload
    tally: Tally
    usage: Usage

    @property
    def cpu_us(self) -> float:
        """CPU microseconds of the fetching process for each URL."""
        return self.tally.cpu_s / len(self.workload.urls) * 1e6

    def outcomes(self, group: Callable[[str], str] | None = None) -> dict[str, int]:
        """Count the URLs by outcome.

        Args:
            group: Gives the group of a URL. The URLs are then counted by group and outcome, as in ``gone http_status``.
        """
        counts: dict[str, int] = {}
        for url, outcome in zip(self.workload.urls, self.tally.outcomes, strict=True):
            label = f"{group(url)} {outcome}" if group else outcome
            counts[label] = counts.get(label, 0) + 1
        return dict(sorted(counts.items()))

    def last_ok_s(self) -> float:
        """When the last image arrived, in seconds since the start."""
        pairs = zip(self.tally.outcomes, self.tally.ended_s, strict=True)
        return max((ended_s for outcome, ended_s in pairs if outcome == OK), default=0.0)

    def details(self) -> Mapping[str, float]:
        """The details to keep in a run's record."""
        return {
            "elapsed_s": self.tally.elapsed_s,
            "last_ok_s": self.last_ok_s(),
            "images_per_s": self.tally.outcomes.count(OK) / self.tally.elapsed_s,
            "cpu_us": self.cpu_us,
            "requests": self.tally.requests,
            "descriptors_peak": self.usage.descriptors_peak,
            "peak_mib": self.usage.parent_peak_bytes / MIB,
            OTHERS_SHARE: self.usage.others_share * 100,
        }


def run_in_subprocess(module: str, workload: Workload) -> CompletedWorkload:
    """Start a module's ``main()``, which calls ``client_main``, in a child process, and return its results.

    Raises:
        subprocess.CalledProcessError: The child failed.
    """
    with TemporaryDirectory(prefix="datafetch-benchmark-") as name:
        request, result = Path(name) / "workload", Path(name) / "tally"
        request.write_bytes(pickle.dumps(workload))
        usage = watch([*child_command(module), str(request), str(result)])
        return CompletedWorkload(workload, pickle.loads(result.read_bytes()), usage)


def client_main(fetch_all: Callable[[Workload], Tally]) -> None:
    """Fetch the workload named on the command line, and write the tally next to it; called in the child process."""
    request, result = map(Path, sys.argv[1:])
    workload: Workload = pickle.loads(request.read_bytes())
    profile = cProfile.Profile() if workload.profile else None
    tally = profile.runcall(fetch_all, workload) if profile else fetch_all(workload)
    if profile and workload.profile:
        profile.dump_stats(workload.profile)
    result.write_bytes(pickle.dumps(tally))


class Stopwatch:
    """Measures wall clock and CPU time from its creation, and when each URL ended."""

    def __init__(self, urls: int) -> None:
        self._outcomes = [""] * urls
        self._ended_s = [0.0] * urls
        self._cpu_before_s = time.process_time()
        self._started_s = time.perf_counter()

    def __len__(self) -> int:
        return len(self._outcomes)

    def record(self, number: int, outcome: str) -> None:
        """Record the outcome of a URL that ended just now."""
        self._outcomes[number] = outcome
        self._ended_s[number] = time.perf_counter() - self._started_s

    def tally(self, requests: int) -> Tally:
        """Stop the clocks and return everything recorded."""
        elapsed_s = time.perf_counter() - self._started_s
        cpu_s = time.process_time() - self._cpu_before_s
        return Tally(self._outcomes, self._ended_s, requests, elapsed_s, cpu_s)
