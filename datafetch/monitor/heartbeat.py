"""The heartbeat of a run: a small file, rewritten every two seconds, that says how it stands.

Rules: it is for observers, and nothing depends on it. So it is replaced in one step but not forced onto the
disk, and whatever keeps it from being written is no reason to end a run: a disk that is full has better witnesses.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import orjson
from msgspec import Meta

from datafetch.errors import ConfigurationError
from datafetch.model.bounds import Amount, PathText
from datafetch.model.observers import SafeObserver
from datafetch.model.statistics import Statistics
from datafetch.monitor.throughput import Throughput
from datafetch.store.layout import OutputLayout
from datafetch.store.state_file import read_if_sound

INTERVAL_S = 2.0
_SILENCE_S = 30.0  # a loop that is busy, or a filesystem that is slow, may miss a few beats


@dataclass(frozen=True, slots=True)
class ProgressSnapshot:
    """What a run at work says of itself. Field names are those of the file.

    Attributes:
        pid: Its process.
        host: The machine that the process is on.
        started_unix_s: When the run began.
        updated_unix_s: When this was so.
        is_ended: Whether this is the last beat of a run that could still say so.
        spools: The folder with the spools of its job.
        images_per_s: Images that ended, over the last quarter of a minute.
        statistics: How it stood.
    """

    pid: Annotated[int, Meta(ge=1, lt=1 << 31)]
    host: str
    started_unix_s: Amount
    updated_unix_s: Amount
    is_ended: bool
    spools: PathText
    images_per_s: Amount
    statistics: Statistics

    def is_at_work(self) -> bool:
        """Whether the run is at work: it said so a moment ago, and its process exists, as far as can be seen from here.

        A process on another machine can't be seen; then its word counts alone.
        """
        if self.is_ended or abs(time.time() - self.updated_unix_s) > _SILENCE_S:
            return False
        return self.host != socket.gethostname() or _is_there(self.pid)


async def beat(statistics: Callable[[], Statistics], layout: OutputLayout, path: Path) -> None:
    """Write heartbeats until cancelled, and a last one then, which says that the run has ended.

    Args:
        statistics: Asked for a snapshot each time.
        layout: Of the output.
        path: Where they go: the run's file, or that of a process that fetches some of the shards.
    """
    pace, started_unix_s = Throughput(), time.time()
    # One thread of its own: a slow write delays nobody, and the last beat comes behind the one before.
    writer = ThreadPoolExecutor(1, thread_name_prefix="heartbeat")

    async def tell(*, is_ended: bool) -> None:
        now = statistics()
        told = ProgressSnapshot(
            pid=os.getpid(),
            host=socket.gethostname(),
            started_unix_s=started_unix_s,
            updated_unix_s=time.time(),
            is_ended=is_ended,
            spools=str((layout.all_spools / layout.job_hash).absolute()),
            images_per_s=pace.images_per_s(now),
            statistics=now,
        )
        await asyncio.get_running_loop().run_in_executor(writer, _write, path, told)

    unheeded = SafeObserver("the heartbeat")
    try:
        while True:
            with unheeded:
                await tell(is_ended=False)
            await asyncio.sleep(INTERVAL_S)
    finally:
        try:
            with unheeded:
                await tell(is_ended=True)
        finally:
            writer.shutdown(wait=False)


def _write(path: Path, told: ProgressSnapshot) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        unfinished.write_bytes(orjson.dumps(told))
        unfinished.replace(path)


def refuse_at_work(layout: OutputLayout) -> None:
    """See that no run says that it works on an output, for a run that may have no lock to tell.

    Raises:
        ConfigurationError: One does.
    """
    for last in read_beats(layout):
        if last.is_at_work():
            raise ConfigurationError(
                f"a run is working on {layout.out} (process {last.pid} on {last.host}), and --no-lock is for outputs "
                "that no other run uses; wait for it, or stop it first; if it was killed, run the same command again "
                f"in {_SILENCE_S:.0f} seconds"
            )


def read_beats(layout: OutputLayout) -> tuple[ProgressSnapshot, ...]:
    """The last beats of those that are at work on an output, or were: the run's, or one of each of several processes.

    The files of processes that fetched shards go with the next run, so where there are any they are newer than its own.
    """
    try:
        paths = sorted(layout.shard_progress_folder.glob("*.json"))
    except OSError:
        paths = []
    beats = (read_beat(path) for path in paths or [layout.progress])
    return tuple(beat for beat in beats if beat is not None)


def read_beat(path: Path) -> ProgressSnapshot | None:
    """The last beat of the run that is at work, or was; None where there is none, or something else.

    Raises:
        ResourceError: This machine has no descriptor or memory left to read it.
    """
    return read_if_sound(path, ProgressSnapshot)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, and so there
        return True
    return True
