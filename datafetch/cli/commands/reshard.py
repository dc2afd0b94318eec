"""``datafetch reshard``: reshard a folder of shards for a number of ranks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer

from datafetch.cli.command import as_command
from datafetch.cli.exit_code import ExitCode
from datafetch.cli.progress import ProgressConsole, show_log_messages, show_resharding
from datafetch.cli.render import show_resharded
from datafetch.output.reshard import folder
from datafetch.output.reshard.copy import ProgressMonitor
from datafetch.output.reshard.folder import ReshardRequest
from datafetch.process.interrupts import active_interrupts


def reshard(  # noqa: PLR0913 - one parameter an option
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A folder of shards (.pkl and .count files); never changed.")
    ],
    out: Annotated[Path, typer.Argument(metavar="DST", help="Output folder, empty or new.")],
    *,
    world_size: Annotated[int, typer.Option(metavar="N", help="Number of ranks of the training.")] = 64,
    batch: Annotated[int, typer.Option(metavar="N", help="Groups of samples that a rank takes in one step.")] = 2,
    group: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Samples that the loader takes together.", show_default="4 for pairs, 1 for documents"
        ),
    ] = None,
    shuffle: Annotated[
        str | None,
        typer.Option(metavar="SEED|none", help="Shuffle all rows.", show_default="0 for pairs, none for documents"),
    ] = None,
    no_lock: Annotated[
        bool,
        typer.Option(
            "--no-lock",
            help="Run without a lock, on filesystems that have none. Make sure that no other run uses this output.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output at the end.")] = False,
) -> int:
    """Make shards of equal size, so that every rank reads the same number of samples."""
    console = ProgressConsole()
    stop = threading.Event()
    with (
        show_log_messages(console),
        show_resharding(console) as report_progress,
        active_interrupts() as interrupts,
        interrupts.stopping_with(stop.set),
    ):
        made = folder.reshard(
            ReshardRequest(source, out, world_size, batch, group, shuffle, no_lock),
            ProgressMonitor(report_progress, stop),
        )
    assert made is not None, "only a signal stops it, and that raises KeyboardInterrupt"
    show_resharded(made, as_json=json)
    return ExitCode.COMPLETE


command = as_command(reshard)
