"""``datafetch prepare``: build a dataset where the trainer expects it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from datafetch.cli.options import ChoiceOptions, RunOptions, with_choice_options, with_run_options
from datafetch.cli.outcome import report_outcome
from datafetch.cli.progress import ProgressConsole, show_progress, show_remarks
from datafetch.datasets import find_dataset
from datafetch.engine.job import Job, own_spec
from datafetch.engine.runner import run
from datafetch.errors import ConfigurationError


@with_choice_options
@with_run_options
def prepare(  # noqa: PLR0913 - one parameter an option
    target: Annotated[str, typer.Argument(help="A dataset, such as coyo.")],
    *,
    source: Annotated[Path, typer.Option(metavar="PATH", help="The published manifest, or the folder it lies in.")],
    root: Annotated[Path, typer.Option(help="The trainer's data folder.")] = Path("playground/data"),
    ids: Annotated[Path | None, typer.Option(metavar="FILE", help="Wanted ids, one a line, plain or gzipped.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Only the first N samples.")] = None,
    choice_options: ChoiceOptions,
    options: RunOptions,
) -> int:
    """Build a dataset where the trainer expects it, resuming an earlier run."""
    dataset = find_dataset(target)
    if not 0 <= options.min_success <= 1:
        raise ConfigurationError(f"--min-success is a share from 0 to 1, not {options.min_success}")
    job = Job(
        dataset=target,
        source=str(source),
        out=str(root / dataset.path),
        ids=str(ids) if ids else None,
        limit=limit,
        image=options.image_spec(own_spec(dataset)),
        payload=options.payload,
        fetch=options.fetch_policy(),
        processes=options.processes,
        memory_bytes=options.memory_bytes(),
        max_sample_bytes=options.max_sample_bytes(),
        scratch=options.scratch,
        world_size=options.ranks(),
        fresh=options.fresh,
        no_lock=options.no_lock,
        choices=choice_options.choices(),
    )
    console = ProgressConsole()
    with show_remarks(console):
        report = run(job, observe=partial(show_progress, console=console))
    return report_outcome(report, options)
