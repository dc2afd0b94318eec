"""``datafetch verify``: check an output as the trainer's loader will read it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from datafetch.cli.command import as_command
from datafetch.cli.exit_code import ExitCode
from datafetch.cli.progress import ProgressConsole, show_log_messages, show_verifying
from datafetch.cli.render import show_verdict
from datafetch.model.kinds import Loader
from datafetch.verify import Check, run_check


def verify(  # noqa: PLR0913 - each is an option of the command line
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A folder of shards or images, or a JSON list of records.")
    ],
    *,
    loader: Annotated[
        Loader | None, typer.Option(help="Loader to check for.", show_default="the job's, or by the first row")
    ] = None,
    image_root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Base of the paths in a JSON list.", show_default="the list's folder"),
    ] = None,
    world_size: Annotated[int, typer.Option(metavar="N", help="Number of ranks that will read the shards.")] = 64,
    batch: Annotated[int, typer.Option(metavar="N", help="Groups of samples that a rank takes in one step.")] = 2,
    group: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Samples that the loader takes together.", show_default="4 for coyo, 1 for mmc4"
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(metavar="N", help="Number of codec processes.", show_default="CPU count")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output at the end.")] = False,
) -> int:
    """Check an output as the trainer's loader will read it, decoding every image; exit 1 if there are problems."""
    check = Check(
        out=str(out),
        loader=loader,
        image_root=None if image_root is None else str(image_root),
        world_size=world_size,
        batch=batch,
        group=group,
        processes=processes,
    )
    console = ProgressConsole()
    with show_log_messages(console):
        verdict = run_check(check, observers=[partial(show_verifying, console=console)])
    show_verdict(verdict, as_json=json)
    return ExitCode.COMPLETE if verdict.is_sound else ExitCode.NOT_SOUND


command = as_command(verify)
