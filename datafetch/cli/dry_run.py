"""What a dry run found out, as text for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datafetch.model.kinds import OutputState
from datafetch.model.untrusted import to_printable

if TYPE_CHECKING:
    from datafetch.engine.dry_run import DryRun  # which would load the network stack

_STATES = {
    OutputState.NEW: "new",
    OutputState.RESUMED: "the run would be resumed",
    OutputState.STARTED_OVER: "the run would start over, and delete what is there",
    OutputState.REUSED: "the run would start over, and take what it can of what is there",
    OutputState.COMPLETE: "complete; nothing is left to fetch",
    OutputState.REPAIRED: "shards are missing or have changed; the images of their rows would be fetched",
    OutputState.RESHARDED: "complete; it would be resharded for other ranks",
    OutputState.REFUSED: "the run would be refused",
}


def dry_run_text(one: DryRun, columns: int | None) -> str:
    """Format what a run would do: a line with the dataset, and a table of facts.

    Args:
        one: What was found out.
        columns: How wide the table may be; None for the width of the terminal.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _facts(one):
        table.add_row(name, Text(to_printable(text)))
    console = Console(highlight=False, width=columns)
    with console.capture() as captured:
        console.print(table)
    lines = [f"{one.dataset}: {to_printable(one.out)}", *captured.get().splitlines()]
    return "\n".join(line.rstrip() for line in lines)


def _facts(one: DryRun) -> Iterator[tuple[str, str]]:
    """What is known of a run: a name and a text each."""
    yield "output", _output(one)
    for location in one.asked_first:
        yield "asked first", location
    if one.samples is not None:
        yield "rows", f"at most {'' if one.is_counted else 'about '}{one.samples:,}"
    elif one.asked_first:
        yield "rows", "not known before these are asked" if len(one.asked_first) > 1 else "not known before it is asked"
    if one.images is not None:
        yield "images", f"{'' if one.is_counted else 'about '}{one.images:,}"
    if one.hosts:
        shares = ", ".join(f"{host.host} {host.images / one.sampled_images:.1%}" for host in one.hosts)
        yield "hosts", shares if one.is_counted else f"of the first {one.sampled_images:,} images: {shares}"
    if one.disk is not None:
        yield "disk", one.disk.text()
    for choice in one.choices:
        yield "chosen", choice
    for name, settings in (
        ("rows from", one.row_settings),
        ("by default", one.row_defaults),
        ("also set", one.other_settings),
    ):
        if settings:
            yield name, " ".join(settings)


def _output(one: DryRun) -> str:
    state = _STATES[one.state]
    if one.problem:
        return f"{state}: {one.problem}"
    if one.state is OutputState.RESUMED and one.shards is not None:
        return f"{state}, with {one.shards_published:,} of {one.shards:,} shards published"
    return state
