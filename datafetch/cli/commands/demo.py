"""``datafetch demo``: fetch a small dataset from an image server on this machine; no other network is needed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from datafetch.cli.command import as_command
from datafetch.cli.exit_code import ExitCode
from datafetch.cli.options import Json
from datafetch.cli.progress import ProgressConsole, show_log_messages, show_progress
from datafetch.cli.render import show_report
from datafetch.demo.run import DEFAULT_FOLDER, run_demo


def demo(
    images: Annotated[
        int, typer.Option(metavar="N", help="Number of images, faulty ones included.", min=50, max=20_000)
    ] = 500,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Output folder: new, empty, or that of an earlier demo.")
    ] = DEFAULT_FOLDER,
    json: Json = False,
) -> int:
    """Fetch a small dataset from a local image server with deliberate faults."""
    console = ProgressConsole()
    console.print("painting pictures, and fetching them from an image server on this machine …", soft_wrap=True)
    with show_log_messages(console):
        result = run_demo(images, out, observers=[partial(show_progress, console=console)])
    show_report(result.report, as_json=json)
    (console if json else Console()).print(result.table())
    return ExitCode.COMPLETE if result.is_passed else ExitCode.BUG


command = as_command(demo)
