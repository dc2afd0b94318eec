"""Fetch a list of URLs in a child process, by datafetch or another client, and measure what it costs.

Rules: one workload, one child process, whichever client fetches it, so that CPU time, memory and descriptors are those
of that client alone. The child's clocks start once it is loaded and has its URLs.
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


@dataclass(frozen=True, slots=True)
class Workload:
    """What to fetch, and how.

    Attributes:
        urls: One image each.
        policy: As the operator would set it.
        is_fresh: Whether each URL gets a connection of its own.
        profile: The file for the output of ``cProfile``; None for a run at full speed.
    """

    urls: Sequence[str]
    policy: FetchPolicy
    is_fresh: bool = False
    profile: Path | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """The result for each URL.

    Attributes:
        outcomes: Of each URL, in their order: ``ok`` or the kind of failure.
        ended_s: When each had ended, since the start.
        requests: Sent, retries included.
        elapsed_s: From the first URL to the end of the last.
        cpu_s: Of the process in that time.
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
        """URLs by outcome; with a group, by that and their outcome: ``gone http_status``."""
        counts: dict[str, int] = {}
        for url, outcome in zip(self.workload.urls, self.tally.outcomes, strict=True):
            label = f"{group(url)} {outcome}" if group else outcome
            counts[label] = counts.get(label, 0) + 1
        return dict(sorted(counts.items()))

    def last_ok_s(self) -> float:
        """When the last image had arrived."""
        pairs = zip(self.tally.outcomes, self.tally.ended_s, strict=True)
        return max((ended_s for outcome, ended_s in pairs if outcome == OK), default=0.0)

    def details(self) -> Mapping[str, float]:
        """What else is worth keeping of it."""
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
        order, result = Path(name) / "workload", Path(name) / "tally"
        order.write_bytes(pickle.dumps(workload))
        usage = watch([*child_command(module), str(order), str(result)])
        return CompletedWorkload(workload, pickle.loads(result.read_bytes()), usage)


def client_main(fetch_all: Callable[[Workload], Tally]) -> None:
    """In the child process: fetch the workload named on the command line, and write the tally next to it."""
    order, result = map(Path, sys.argv[1:])
    workload: Workload = pickle.loads(order.read_bytes())
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
