"""``datafetch retry``: fetch failed images again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from datafetch.cli.options import RetryOptions, with_retry_options
from datafetch.cli.outcome import report_outcome
from datafetch.cli.progress import ProgressConsole, show_progress, show_remarks
from datafetch.engine.runner import retry as retry_run
from datafetch.errors import ConfigurationError
from datafetch.model.outcome import FailureKind
from datafetch.store.retry_filter import RetryFilter


@with_retry_options
def retry(
    out: Annotated[Path, typer.Argument(help="The folder that prepare filled.")],
    *,
    kinds: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND,…", help="Failures of these kinds. Repeatable.", show_default="temporary ones"),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All failures.")] = False,
    options: RetryOptions,
) -> int:
    """Retry failures that may be temporary, and add the images that arrive to the shards.

    A retry that was interrupted is completed first, as it was begun. Options that permit what is refused by default
    (--insecure, --allow-net, --opt-out ignore, --max-body, --max-pixels, --max-sample) also retry the images that
    failed for want of them, and hold for later retries too.
    """
    console = ProgressConsole()
    with show_remarks(console):
        report = retry_run(
            str(out),
            _wanted(kinds, everything=everything, cured=options.cured),
            change=options.change,
            observe=partial(show_progress, console=console),
        )
    return report_outcome(report, options)


def _wanted(kinds: Sequence[str] | None, *, everything: bool, cured: frozenset[FailureKind]) -> RetryFilter:
    if everything and kinds:
        raise ConfigurationError("give --kinds or --all, not both")
    if everything:
        return RetryFilter.all()
    if not kinds:
        return RetryFilter(also=cured)
    named = [kind.strip() for part in kinds for kind in part.split(",")]
    for kind in named:
        if kind not in tuple(FailureKind):
            raise ConfigurationError(f"there is no failure kind {kind!r}; there are: {', '.join(FailureKind)}")
    return RetryFilter(frozenset(map(FailureKind, named)))
