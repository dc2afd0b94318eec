"""``datafetch reshard``: reshard a folder of shards for a number of ranks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer

from datafetch.cli.command import as_command, with_options
from datafetch.cli.exit_code import ExitCode
from datafetch.cli.options import GivenOptions, Json, parameters_of
from datafetch.cli.progress import show_resharding
from datafetch.cli.render import show_resharded
from datafetch.cli.reporter import Reporting, open_reporter
from datafetch.output.reshard import folder
from datafetch.output.reshard.copy import ProgressMonitor
from datafetch.output.reshard.folder import ReshardRequest
from datafetch.process.interrupts import active_interrupts


def reshard(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A folder of shards (.pkl and .count files); never changed.")
    ],
    out: Annotated[Path, typer.Argument(metavar="DST", help="Output folder, empty or new.")],
    *,
    given: GivenOptions,
    json: Json = False,
) -> int:
    """Make shards of equal size, so that every rank reads the same number of samples."""
    request = given.apply(ReshardRequest(source, out))
    stop = threading.Event()
    with open_reporter(given.apply(Reporting())) as reporter:
        with (
            show_resharding(reporter) as report_progress,
            active_interrupts() as interrupts,
            interrupts.stopping_with(stop.set),
        ):
            made = folder.reshard(request, ProgressMonitor(report_progress, stop))
        assert made is not None, "only a signal stops it, and that raises KeyboardInterrupt"
        show_resharded(made, as_json=json)
    return ExitCode.COMPLETE


_OPTIONS = [*parameters_of([ReshardRequest(Path(), Path())]), *parameters_of([Reporting()])]

command = as_command(with_options(reshard, _OPTIONS, GivenOptions))
