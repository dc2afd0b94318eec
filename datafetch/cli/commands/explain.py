"""``datafetch explain``: show everything about one sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datafetch.cli.command import as_command
from datafetch.cli.exit_code import ExitCode
from datafetch.cli.explanation_text import show_explanation
from datafetch.cli.options import Json
from datafetch.monitor import explanation
from datafetch.monitor.observed_output import observe_output


def explain(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The output folder, or its state folder.")],
    sample: Annotated[
        str, typer.Argument(metavar="KEY|URL", help="The key of a sample, or the published URL of an image.")
    ],
    *,
    json: Json = False,
) -> int:
    """Show everything about one sample: whether it became a row, and what became of each of its images."""
    show_explanation(explanation.explain(observe_output(out), sample), as_json=json)
    return ExitCode.COMPLETE


command = as_command(explain)
