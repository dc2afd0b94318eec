"""``datafetch verify``: check an output as the trainer's loader will read it."""

from __future__ import annotations

import logging
from functools import partial
from typing import Annotated

import typer

from datafetch.cli.command import as_command, with_options
from datafetch.cli.exit_code import ExitCode
from datafetch.cli.options import GivenOptions, Json, parameters_of
from datafetch.cli.output_choice import choose_output
from datafetch.cli.progress import show_verifying
from datafetch.cli.render import show_verdict
from datafetch.cli.reporter import Reporting, open_reporter
from datafetch.verify import Check, run_check

_log = logging.getLogger(__name__)


def verify(
    out: Annotated[str, typer.Argument(metavar="OUT", help="A folder of shards or images, or a JSON list of records.")],
    *,
    given: GivenOptions,
    json: Json = False,
) -> int:
    """Check an output as the trainer's loader will read it, decoding every image; exit 1 if there are problems."""
    with open_reporter(given.apply(Reporting())) as reporter:
        check = given.apply(Check(str(choose_output(out, _log.info))))
        verdict = run_check(check, observers=[partial(show_verifying, reporter=reporter)])
        show_verdict(verdict, as_json=json)
    return ExitCode.COMPLETE if verdict.is_sound else ExitCode.NOT_SOUND


_OPTIONS = [*parameters_of([Check("")]), *parameters_of([Reporting()])]

command = as_command(with_options(verify, _OPTIONS, GivenOptions))
