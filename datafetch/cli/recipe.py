"""``datafetch prepare`` with several targets: datasets and steps of the recipe, one after the other."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import typer

from datafetch.cli.exit_code import ExitCode, check_min_success, exit_code_of_error, message_of, without_fresh
from datafetch.cli.options import CheckSources, DryRun, GivenOptions, Json, MinSuccess, NoReshard, Root
from datafetch.cli.progress import show_progress
from datafetch.cli.render import show_built, show_dry_runs, show_sources
from datafetch.cli.report_targets import refuse_log_within
from datafetch.cli.reporter import Reporter, Reporting, open_reporter
from datafetch.engine.cluster.choice import WhereToRun
from datafetch.engine.job import Job
from datafetch.engine.recipe import BuiltDataset, PlannedDataset, build_recipe, log_disk_space, plan_recipe
from datafetch.engine.repeated_job import RepeatedJob
from datafetch.errors import ConfigurationError
from datafetch.model.observers import Observer
from datafetch.model.options import OptionGroup
from datafetch.model.statistics import Statistics

_EXAMPLES = {"--source": "mmc4-core=mmc4/data", "--ids": "coyo=ids.txt"}
_log = logging.getLogger(__name__)


def prepare(  # noqa: PLR0913 - one parameter an option
    targets: Annotated[list[str], typer.Argument(metavar="TARGET...", hidden=True)],
    *,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH|URL",
            help="The published manifest or archive of the dataset NAME, or the folder of it, if it is not read from "
            "where it is published. Repeatable.",
            rich_help_panel=OptionGroup.SELECTION,
        ),
    ] = None,
    ids: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="List of the samples of the dataset NAME to fetch, plain or gzipped. Repeatable.",
            rich_help_panel=OptionGroup.SELECTION,
        ),
    ] = None,
    root: Root = "playground/data",
    no_reshard: NoReshard = False,
    min_success: MinSuccess = 0.0,
    check_sources: CheckSources = False,
    dry_run: DryRun = False,
    json: Json = False,
    given: GivenOptions,
) -> int:
    """Build several datasets where the trainer expects them, one after the other, resuming earlier runs."""
    check_min_success(min_success)
    where = given.apply(WhereToRun())

    def change(job: Job) -> Job:
        job = given.change(job)
        return replace(job, world_size=None) if no_reshard else job

    planned = plan_recipe(targets, root, _by_name("--source", source), _by_name("--ids", ids), change)
    refuse_log_within(given.apply(Reporting()).log, [one.out for one in planned])
    unplanned = {each.part.name: each.problem for each in planned if each.problem}  # named before the others begin
    built: list[BuiltDataset] = []
    with open_reporter(given.apply(Reporting())) as reporter:
        if dry_run:
            return report_dry_run(planned, as_json=json)
        if check_sources:
            return report_sources(planned, as_json=json)
        log_disk_space(planned)
        for name, problem in unplanned.items():
            _log.error("%s will not be built: %s", name, problem)
        for one in build_recipe(planned, partial(observe_built, reporter=reporter), where.run):
            if one.error is not None:
                message = message_of(one.error)
                advice = without_fresh(message) if given.values.get("fresh") else message
                one = replace(one, advice=advice)  # noqa: PLW2901 - as it is shown
            built.append(one)
            if one.error is not None and one.part.name not in unplanned:
                _log.error("%s: %s", one.part.name, one.problem)
        show_built(built, as_json=json)
        return _worst(built, min_success)


def report_sources(planned: Sequence[PlannedDataset], *, as_json: bool) -> int:
    """Ask the sources of datasets, without downloading anything, and print what they answer."""
    from datafetch.engine.source_check import check_sources  # noqa: PLC0415 - a run does not need it

    answers = check_sources(planned)
    show_sources(answers, as_json=as_json)
    return ExitCode.WRONG_COMMAND if any(one.problem for one in answers) else ExitCode.COMPLETE


def report_dry_run(planned: Sequence[PlannedDataset], repeated: RepeatedJob | None = None, *, as_json: bool) -> int:
    """Print what the runs of datasets would do; nobody is asked, and nothing is written."""
    from datafetch.engine.dry_run import look_ahead  # noqa: PLC0415 - a run does not need it

    if len(planned) > 1:
        log_disk_space(planned)
    found = look_ahead(planned, repeated)
    show_dry_runs(found, as_json=as_json)
    return ExitCode.WRONG_COMMAND if any(one.problem for one in found) else ExitCode.COMPLETE


def _by_name(flag: str, values: Iterable[str] | None) -> dict[str, str]:
    """Read values of the form NAME=PATH.

    Raises:
        ConfigurationError: One has another form, or a name is given twice.
    """
    by_name: dict[str, str] = {}
    for value in values or ():
        name, separator, path = value.partition("=")
        if not separator or not name or not path:
            raise ConfigurationError(f"with several datasets {flag} takes NAME=PATH, such as {_EXAMPLES[flag]}")
        if name in by_name:
            raise ConfigurationError(f"{flag} is given twice for {name}; leave one of them out")
        by_name[name] = path
    return by_name


def observe_built(number: int, planned: Sequence[PlannedDataset], *, reporter: Reporter) -> list[Observer[Statistics]]:
    """Show the progress of one dataset, with which of all it is, and how long all will take if that can be known."""
    open_images = [one.open_images for one in planned[number + 1 :]]
    later = 0 if None in open_images else sum(images or 0 for images in open_images)
    title = f"{number + 1} of {len(planned)} {planned[number].part.name}"
    return [partial(show_progress, reporter=reporter, title=title, later_images=later)]


def _worst(built: Sequence[BuiltDataset], min_success: float) -> int:
    """The exit code: that of the worst of the datasets."""
    codes = [exit_code_of_error(one.error) for one in built if one.error is not None]
    reports = [one.report for one in built if one.report is not None]
    short = [one.dataset for one in reports if one.totals.images and one.totals.ok < min_success * one.totals.images]
    if short:
        _log.error("fewer images than --min-success requires arrived of %s", ", ".join(short))
        codes.append(ExitCode.TOO_FEW_IMAGES)
    by_severity = (ExitCode.BUG, ExitCode.OUT_OF_RESOURCES, ExitCode.WRONG_COMMAND, ExitCode.TOO_FEW_IMAGES)
    return next((code for code in by_severity if code in codes), ExitCode.COMPLETE)
