"""PoolErrand: bodies to be transcoded through one machinery by a process of its own, and what that cost it.

Rules: one errand, one child process, so that CPU time and what is left behind are its machinery's alone. The clocks
start when every codec process has worked already; the counters are the kernel's, read at the start and at the end.
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
from cpu_clock import CpuClock, CpuSpent
from poison import POISON
from record import OTHERS_SHARE

from datafetch.model.outcome import OK, Encoded, Outcome
from datafetch.process.child import child_command
from datafetch.transcode import ImageSpec

Codec: TypeAlias = Callable[[bytes, ImageSpec], Outcome]
"""A module-level function that decodes and encodes one image."""

Transcode: TypeAlias = Callable[[bytes], Awaitable[Outcome]]
"""What a machinery is to its caller: one image, awaited."""

UNFINISHED = "unfinished"
"""The outcome of an image that had none when time was up."""

_GRACE_S = 2.0  # for processes that are told to end, or find out that their parent has
_CLOSING_S = 30.0  # a machinery that takes longer to close is taken to hang
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class PoolErrand:
    """What to transcode, and how.

    Attributes:
        machinery: What hands the bodies over, by its name in ``pool_machinery``.
        paths: Of the pictures, which take turns.
        images: How many; with the warm-up's, which is as many as are in flight.
        processes: Of the codec.
        in_flight: Tasks that await one image each.
        codec: A module-level function.
        spec: What comes out.
        poison_every: The last of so many bodies kills the process that works on it; 0 for none.
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


Machinery: TypeAlias = Callable[[PoolErrand], AbstractAsyncContextManager[Transcode]]
"""Opens a pool for an errand."""


@dataclass(frozen=True, slots=True)
class PoolTally:
    """What became of the images.

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


def send(module: str, errand: PoolErrand) -> PoolTally:
    """Let a module's ``main()``, which calls ``run``, do the errand in a process of its own, within its deadline.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    # Whoever is left without a parent becomes this process's child, so that it can be counted and ended.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with TemporaryDirectory(prefix="datafetch-benchmark-") as name:
        order, result = Path(name) / "errand", Path(name) / "tally"
        order.write_bytes(pickle.dumps(errand))
        with subprocess.Popen([*child_command(module), str(order), str(result)]) as process:
            try:
                status = process.wait(errand.deadline_s * 2 + _CLOSING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                status = 0
        orphans_left = _end_all()
        if status:
            raise subprocess.CalledProcessError(status, module)
        tally = pickle.loads(result.read_bytes()) if result.exists() else _nothing(errand)
        return replace(tally, orphans_left=orphans_left)


def _nothing(errand: PoolErrand) -> PoolTally:
    """The tally of a run that had to be killed before it had one."""
    return PoolTally([UNFINISHED] * errand.images, CpuSpent(math.inf, 0, 0, 0))


def _end_all() -> int:
    """Wait for the processes below this one, kill those that stay, and return how many did."""
    _, left = psutil.wait_procs(psutil.Process().children(recursive=True), _GRACE_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left)
    return len(left)


def run(machineries: Mapping[str, Machinery]) -> None:
    """In the child: do the errand that the command line names, and leave the tally beside it."""
    order, result = map(Path, sys.argv[1:])
    errand: PoolErrand = pickle.loads(order.read_bytes())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        tally = runner.run(_transcode_all(machineries[errand.machinery], errand, partial(_keep, result)))
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


async def _transcode_all(machinery: Machinery, errand: PoolErrand, keep: Callable[[PoolTally], None]) -> PoolTally:
    pictures = [path.read_bytes() for path in errand.paths]
    warm_up = [pictures[number % len(pictures)] for number in range(errand.in_flight)]
    bodies = [
        POISON if errand.is_poison(number) else pictures[number % len(pictures)] for number in range(errand.images)
    ]
    async with machinery(errand) as transcode:
        await _pass(transcode, warm_up, errand)
        clock = CpuClock()
        outcomes = await _pass(transcode, bodies, errand)
        tally = PoolTally(outcomes, clock.stop())
        keep(tally)  # in case that the pool can't be closed
    return tally


async def _pass(transcode: Transcode, bodies: Sequence[bytes], errand: PoolErrand) -> Sequence[str]:
    """Each task takes the next image when it has its last one's outcome."""
    outcomes = [UNFINISHED] * len(bodies)
    numbered = iter(enumerate(bodies))
    with suppress(TimeoutError):
        async with asyncio.timeout(errand.deadline_s), asyncio.TaskGroup() as group:
            for _ in range(errand.in_flight):
                group.create_task(_work(transcode, numbered, outcomes))
    return outcomes


async def _work(transcode: Transcode, numbered: Iterator[tuple[int, bytes]], outcomes: list[str]) -> None:
    for number, body in numbered:
        outcomes[number] = name_of(await transcode(body))


def name_of(outcome: Outcome) -> str:
    """``ok`` or the kind of failure."""
    return OK if isinstance(outcome, Encoded) else outcome.kind.value
