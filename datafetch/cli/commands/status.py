"""``datafetch status``: show the progress of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datafetch.cli.command import as_command
from datafetch.cli.command_line import command_line_of
from datafetch.cli.exit_code import ExitCode, write_line
from datafetch.cli.left_out_shards import LeftOutShards
from datafetch.cli.options import Json
from datafetch.cli.output_choice import choose_output
from datafetch.cli.output_list import show_outputs
from datafetch.cli.render import show_status, write_pieces
from datafetch.engine.job import read_job
from datafetch.errors import ConfigurationError
from datafetch.model.location import is_bucket
from datafetch.model.untrusted import to_printable
from datafetch.monitor.outputs_below import find_outputs, is_output
from datafetch.monitor.status import read_status, read_statuses
from datafetch.store.buckets.view import observed_place
from datafetch.store.layout import OutputLayout, output_of


def status(
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="The output folder, its state folder, or a folder above outputs; or an output's place in a bucket.",
        ),
    ],
    *,
    hosts: Annotated[
        bool, typer.Option("--hosts", help="Show 20 hosts with failures, and not only 5; of one output.")
    ] = False,
    command: Annotated[
        bool,
        typer.Option("--command", help="Print the command line of the run instead, quoted for the shell."),
    ] = False,
    json: Json = False,
) -> int:
    """Show the progress of a run, without disturbing it.

    Of a folder above outputs, such as that of --root, a line for each of them.
    """
    if command:
        return _show_command(out, as_json=json)
    chosen: Path | str = choose_output(out) if hosts or is_bucket(out) else Path(out)
    if isinstance(chosen, Path) and not hosts and not is_output(chosen) and (below := find_outputs(chosen)).outputs:
        show_outputs(chosen, read_statuses(below), as_json=json)
        return ExitCode.COMPLETE
    found = read_status(chosen)
    show_status(found, as_json=json, shows_all_hosts=hosts)
    left_out = LeftOutShards(OutputLayout(Path(found.out)))
    for shard in found.damaged_ledgers:
        left_out(shard)
    return left_out.exit_code


def _show_command(out: str, *, as_json: bool) -> ExitCode:
    """Print the command line of a run, and on standard error what it can't say."""
    if as_json:
        raise ConfigurationError("give --command or --json, not both")
    with observed_place(choose_output(out)) as place:
        layout = OutputLayout(output_of(place.out))
        job, _ = read_job(layout)
    made = command_line_of(job, layout.out if place.view is None else place.location)
    write_pieces([to_printable(made.text), "\n"])
    for remark in made.remarks:
        write_line(remark)
    return ExitCode.COMPLETE


command = as_command(status)
