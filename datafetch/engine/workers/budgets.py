"""How many workers there are, and what each may use: all of them together have what one process has.

Rules: limits of single images, and those of hosts, which workers share, stay as they are.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from datafetch.engine.job import Job
from datafetch.fetch.policy import MIN_RATE_BYTES_PER_S, FetchPolicy
from datafetch.process.cpus import available_cpus
from datafetch.transcode import BodyCheck

_log = logging.getLogger(__name__)
_CPUS_PER_WORKER = 6  # over HTTPS one loop keeps three to eight codec processes busy
_CPUS_PER_LOOP = 2  # without a codec, one loop and its commits keep so many busy


def count_workers(job: Job) -> int:
    """The number of workers of a job; with one, there are no processes of their own.

    Each has a codec process and a connection at least, and a part of the cap on the rate, so there are no more than the
    job has of these.
    """
    only_headers = job.image is not None and job.image.check is BodyCheck.HEADER
    own_choice = max(1, available_cpus() // (_CPUS_PER_LOOP if only_headers else _CPUS_PER_WORKER))
    return min(job.workers or own_choice, *_most_workers(job).values())


def log_workers(job: Job) -> None:
    """Say how many workers there are, if there are some; and why, if they are fewer than the job asks for."""
    workers = count_workers(job)
    if workers > 1:
        _log.info("%d workers, with %d codec processes", workers, job.processes or available_cpus())
    if job.workers is not None and workers < job.workers:
        option, most = next(one for one in _most_workers(job).items() if one[1] == workers)
        _log.warning(
            "--workers %d: %d can be started, since each needs a part of %s, which is enough for %d; raise that for "
            "more",
            job.workers,
            workers,
            option,
            most,
        )


def _most_workers(job: Job) -> dict[str, int]:
    """How many workers there can be, by the option of which each has a part."""
    most = {"--processes": job.processes or available_cpus()}
    if job.fetch.connections is not None:
        most["--connections"] = job.fetch.connections
    if job.fetch.max_rate_bytes_per_s is not None:
        most["--max-rate"] = max(1, job.fetch.max_rate_bytes_per_s // MIN_RATE_BYTES_PER_S - 1)
    return most


def policy_of_reader(job: Job) -> FetchPolicy:
    """How the manifest is read over the network: with its part of the cap on the rate, if workers have the others."""
    workers, rate = count_workers(job), job.fetch.max_rate_bytes_per_s
    if workers == 1 or rate is None:
        return job.fetch
    return replace(job.fetch, max_rate_bytes_per_s=rate // (workers + 1))


def share_of(job: Job, worker: int, workers: int, *, rate_parts: int) -> Job:
    """The job as one worker has it, with its share of what is a budget of the machine.

    Args:
        job: The job of all.
        worker: The worker's number, from 1.
        workers: The number of workers.
        rate_parts: Into how many parts the cap on the rate is divided.
    """

    def part(total: int) -> int:
        return total // workers + (worker <= total % workers)

    connections, rate = job.fetch.connections, job.fetch.max_rate_bytes_per_s
    return replace(
        job,
        workers=1,
        processes=part(job.processes or available_cpus()),
        memory_bytes=max(1, part(job.memory_bytes)),
        fetch=replace(
            job.fetch,
            connections=None if connections is None else part(connections),
            max_rate_bytes_per_s=None if rate is None else rate // rate_parts,
        ),
    )
