"""``datafetch status``: show the progress of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datafetch.cli.command import as_command
from datafetch.cli.exit_code import ExitCode
from datafetch.cli.options import Json
from datafetch.cli.render import show_status
from datafetch.monitor.status import read_status


def status(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The output folder, or its state folder.")],
    *,
    hosts: Annotated[bool, typer.Option("--hosts", help="Show 20 hosts with failures, and not only 5.")] = False,
    json: Json = False,
) -> int:
    """Show the progress of a run, without disturbing it."""
    show_status(read_status(out), as_json=json, shows_all_hosts=hosts)
    return ExitCode.COMPLETE


command = as_command(status)
