"""``datafetch datasets``: show the recipe's datasets, and what is there of them, or what their sources answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from datafetch.cli.command import as_command
from datafetch.cli.exit_code import ExitCode
from datafetch.cli.options import CheckSources, Json
from datafetch.cli.render import show_datasets
from datafetch.datasets.recipes import STEPS
from datafetch.errors import ConfigurationError
from datafetch.model.location import is_bucket
from datafetch.monitor.recipe_status import read_recipe_status

if TYPE_CHECKING:
    from datafetch.engine.job import Job  # which would load the engine


def datasets(
    *,
    root: Annotated[str, typer.Option(metavar="DIR", help="The trainer's data folder.")] = "playground/data",
    check_sources: CheckSources = False,
    mirror: Annotated[
        str, typer.Option(metavar="BASE", help="With --check-sources: ask BASE/HOST/PATH instead of https://HOST/PATH.")
    ] = "",
    allow_net: Annotated[
        list[str] | None,
        typer.Option(metavar="CIDR", help="With --check-sources: also connect to these non-public addresses."),
    ] = None,
    json: Json = False,
) -> int:
    """Show the recipe's datasets, and how much of each is there."""
    if check_sources:
        from datafetch.cli.recipe import report_sources  # noqa: PLC0415 - it loads the engine
        from datafetch.cli.reporter import open_reporter  # noqa: PLC0415
        from datafetch.engine.recipe import plan_recipe  # noqa: PLC0415

        def change(job: Job) -> Job:
            return replace(job, mirror=mirror, fetch=replace(job.fetch, allow_net=tuple(allow_net or ())))

        planned = plan_recipe(STEPS, root, {}, {}, change)
        with open_reporter():
            return report_sources(planned, as_json=json)
    if mirror or allow_net:
        raise ConfigurationError("--mirror and --allow-net are for --check-sources; without it, nobody is asked")
    if is_bucket(root):
        raise ConfigurationError(
            f"datasets looks at a folder, and not at {root}; give 'datafetch status' the place of each output"
        )
    show_datasets(read_recipe_status(Path(root)), Path(root), as_json=json)
    return ExitCode.COMPLETE


command = as_command(datasets)
