"""How many workers there are, and what each may use: all of them together have what one process has.

Rules: limits of single images, and those of hosts, which workers share, stay as they are.
"""

from __future__ import annotations

from dataclasses import replace

from datafetch.engine.job import MAX_WORKERS, Job
from datafetch.fetch.policy import MIN_RATE_BYTES_PER_S
from datafetch.process.cpus import available_cpus

_CPUS_PER_WORKER = 6  # over HTTPS one loop keeps three to eight codec processes busy


def count_workers(job: Job) -> int:
    """The number of workers of a job; with one, there are no processes of their own.

    Each has a codec process and a connection at least, and a part of the cap on the rate, so there are no more than the
    job has of these.
    """
    processes = job.processes or available_cpus()
    workers = job.workers or max(1, available_cpus() // _CPUS_PER_WORKER)
    rate = job.fetch.max_rate_bytes_per_s
    by_rate = workers if rate is None else max(1, rate // MIN_RATE_BYTES_PER_S)
    return min(workers, processes, job.fetch.connections or workers, by_rate, MAX_WORKERS)


def share_of(job: Job, worker: int, workers: int) -> Job:
    """The job as one worker has it, with its share of what is a budget of the machine.

    Args:
        job: The job of all.
        worker: The worker's number, from 1.
        workers: The number of workers.
    """

    def part(total: int) -> int:
        return total // workers + (worker <= total % workers)

    fetch = job.fetch
    return replace(
        job,
        workers=1,
        processes=part(job.processes or available_cpus()),
        memory_bytes=max(1, part(job.memory_bytes)),
        fetch=replace(
            fetch,
            connections=None if fetch.connections is None else part(fetch.connections),
            max_rate_bytes_per_s=(None if fetch.max_rate_bytes_per_s is None else part(fetch.max_rate_bytes_per_s)),
        ),
    )
