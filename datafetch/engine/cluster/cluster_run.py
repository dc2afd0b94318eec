"""One job on the nodes of a cluster, from the command to the report: what is around the driver.

Rules: nothing here knows Ray. The output is claimed before anything is asked of the cluster, and completed on this
machine when all nodes have ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datafetch.engine.bucket_output import steer_in_bucket
from datafetch.engine.cluster.driver import Driver, Timeouts
from datafetch.engine.cluster.interface import Cluster
from datafetch.engine.cluster.messages import max_absence_s
from datafetch.engine.cluster.shared_output import BucketOutput, FolderOutput, SharedOutput
from datafetch.engine.job import Job
from datafetch.engine.repeated_job import RepeatedJob
from datafetch.engine.runner import finish_dataset
from datafetch.engine.share import BegunRun, begin_dataset
from datafetch.errors import ConfigurationError
from datafetch.model.location import is_bucket, without_secrets
from datafetch.model.observers import Observer, as_observers
from datafetch.model.report import Report
from datafetch.model.statistics import Statistics
from datafetch.monitor.cluster_snapshot import ClusterSnapshot, delete_cluster, read_cluster
from datafetch.process.existence import process_exists
from datafetch.process.threads import run_in_thread
from datafetch.store.buckets.working_copy import WorkingCopy
from datafetch.store.layout import OutputLayout, resolve_parent
from datafetch.store.lock import OutputInUseError

_POLL_INTERVAL_S = 1.0
_LOCK_SLACK_S = 2.0  # after the time within which a node that was left alone ends itself

_log = logging.getLogger(__name__)


async def run_on_cluster(
    job: Job,
    connect: Callable[[], Any],
    observers: Iterable[Observer[Statistics]] = (),
    *,
    repeated: RepeatedJob | None = None,
    timeouts: Timeouts | None = None,
) -> Report:
    """Run a job on the nodes of a cluster, or resume it.

    Args:
        job: What to do. Its output, and the files that it reads, lie where all nodes see them under the same path, or
            the output in a bucket.
        connect: Returns a context manager that connects to the cluster; called only if anything is left to fetch.
        observers: Each watches while it runs.
        repeated: The job of another output, whose rows this one is to make; None for any rows.
        timeouts: How long it waits for what.

    Returns:
        What was done.

    Raises:
        DatafetchError: The job or its manifest is wrong; no node can do it; or all nodes lack something.
    """
    _refuse(job)
    observers, timeouts = as_observers(observers), timeouts or Timeouts()
    if is_bucket(job.out):
        scratch = None if job.scratch is None else await run_in_thread(resolve_parent, Path(job.scratch))

        async def steer(job: Job, copy: WorkingCopy) -> Report:
            begun = await begin_dataset(job, repeated)
            await run_in_thread(partial(copy.begin, has_started_over=job.fresh), on_cancel=copy.stop)
            output = BucketOutput(begun.layout, copy, scratch)
            return await _steer(job, begun, output, connect, observers, timeouts)

        return await steer_in_bucket(job, steer)
    job = replace(job, out=str(await run_in_thread(resolve_parent, Path(job.out))))
    begun = await _begin(job, repeated, timeouts)
    return await _steer(job, begun, FolderOutput(begun.layout), connect, observers, timeouts)


async def _steer(
    job: Job,
    begun: BegunRun,
    output: SharedOutput,
    connect: Callable[[], Any],
    observers: tuple[Observer[Statistics], ...],
    timeouts: Timeouts,
) -> Report:
    """Let nodes fetch what is open, and complete the output."""
    resumed = replace(job, fresh=False, reuse=False)
    done = None
    if begun.open_shards:
        driver = Driver(resumed, begun, output, timeouts)
        async with _connected(connect) as cluster:
            done = await driver.run(cluster, observers)
    report = await finish_dataset(resumed, observers, done=done, at_hand=output.at_hand)
    await asyncio.to_thread(delete_cluster, begun.layout)
    return report


def _refuse(job: Job) -> None:
    """Refuse jobs that can't be done by several machines.

    Raises:
        ConfigurationError: This is one.
    """
    if job.no_lock:
        raise ConfigurationError("--no-lock is for a run that is alone, and nodes of a cluster are not; leave it out")
    archive = getattr(job.options, "archive", None) or ""
    locations = {"--source": job.source, "--mirror": job.mirror, "--ids": job.ids or "", "--archive": archive}
    for flag, location in locations.items():
        if location != without_secrets(location):
            raise ConfigurationError(
                f"{flag} has credentials or a query, which are not sent to the nodes of a cluster; download it to the "
                "shared filesystem first, and give the path"
            )


async def _begin(job: Job, repeated: RepeatedJob | None, timeouts: Timeouts) -> BegunRun:
    """Claim the output, once the nodes of an earlier driver that died have ended.

    Raises:
        OutputInUseError: They have not, or their driver is alive.
        DatafetchError: As ``begin_dataset``.
    """
    layout = OutputLayout(Path(job.out))
    max_wait_s = max_absence_s(timeouts.max_wait_s, timeouts.abandoned_s) + _LOCK_SLACK_S
    deadline_s = time.monotonic() + max_wait_s
    first: ClusterSnapshot | None = None
    while True:
        try:
            return await begin_dataset(job, repeated)
        except OutputInUseError:
            now = await asyncio.to_thread(read_cluster, layout)
            if now is None or time.monotonic() > deadline_s or _is_driver_alive(first, now):
                raise
        if first is None:
            first = now
            _log.info("waiting for the nodes of an earlier run to end, which takes up to %.0f s", max_wait_s)
        await asyncio.sleep(_POLL_INTERVAL_S)


def _is_driver_alive(first: ClusterSnapshot | None, now: ClusterSnapshot) -> bool:
    """Whether the driver that writes a list of nodes is alive: its process exists here, or the list changes."""
    if first is not None and now.updated_unix_s != first.updated_unix_s:
        return True
    return now.is_here and now.pid != os.getpid() and process_exists(now.pid)


@asynccontextmanager
async def _connected(connect: Callable[[], Any]) -> AsyncIterator[Cluster]:
    """Connect in a thread: Ray blocks, and would install signal handlers in the main one."""
    connection = connect()
    cluster = await run_in_thread(connection.__enter__)
    try:
        yield cluster
    finally:
        await run_in_thread(connection.__exit__, None, None, None)
