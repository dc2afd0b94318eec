"""Carries out one job for a command: runs it, says what the run would do, or asks its sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from datafetch.cli.exit_code import check_min_success, exit_code_of
from datafetch.cli.options import GivenOptions
from datafetch.cli.progress import show_progress
from datafetch.cli.recipe import report_dry_run, report_sources
from datafetch.cli.render import show_report
from datafetch.cli.report_targets import refuse_log_within
from datafetch.cli.reporter import Reporting, open_reporter
from datafetch.datasets.recipes import part_of
from datafetch.engine.cluster.choice import WhereToRun
from datafetch.engine.job import Job
from datafetch.engine.recipe import PlannedDataset
from datafetch.engine.repeated_job import read_repeated_job


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleJob:
    """What a command is to do with a job; all but the first four as the options of the same names say.

    Attributes:
        dataset: The name of its dataset.
        make: Makes the job from the options that were given.
        given: These options.
        repeats: The file of a job that is repeated; None for none.
    """

    dataset: str
    make: Callable[[GivenOptions], Job]
    given: GivenOptions
    repeats: Path | None
    no_reshard: bool
    min_success: float
    dry_run: bool
    json: bool
    check_sources: bool = False

    def carry_out(self) -> int:
        """Run the job, or say what is asked of it instead; returns the exit code.

        Raises:
            DatafetchError: The job is wrong, or its run has stopped.
        """
        check_min_success(self.min_success)
        given = self.given
        where = given.apply(WhereToRun())
        repeated = None if self.repeats is None else read_repeated_job(self.repeats, self.dataset)
        if repeated is not None:
            repeated.refuse_missing(given.values)
            given = replace(given, repeated=repeated.row_values)
        job = self.make(given)
        job = replace(job, world_size=None) if self.no_reshard else job
        reporting = given.apply(Reporting())
        refuse_log_within(reporting.log, [job.out])
        if repeated is not None:
            repeated.refuse_contradiction(job)
        planned = [PlannedDataset(part_of(self.dataset), job.out, job)]
        with open_reporter(reporting) as reporter:
            if repeated is not None:
                repeated.log_left_out()
            if self.dry_run:
                return report_dry_run(planned, repeated, as_json=self.json)
            if self.check_sources:
                return report_sources(planned, as_json=self.json)
            report = where.run(job, [partial(show_progress, reporter=reporter)], repeated)
            show_report(report, as_json=self.json)
            return exit_code_of(report, self.min_success)
