"""``datafetch get``: fetch the images of any list of URLs."""

from __future__ import annotations

from inspect import Parameter
from typing import TYPE_CHECKING, Annotated

import typer

from datafetch.cli.command import Command, as_command, with_options, write_examples
from datafetch.cli.options import (
    PERMISSIONS,
    DryRun,
    GivenOptions,
    JobOfAnother,
    Json,
    MinSuccess,
    parameters_of,
)
from datafetch.cli.reporter import Reporting
from datafetch.cli.single_job import SingleJob
from datafetch.datasets import LIST
from datafetch.engine.cluster.choice import WhereToRun
from datafetch.engine.job import Job, own_spec
from datafetch.engine.list_job import ListJob
from datafetch.fetch import FetchPolicy
from datafetch.model.options import OptionField, OptionGroup

if TYPE_CHECKING:
    from typer._click import Context
    from typer._click.formatting import HelpFormatter

_EXAMPLES = {
    "datafetch get list.parquet --out images": "columns found by name",
    "datafetch get 'c*.tsv' --out cc --where 'width > 255'": "only some rows",
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
    return SingleJob(
        dataset=LIST.name,
        make=lambda given: given.change(ListJob(inputs, out, LIST.options, image=own_spec(LIST))),
        given=given,
        repeats=job,
        no_reshard=no_reshard,
        min_success=min_success,
        dry_run=dry_run,
        json=json,
    ).carry_out()


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
