"""``datafetch demo``: fetch a small dataset, or the recipe's, from a server on this machine; no network is needed."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from datafetch.cli.command import as_command, with_options
from datafetch.cli.exit_code import ExitCode
from datafetch.cli.options import GivenOptions, Json, parameters_of
from datafetch.cli.progress import show_progress
from datafetch.cli.recipe import observe_built
from datafetch.cli.render import show_built, show_report
from datafetch.cli.report_targets import ReportConsole
from datafetch.cli.reporter import Reporter, Reporting, open_reporter
from datafetch.demo.recipe import RecipeDemoResult, run_recipe_demo
from datafetch.demo.run import DEFAULT_FOLDER, DemoResult, run_demo
from datafetch.errors import ConfigurationError

_IMAGES = 500
_log = logging.getLogger(__name__)


def demo(
    *,
    images: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of images, faulty ones included.",
            min=50,
            max=20_000,
            show_default=str(_IMAGES),
        ),
    ] = None,
    recipe: Annotated[
        bool,
        typer.Option(
            "--recipe", help="Build all steps of the recipe in miniature, and check every file; needs the extra 'hub'."
        ),
    ] = False,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Output folder: new, empty, or that of an earlier demo.")
    ] = DEFAULT_FOLDER,
    json: Json = False,
    given: GivenOptions,
) -> int:
    """Fetch a small dataset from a local image server with deliberate faults."""
    if recipe and images is not None:
        raise ConfigurationError("the recipe's miniature has its own number of images; leave out --images or --recipe")
    with open_reporter(given.apply(Reporting())) as reporter:
        _log.info("painting pictures, and fetching them from an image server on this machine …")
        result = _recipe(out, reporter, json=json) if recipe else _images(images or _IMAGES, out, reporter, json=json)
    (ReportConsole() if json else Console()).print(result.table())
    return ExitCode.COMPLETE if result.is_passed else ExitCode.BUG


def _images(images: int, out: Path, reporter: Reporter, *, json: bool) -> DemoResult:
    result = run_demo(images, out, observers=[partial(show_progress, reporter=reporter)])
    show_report(result.report, as_json=json, is_demo=True)
    return result


def _recipe(out: Path, reporter: Reporter, *, json: bool) -> RecipeDemoResult:
    result = run_recipe_demo(out, partial(observe_built, reporter=reporter))
    show_built(result.built, as_json=json, is_demo=True)
    return result


command = as_command(with_options(demo, parameters_of([Reporting()]), GivenOptions))
