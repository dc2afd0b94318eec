"""``datafetch datasets``: show the recipe's datasets, and what is there of them, or what their sources answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datafetch.cli.command import as_command
from datafetch.cli.exit_code import ExitCode
from datafetch.cli.options import CheckSources, Json
from datafetch.cli.render import show_datasets
from datafetch.datasets.recipes import STEPS
from datafetch.monitor.recipe_status import read_recipe_status


def datasets(
    *,
    root: Annotated[Path, typer.Option(metavar="DIR", help="The trainer's data folder.")] = Path("playground/data"),
    check_sources: CheckSources = False,
    json: Json = False,
) -> int:
    """Show the recipe's datasets, and how much of each is there."""
    if check_sources:
        from datafetch.cli.recipe import report_sources  # noqa: PLC0415 - it loads the engine
        from datafetch.engine.recipe import plan_recipe  # noqa: PLC0415

        return report_sources(plan_recipe(STEPS, root, {}, {}), as_json=json)
    show_datasets(read_recipe_status(root), root, as_json=json)
    return ExitCode.COMPLETE


command = as_command(datasets)
