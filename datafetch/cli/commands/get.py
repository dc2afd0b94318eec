"""``datafetch get``: fetch the images of any list of URLs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from inspect import Parameter
from typing import TYPE_CHECKING, Annotated

import typer

from datafetch.cli.command import Command, as_command, with_options, write_examples
from datafetch.cli.exit_code import check_min_success, exit_code_of
from datafetch.cli.options import (
    PERMISSIONS,
    DryRun,
    GivenOptions,
    JobOfAnother,
    Json,
    MinSuccess,
    parameters_of,
)
from datafetch.cli.progress import show_progress
from datafetch.cli.recipe import report_dry_run
from datafetch.cli.render import show_report
from datafetch.cli.report_targets import refuse_log_within
from datafetch.cli.reporter import Reporting, open_reporter
from datafetch.datasets import LIST
from datafetch.datasets.recipes import part_of
from datafetch.engine.cluster.choice import WhereToRun
from datafetch.engine.job import Job, own_spec
from datafetch.engine.list_job import ListJob
from datafetch.engine.recipe import PlannedDataset
from datafetch.engine.repeated_job import read_repeated_job
from datafetch.fetch import FetchPolicy
from datafetch.model.options import OptionField, OptionGroup

if TYPE_CHECKING:
    from typer._click import Context
    from typer._click.formatting import HelpFormatter

_EXAMPLES = {
    "datafetch get list.parquet --out images": "columns found by name",
    "datafetch get 'cc*.tsv' --out cc --where 'width > 255'": "only some rows",
    "datafetch get urls.txt --out urls --format pickle": "for VILA's loader",
}
_ONLY_PICKLE = "Only for --format pickle."


def get(  # noqa: PLR0913 - one parameter an option
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Files, folders, patterns or URLs of txt, csv, tsv, json, jsonl or parquet, compressed or not.",
        ),
    ],
    *,
    out: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="The folder for the images, or its place in a bucket: s3://BUCKET/FOLDER.",
            rich_help_panel=OptionGroup.OUTPUT,
        ),
    ],
    job: JobOfAnother = None,
    no_reshard: Annotated[
        bool,
        typer.Option(
            "--no-reshard",
            help=f"Keep the shards and the order of the list. {_ONLY_PICKLE}",
            rich_help_panel=OptionGroup.OUTPUT,
        ),
    ] = False,
    min_success: MinSuccess = 0.0,
    dry_run: DryRun = False,
    json: Json = False,
    given: GivenOptions,
) -> int:
    """Fetch the images of a list of URLs, resuming an earlier run."""
    check_min_success(min_success)
    where = given.apply(WhereToRun())
    repeated = None if job is None else read_repeated_job(job, LIST.name)
    if repeated is not None:
        repeated.refuse_missing(given.values)
        given = replace(given, repeated=repeated.row_values)
    own = given.change(ListJob(inputs, out, LIST.options, image=own_spec(LIST)))
    own = replace(own, world_size=None) if no_reshard else own
    reporting = given.apply(Reporting())
    refuse_log_within(reporting.log, [own.out])
    if repeated is not None:
        repeated.refuse_contradiction(own)
    with open_reporter(reporting) as reporter:
        if repeated is not None:
            repeated.log_left_out()
        if dry_run:
            return report_dry_run([PlannedDataset(part_of(LIST.name), own.out, own)], repeated, as_json=json)
        report = where.run(own, [partial(show_progress, reporter=reporter)], repeated)
        show_report(report, as_json=json)
        return exit_code_of(report, min_success)


class _Get(Command):
    """The command, with examples in its help."""

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write examples before the options."""
        write_examples(formatter, _EXAMPLES)
        super().format_options(ctx, formatter)


def _parameters() -> list[Parameter]:
    def add_help(one: OptionField) -> str:
        if one.name in {"payload", "world_size"}:
            return _ONLY_PICKLE
        return "May be given to retry later." if one.name in PERMISSIONS else ""

    return [
        *parameters_of([LIST.options]),
        *parameters_of([FetchPolicy()], add_help=add_help),
        *parameters_of([own_spec(LIST)], add_help=add_help),
        *parameters_of([Job("", "", "")], is_selected=lambda one: one.name != "ids", add_help=add_help),
        *parameters_of([WhereToRun()]),
        *parameters_of([Reporting()]),
    ]


command = as_command(with_options(get, _parameters(), GivenOptions), _Get)
