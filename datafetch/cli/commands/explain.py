"""``datafetch explain``: show everything about one sample."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from datafetch.cli.command import as_command
from datafetch.cli.exit_code import write_line
from datafetch.cli.explanation_text import show_explanation
from datafetch.cli.left_out_shards import LeftOutShards
from datafetch.cli.options import Json
from datafetch.cli.output_choice import choose_output
from datafetch.monitor import explanation
from datafetch.monitor.observed_output import observe_output
from datafetch.store.buckets.view import observed_place


def explain(
    out: Annotated[str, typer.Argument(metavar="OUT", help="The output folder, or its state folder.")],
    sample: Annotated[
        str, typer.Argument(metavar="KEY|URL", help="The key of a sample, or the published URL of an image.")
    ],
    *,
    json: Json = False,
) -> int:
    """Show everything about one sample: whether it became a row, and what became of each of its images."""
    with observed_place(choose_output(out, partial(write_line, as_json=json))) as place:
        output = observe_output(place.out)
        left_out = LeftOutShards(output.layout, as_json=json)
        show_explanation(explanation.explain(output, sample, leave_out=left_out), as_json=json)
    return left_out.exit_code


command = as_command(explain)
