"""Transcode bodies through one pool in a child process, and measure what it costs.

Rules: one workload, one child process, so that CPU time and processes left behind are those of that pool alone. The
clocks start when every codec process has worked already; the counters are the kernel's, read at start and end.
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
"""What a machinery is to its caller: one image, awaited."""

UNFINISHED = "unfinished"
"""The outcome of an image that had none when time was up."""

_GRACE_S = 2.0  # for processes to end after they were asked to, or after their parent has ended
_CLOSING_S = 30.0  # a machinery that takes longer to close is taken to hang
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class PoolWorkload:
    """What to transcode, and how.

    Attributes:
        machinery: What hands the bodies over, by its name in ``pool_machinery``.
        paths: Of the pictures, which take turns.
        images: How many; with the warm-up's, which is as many as are in flight.
        processes: Of the codec.
        in_flight: Tasks that await one image each.
        codec: A module-level function.
        spec: What comes out.
        poison_every: Each body whose number is a multiple of this kills the process that works on it; 0 for none.
        deadline_s: After which the run is given up.
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
        outcomes: Of each image, in order: ``ok``, the kind of failure, or ``unfinished``.
        spent: From the first image to the end of the last, by the process that hands over and by those below it.
        children_left: Processes below it that were still there two seconds after the pool was closed.
        orphans_left: Processes that were still there two seconds after the parent had ended.
        is_closed: Whether the pool could be closed.
    """

    outcomes: Sequence[str]
    spent: CpuSpent
    children_left: int = 0
    orphans_left: int = 0
    is_closed: bool = False

    def details(self) -> dict[str, float]:
        """What else is worth keeping of it."""
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
        order, result = Path(name) / "workload", Path(name) / "tally"
        order.write_bytes(pickle.dumps(workload))
        with subprocess.Popen([*child_command(module), str(order), str(result)]) as process:
            try:
                status = process.wait(workload.deadline_s * 2 + _CLOSING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                status = 0
        orphans_left = _end_all()
        if status:
            raise subprocess.CalledProcessError(status, module)
        tally = pickle.loads(result.read_bytes()) if result.exists() else _nothing(workload)
        return replace(tally, orphans_left=orphans_left)


def _nothing(workload: PoolWorkload) -> PoolTally:
    """The tally of a run that had to be killed before it had one."""
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
    """In the child process: transcode the workload named on the command line, and write the tally next to it."""
    order, result = map(Path, sys.argv[1:])
    workload: PoolWorkload = pickle.loads(order.read_bytes())
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
    """Whether it is the one that cleans up semaphores when its parent ends, which stays until then by design."""
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
        keep(tally)  # in case that the pool can't be closed
    return tally


async def _pass(transcode: Transcode, bodies: Sequence[bytes], workload: PoolWorkload) -> Sequence[str]:
    """Each task takes the next image when it has its last one's outcome."""
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
    """``ok`` or the kind of failure."""
    return OK if isinstance(outcome, Encoded) else outcome.kind.value
