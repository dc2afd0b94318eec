"""``datafetch failures``: list the failed images of an output."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from datafetch.cli.command import as_command
from datafetch.cli.exit_code import ExitCode, write_line
from datafetch.cli.failure_list import ListForm, show_failures
from datafetch.cli.left_out_shards import LeftOutShards
from datafetch.cli.options import complete_kind, parse_kinds, parse_names, parse_statuses
from datafetch.cli.output_choice import choose_output
from datafetch.errors import ConfigurationError
from datafetch.model.options import OptionGroup
from datafetch.monitor.failures import FailureFilter, read_failures
from datafetch.monitor.observed_output import observe_output
from datafetch.store.buckets.view import observed_place


def failures(
    out: Annotated[str, typer.Argument(metavar="OUT", help="The output folder, or its state folder.")],
    *,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND,…",
            help="Only failures of these kinds. Repeatable.",
            rich_help_panel=OptionGroup.SELECTION,
            autocompletion=complete_kind,
        ),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST,…",
            help="Only URLs of these hosts, as 'datafetch status' names them. Repeatable.",
            rich_help_panel=OptionGroup.SELECTION,
        ),
    ] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODE,…",
            help="Only failures with one of these HTTP statuses, such as 404,503. Repeatable.",
            rich_help_panel=OptionGroup.SELECTION,
        ),
    ] = None,
    csv: Annotated[
        bool, typer.Option("--csv", help="All columns of the ledger as CSV.", rich_help_panel=OptionGroup.OUTPUT)
    ] = False,
    jsonl: Annotated[
        bool,
        typer.Option(
            "--jsonl", help="All columns of the ledger, a JSON object a line.", rich_help_panel=OptionGroup.OUTPUT
        ),
    ] = False,
) -> int:
    """List the failed images, a line each, also while a run is at work.

    A terminal gets a table that fits it, in which details are wrapped; in a file or a pipe nothing is cut or wrapped.
    """
    if csv and jsonl:
        raise ConfigurationError("give --csv or --jsonl, not both")
    form = ListForm.CSV if csv else ListForm.JSON_LINES if jsonl else ListForm.TABLE
    wanted = FailureFilter(parse_kinds(kinds), parse_names(host), parse_statuses("--status", status))
    with observed_place(choose_output(out)) as place:
        output = observe_output(place.out)
        left_out = LeftOutShards(output.layout)
        has_any = show_failures(read_failures(output, wanted, leave_out=left_out), form)
    if not has_any and left_out.exit_code is ExitCode.COMPLETE:
        which = [f"as {' or '.join(sorted(wanted.kinds))}"] if wanted.kinds else []
        which += [f"with HTTP status {' or '.join(map(str, sorted(wanted.statuses)))}"] if wanted.statuses else []
        which += [f"at {' or '.join(wanted.hosts)}"] if wanted.hosts else []
        where = shlex.quote(str(output.layout.out) if place.view is None else place.location)
        write_line(f"no image of {where} has failed{''.join(f' {text}' for text in which)}")
    return left_out.exit_code


command = as_command(failures)
