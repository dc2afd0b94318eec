"""``datafetch datasets``: show the recipe's datasets, and what is there of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datafetch.cli.command import as_command
from datafetch.cli.exit_code import ExitCode
from datafetch.cli.options import Json
from datafetch.cli.render import show_datasets
from datafetch.monitor.recipe_status import read_recipe_status


def datasets(
    *,
    root: Annotated[Path, typer.Option(metavar="DIR", help="The trainer's data folder.")] = Path("playground/data"),
    json: Json = False,
) -> int:
    """Show the recipe's datasets, and how much of each is there."""
    show_datasets(read_recipe_status(root), root, as_json=json)
    return ExitCode.COMPLETE


command = as_command(datasets)
