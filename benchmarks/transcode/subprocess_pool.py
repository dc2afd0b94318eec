"""Transcode bodies through one pool in a child process, and measure what it costs.

Rules: each workload has a child process of its own, so that CPU time and processes left behind are those of that pool
alone. The clocks start when every codec process has warmed up. The counters are the kernel's, read at start and end.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import psutil
import uvloop

from benchmarks.cpu_clock import CpuClock, CpuSpent
from benchmarks.record import OTHERS_SHARE
from benchmarks.transcode.poison import POISON
from datafetch.model.outcome import OK, Encoded, Outcome
from datafetch.process.child import child_command
from datafetch.transcode import ImageSpec

Codec: TypeAlias = Callable[[bytes, ImageSpec], Outcome]
"""A module-level function that decodes and encodes one image."""

Transcode: TypeAlias = Callable[[bytes], Awaitable[Outcome]]
"""A machinery, as its caller sees it: takes one body, and is awaited for its outcome."""

UNFINISHED = "unfinished"
"""The outcome of an image that had not ended at the deadline."""

_GRACE_S = 2.0  # for processes to end after they were told to, or after their parent has ended
_CLOSING_S = 30.0  # a machinery that takes longer to close is considered to hang
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class PoolWorkload:
    """What to transcode, and how.

    Attributes:
        machinery: The name in ``pool_machinery`` of the machinery that hands over the bodies.
        paths: The pictures, which take turns.
        images: The number of images, besides those of the warm-up, which are as many as are in flight.
        processes: The number of codec processes.
        in_flight: The number of tasks that await one image each.
        codec: The codec, a module-level function.
        spec: What the codec writes.
        poison_every: One body in this many kills the process that works on it; 0 for none.
        deadline_s: The time after which the run is given up.
    """

    machinery: str
    paths: Sequence[Path]
    images: int
    processes: int
    in_flight: int
    codec: Codec
    spec: ImageSpec
    poison_every: int = 0
    deadline_s: float = 300.0

    def is_poison(self, number: int) -> bool:
        """Whether this image is to kill the process that works on it."""
        return self.poison_every > 0 and (number + 1) % self.poison_every == 0


Machinery: TypeAlias = Callable[[PoolWorkload], AbstractAsyncContextManager[Transcode]]
"""Opens a pool for a workload."""


@dataclass(frozen=True, slots=True)
class PoolTally:
    """The result for each image.

    Attributes:
        outcomes: The outcome of each image, in order: ``ok``, the kind of failure, or ``unfinished``.
        spent: What the pool's process and its children spent, from the first image to the end of the last.
        children_left: The number of child processes that were still running two seconds after the pool was closed.
        orphans_left: The number of processes that were still running two seconds after their parent had ended.
        is_closed: Whether the pool could be closed.
    """

    outcomes: Sequence[str]
    spent: CpuSpent
    children_left: int = 0
    orphans_left: int = 0
    is_closed: bool = False

    def details(self) -> dict[str, float]:
        """The details to keep in a run's record."""
        return {
            "parent_cpu_us": self.spent.own_s / len(self.outcomes) * 1e6,
            "codec_cpu_ms": self.spent.children_s / len(self.outcomes) * 1e3,
            "elapsed_s": self.spent.elapsed_s,
            "left_behind": self.children_left + self.orphans_left,
            "closed": float(self.is_closed),
            OTHERS_SHARE: self.spent.others_share * 100,
        }

    def counts(self) -> Mapping[str, int]:
        """Images by outcome."""
        return dict(Counter(self.outcomes))


def run_in_subprocess(module: str, workload: PoolWorkload) -> PoolTally:
    """Start a module's ``main()``, which calls ``pool_main``, in a child process; return its results by its deadline.

    Raises:
        subprocess.CalledProcessError: The child failed.
    """
    # A process left without a parent becomes this process's child, so that it can be counted and ended.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with TemporaryDirectory(prefix="datafetch-benchmark-") as name:
        request, result = Path(name) / "workload", Path(name) / "tally"
        request.write_bytes(pickle.dumps(workload))
        with subprocess.Popen([*child_command(module), str(request), str(result)]) as process:
            try:
                status = process.wait(workload.deadline_s * 2 + _CLOSING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                status = 0
        orphans_left = _end_all()
        if status:
            raise subprocess.CalledProcessError(status, module)
        tally = pickle.loads(result.read_bytes()) if result.exists() else _unfinished(workload)
        return replace(tally, orphans_left=orphans_left)


def _unfinished(workload: PoolWorkload) -> PoolTally:
    """Make the tally of a run that was killed before it wrote one."""
    return PoolTally([UNFINISHED] * workload.images, CpuSpent(math.inf, 0, 0, 0))


def _end_all() -> int:
    """Wait for the processes below this one, kill those that stay, and return how many did."""
    _, left = psutil.wait_procs(psutil.Process().children(recursive=True), _GRACE_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left)
    return len(left)


def pool_main(machineries: Mapping[str, Machinery]) -> None:
    """Transcode the workload named on the command line, and write the tally next to it; called in the child process."""
    request, result = map(Path, sys.argv[1:])
    workload: PoolWorkload = pickle.loads(request.read_bytes())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        tally = runner.run(_transcode_all(machineries[workload.machinery], workload, partial(_keep, result)))
    processes = psutil.Process().children(recursive=True)
    _, left = psutil.wait_procs([process for process in processes if not _is_tracker(process)], _GRACE_S)
    _keep(result, replace(tally, children_left=len(left), is_closed=True))
    for process in left:
        process.kill()


def _keep(result: Path, tally: PoolTally) -> None:
    result.write_bytes(pickle.dumps(tally))


def _is_tracker(process: psutil.Process) -> bool:
    """Whether a process is multiprocessing's resource tracker, which by design runs until its parent ends."""
    with suppress(psutil.NoSuchProcess):
        return "resource_tracker" in " ".join(process.cmdline())
    return False


async def _transcode_all(machinery: Machinery, workload: PoolWorkload, keep: Callable[[PoolTally], None]) -> PoolTally:
    pictures = [path.read_bytes() for path in workload.paths]
    warm_up = [pictures[number % len(pictures)] for number in range(workload.in_flight)]
    bodies = [
        POISON if workload.is_poison(number) else pictures[number % len(pictures)] for number in range(workload.images)
    ]
    async with machinery(workload) as transcode:
        await _pass(transcode, warm_up, workload)
        clock = CpuClock()
        outcomes = await _pass(transcode, bodies, workload)
        tally = PoolTally(outcomes, clock.stop())
        keep(tally)  # in case the pool can't be closed
    return tally


async def _pass(transcode: Transcode, bodies: Sequence[bytes], workload: PoolWorkload) -> Sequence[str]:
    """Transcode the bodies; each task takes the next one when it has the outcome of its last."""
    outcomes = [UNFINISHED] * len(bodies)
    numbered = iter(enumerate(bodies))
    with suppress(TimeoutError):
        async with asyncio.timeout(workload.deadline_s), asyncio.TaskGroup() as group:
            for _ in range(workload.in_flight):
                group.create_task(_work(transcode, numbered, outcomes))
    return outcomes


async def _work(transcode: Transcode, numbered: Iterator[tuple[int, bytes]], outcomes: list[str]) -> None:
    for number, body in numbered:
        outcomes[number] = name_of(await transcode(body))


def name_of(outcome: Outcome) -> str:
    """The name of an outcome: ``ok`` or the kind of failure."""
    return OK if isinstance(outcome, Encoded) else outcome.kind.value
