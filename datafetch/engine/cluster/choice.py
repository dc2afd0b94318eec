"""Where a job runs, as the command line offers it, and running it there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from datafetch.engine.job import Job
from datafetch.engine.repeated_job import RepeatedJob
from datafetch.engine.runner import run, run_alone
from datafetch.model.fields import check_types, invalid
from datafetch.model.observers import Observer
from datafetch.model.options import Effect, Option, OptionGroup, option
from datafetch.model.report import Report
from datafetch.model.statistics import Statistics


class Engine(StrEnum):
    """What runs a job."""

    LOCAL = "local"
    """This machine."""
    RAY = "ray"
    """The nodes of a Ray cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WhereToRun:
    """Where a job runs. This holds for one run, and is not stored.

    Attributes:
        engine: What runs it.
        ray_address: ``HOST:PORT`` of a cluster's head, or ``auto``; None takes ``RAY_ADDRESS``, and without it a
            cluster that is started on this machine alone.
    """

    engine: Engine = option(
        Engine.LOCAL,
        Option(
            help="Where the job runs: on this machine, or on the nodes of a Ray cluster. All nodes must see the "
            "source and the id list under the same paths, and the output too unless it is in a bucket. --per-host and "
            "--max-rate are divided among the nodes (at least one request at a time each); all other limits apply to "
            "each node.",
            group=OptionGroup.BEHAVIOUR,
            effect=Effect.NONE,
            is_of_one_run=True,
        ),
    )
    ray_address: str | None = option(
        None,
        Option(
            help="The head of the Ray cluster, or auto for the one that this machine is part of.",
            group=OptionGroup.BEHAVIOUR,
            effect=Effect.NONE,
            metavar="HOST:PORT",
            unset="RAY_ADDRESS, or a cluster of this machine alone",
            is_of_one_run=True,
        ),
    )

    def __post_init__(self) -> None:
        """Refuse values that contradict each other, before anything is read."""
        check_types(self)
        if self.ray_address == "":
            raise invalid(self, "{ray_address} is empty; give HOST:PORT, or leave it out")
        if self.ray_address is not None and self.engine is not Engine.RAY:
            raise invalid(self, "{ray_address} is for {engine:ray}; give that, too, or leave it out")

    def run(
        self, job: Job, observers: Iterable[Observer[Statistics]] = (), repeated: RepeatedJob | None = None
    ) -> Report:
        """Run a job there, or resume it, on an event loop of its own. The arguments are those of ``engine.runner.run``.

        Raises:
            DatafetchError: The job or its manifest is wrong, Ray or a cluster is missing, or a machine ran out of
                something.
            KeyboardInterrupt: Ctrl-C; running the same job again resumes it.
        """
        if self.engine is Engine.LOCAL:
            return run(job, observers, repeated=repeated)
        from datafetch.engine.cluster.cluster_run import run_on_cluster  # noqa: PLC0415 - a run on this machine does not need it
        from datafetch.engine.cluster.ray_cluster import connected  # noqa: PLC0415 - nor this

        work = run_on_cluster(job, lambda: connected(self.ray_address), observers, repeated=repeated)
        return run_alone(work, instead="await run_on_cluster(job, connect)")
