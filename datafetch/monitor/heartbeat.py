"""The heartbeat of a run: a small file with a snapshot of its progress, replaced every two seconds.

Rules: it is for observers, and no run depends on its own. So the file is replaced atomically but not synced to disk,
and a failure to write it never ends a run: if the disk is full, the run's own files will show it.
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

from datafetch.model.bounds import Amount, PathText
from datafetch.model.observers import SafeObserver
from datafetch.model.statistics import Statistics
from datafetch.monitor.throughput import Throughput
from datafetch.process.existence import process_exists
from datafetch.store.layout import OutputLayout
from datafetch.store.lock_holder import process_name
from datafetch.store.state_file import read_if_sound

INTERVAL_S = 2.0
MAX_AGE_S = 30.0  # a busy event loop or a slow filesystem may delay a few heartbeats


@dataclass(frozen=True, slots=True)
class ProgressSnapshot:
    """One heartbeat. The names of the fields are those in the file.

    Attributes:
        pid: The process of the run.
        host: The machine on which the process runs.
        started_unix_s: When the run started.
        updated_unix_s: When the snapshot was taken.
        is_ended: Whether this is the last heartbeat, which a run that is killed does not write.
        spools: The folder with the spools of its job.
        images_per_s: Images that ended per second, over the last 15 seconds.
        statistics: The statistics of the run.
    """

    pid: Annotated[int, Meta(ge=1, lt=1 << 31)]
    host: str
    started_unix_s: Amount
    updated_unix_s: Amount
    is_ended: bool
    spools: PathText
    images_per_s: Amount
    statistics: Statistics

    @property
    def name(self) -> str:
        """Process and machine, in words."""
        return process_name(self.pid, self.host)

    def is_at_work(self) -> bool:
        """Whether the run is at work: the snapshot is recent, and its process exists.

        Whether a process on another machine exists is unknown, so there only the age of the snapshot counts.
        """
        if self.is_ended or abs(time.time() - self.updated_unix_s) > MAX_AGE_S:
            return False
        return self.host != socket.gethostname() or process_exists(self.pid)


async def write_heartbeats(statistics: Callable[[], Statistics], layout: OutputLayout, path: Path) -> None:
    """Write heartbeats until cancelled, and then a last one, which says that the run has ended.

    Args:
        statistics: Called for the statistics of each heartbeat.
        layout: The paths of the output.
        path: The file: that of the run, or of a process that fetches some of the shards.
    """
    throughput, started_unix_s = Throughput(), time.time()
    # A single thread of its own: a slow write delays no other task, and the last heartbeat is written last.
    writer = ThreadPoolExecutor(1, thread_name_prefix="heartbeat")

    async def write_one(*, is_ended: bool) -> None:
        now = statistics()
        snapshot = ProgressSnapshot(
            pid=os.getpid(),
            host=socket.gethostname(),
            started_unix_s=started_unix_s,
            updated_unix_s=time.time(),
            is_ended=is_ended,
            spools=str(layout.spool_folder.absolute()),
            images_per_s=throughput.pace(now).images_per_s,
            statistics=now,
        )
        await asyncio.get_running_loop().run_in_executor(writer, _write, path, snapshot)

    guard = SafeObserver("the heartbeat")
    try:
        while True:
            with guard:
                await write_one(is_ended=False)
            await asyncio.sleep(INTERVAL_S)
    finally:
        try:
            with guard:
                await write_one(is_ended=True)
        finally:
            writer.shutdown(wait=False)


def _write(path: Path, snapshot: ProgressSnapshot) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        unfinished.write_bytes(orjson.dumps(snapshot))
        unfinished.replace(path)


def read_snapshots(layout: OutputLayout) -> tuple[ProgressSnapshot, ...]:
    """The last heartbeats of an output: that of the run, or one of each process that fetches some of the shards.

    A run deletes the files of such processes when it starts, so if there are any they are newer than the run's file.
    """
    try:
        paths = sorted(layout.shard_progress_folder.glob("*.json"))
    except OSError:
        paths = []
    snapshots = (read_snapshot(path) for path in paths or [layout.progress])
    return tuple(one for one in snapshots if one is not None)


def read_snapshot(path: Path) -> ProgressSnapshot | None:
    """The last heartbeat in a file; None if the file is missing, or holds something else.

    Raises:
        ResourceError: This machine has run out of descriptors or memory.
    """
    return read_if_sound(path, ProgressSnapshot)
