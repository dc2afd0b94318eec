"""``datafetch prepare``: build a dataset where the trainer expects it.

The options depend on the dataset, so the command is built once the dataset is known. Without a dataset, help lists all
datasets.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from datafetch.cli.command import USAGE_ERRORS, Command, as_command, with_options, write_examples
from datafetch.cli.options import (
    PERMISSIONS,
    CheckSources,
    DryRun,
    GivenOptions,
    JobOfAnother,
    Json,
    MinSuccess,
    NoReshard,
    Root,
    parameters_of,
)
from datafetch.cli.recipe import prepare as prepare_several
from datafetch.cli.reporter import Reporting
from datafetch.cli.single_job import SingleJob
from datafetch.datasets import DATASETS, find_dataset
from datafetch.datasets.recipes import RECIPE, STEPS, default_source, expand_targets, part_of
from datafetch.engine.cluster.choice import WhereToRun
from datafetch.engine.job import Job, own_spec, reshard_plan
from datafetch.engine.recipe import with_limited_rows
from datafetch.engine.repeated_job import read_repeated_job
from datafetch.errors import ConfigurationError
from datafetch.fetch import FetchPolicy
from datafetch.model.dataset import Dataset
from datafetch.model.location import output_below
from datafetch.model.options import OptionField, OptionGroup, options_of

if TYPE_CHECKING:
    from typer._click import Context
    from typer._click.formatting import HelpFormatter


_UNSET = Job("", "", "")
_EXAMPLES = {
    "datafetch prepare gqa --limit 100": "100 of its images",
    "datafetch prepare coyo --source coyo/data --ids ids.txt": "from files here",
    "datafetch prepare step-0 step-1 --root playground/data": "steps of the recipe",
}


def _complete_target(incomplete: str) -> list[tuple[str, str]]:
    return [
        (name, text)
        for name, text in (*((name, dataset.summary) for name, dataset in DATASETS.items()), *_STEPS)
        if name.startswith(incomplete)
    ]


def prepare(  # noqa: PLR0913 - one parameter an option
    target: Annotated[str, typer.Argument(metavar="DATASET", hidden=True, autocompletion=_complete_target)],
    *,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|URL",
            help="The published manifest or archive, or the folder of it; or a place on the hub, "
            "hf://datasets/OWNER/NAME. Not needed for what is read from where it is published.",
            rich_help_panel=OptionGroup.SELECTION,
        ),
    ] = None,
    job: JobOfAnother = None,
    root: Root = "playground/data",
    no_reshard: NoReshard = False,
    min_success: MinSuccess = 0.0,
    check_sources: CheckSources = False,
    dry_run: DryRun = False,
    json: Json = False,
    given: GivenOptions,
) -> int:
    """Build a dataset where the trainer expects it, resuming an earlier run."""
    dataset = find_dataset(target)
    place = default_source(target) if source is None else source
    own = Job(target, place, output_below(root, dataset.path), image=own_spec(dataset), options=dataset.options)
    return SingleJob(
        dataset=target,
        make=lambda given: with_limited_rows(given.change(own)),
        given=given,
        repeats=job,
        no_reshard=no_reshard,
        min_success=min_success,
        dry_run=dry_run,
        json=json,
        check_sources=check_sources,
    ).carry_out()


class _PrepareTargets(Command):
    """The command for targets that are known."""

    def collect_usage_pieces(self, ctx: Context) -> list[str]:  # noqa: ARG002 - typer's signature
        """Return only the options: the targets are part of the command's name."""
        return ["[OPTIONS]"]


class _PrepareSeveral(_PrepareTargets):
    """The command for several datasets."""

    def format_help_text(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write what the command does, and which datasets the targets stand for."""
        super().format_help_text(ctx, formatter)
        targets = (ctx.info_name or "").split()[1:]
        parts = [part_of(name) for name in expand_targets(targets)]
        needs = {part.name: DATASETS[part.name].summary for part in parts}
        needs |= {part.name: f"{needs[part.name]} Needs a --source." for part in parts if not part.readable_place}
        with formatter.section("Datasets"):
            formatter.write_dl(list(needs.items()))


class _PrepareDataset(_PrepareTargets):
    """The command for one dataset."""

    dataset: Dataset

    def format_help_text(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write what the command does, and the summary of the dataset."""
        super().format_help_text(ctx, formatter)
        with formatter.indentation():
            formatter.write_text(self.dataset.summary)


class _Prepare(Command):
    """The command before the dataset is known, with the options of all datasets."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Context | None = None, **extra: Any
    ) -> Context:
        """Parse the names of datasets and steps, and leave everything else to their command.

        Raises:
            ConfigurationError: There is no such dataset or step, or it does not take an option that is given.
        """
        ctx = self.context_class(self, info_name=info_name, parent=parent, **extra)
        try:
            given, *_ = self.make_parser(ctx).parse_args(args=list(args))
        except USAGE_ERRORS:
            _refuse_as_target(info_name, args, parent)
            raise
        targets = list(cast("tuple[str, ...]", given.get("targets") or ()))
        if ctx.resilient_parsing and not (targets and set(targets) <= {*DATASETS, *STEPS}):  # completes a word
            return _command_without_dataset().make_context(info_name, args, parent, **extra)
        expand_targets(targets)
        if "job" in given and not targets:
            targets = [read_repeated_job(Path(str(given["job"]))).job.dataset]
            args = [*targets, *args]
        if len(targets) == 1 and targets[0] not in STEPS:
            command = _command_for(find_dataset(targets[0]), given)
            return command.make_context(f"{info_name} {targets[0]}", args, parent, **extra)
        if targets:
            if strange := [_flag(name) for name in given if name in {*_OF_SOME, "job"} and name != "ids"]:
                raise ConfigurationError(f"{', '.join(strange)} is for single datasets; prepare those one by one")
            return _command_for_several().make_context(f"{info_name} {' '.join(targets)}", args, parent, **extra)
        if "help" not in given:
            ctx.fail(f"name a dataset or a step: {', '.join([*STEPS, *DATASETS])}")
        return _command_without_dataset().make_context(info_name, args, parent, **extra)


class _PrepareHelp(Command):
    """The command without a dataset, which only shows help."""

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write examples, the datasets, and the options that all of them take."""
        write_examples(formatter, _EXAMPLES)
        with formatter.section("Datasets"):
            formatter.write_dl([(name, dataset.summary) for name, dataset in DATASETS.items()])
        with formatter.section("Steps"):
            formatter.write_dl(_STEPS)
        formatter.write_paragraph()
        formatter.write_text("A step stands for its datasets. With several, --source and --ids take NAME=PATH.")
        formatter.write_paragraph()
        formatter.write_text("Options of most datasets; 'datafetch prepare DATASET --help' lists those that one takes.")
        super().format_options(ctx, formatter)


def _refuse_as_target(info_name: str | None, args: list[str], parent: Context | None) -> None:
    """Let the command for the targets that are named refuse an option, since it knows which options and help they have.

    Raises:
        typer.BadParameter, or a sibling of it: The option is refused.
    """
    targets = [word for word in args if word in DATASETS or word in STEPS]
    if targets:
        (name, *others) = targets
        is_one = not others and name not in STEPS
        command = _command_for(find_dataset(name), {}) if is_one else _command_for_several()
        command.make_context(f"{info_name} {' '.join(targets)}", list(args), parent)


def _command_for(dataset: Dataset, given: Mapping[str, object]) -> Command:
    """Make the command for a dataset.

    Raises:
        ConfigurationError: An option was given that only other datasets take.
    """
    own = [*(["ids"] if dataset.id_list else []), *(one.name for one in options_of(type(dataset.options)))]
    if strange := [_flag(name) for name in given if name in _OF_SOME and name not in own]:
        known = ", ".join(map(_flag, sorted(own))) or "none"
        raise ConfigurationError(
            f"{dataset.name} does not take {', '.join(strange)}; of the options of single datasets it takes {known} "
            f"('datafetch prepare {dataset.name} --help' lists all)"
        )
    options = [*_run_parameters(dataset), *parameters_of([dataset.options])]
    command = cast("_PrepareDataset", as_command(with_options(prepare, options, GivenOptions), _PrepareDataset))
    command.dataset = dataset
    for one in command.params:
        if one.name in _idle_options(dataset):
            one.hidden = True  # type: ignore[attr-defined]  # an option, not an argument
    return command


@cache
def _command_for_several() -> Command:
    return as_command(with_options(prepare_several, _run_parameters(None), GivenOptions), _PrepareSeveral)


@cache
def _command_without_dataset() -> Command:
    return as_command(with_options(prepare, _run_parameters(None), GivenOptions), _PrepareHelp)


def _run_parameters(dataset: Dataset | None) -> list[Parameter]:
    """The options of a run, with the defaults of a dataset; without one, with those on which all datasets agree."""
    datasets = list(DATASETS.values()) if dataset is None else [dataset]

    def is_taken(one: OptionField) -> bool:
        return one.name != "ids" or (dataset is not None and dataset.id_list is not None)

    def add_help(one: OptionField) -> str:
        if one.name == "ids" and dataset is not None:
            return f"One {dataset.id_list} per line."
        return "May be given to retry later." if one.name in PERMISSIONS else ""

    return [
        *parameters_of([FetchPolicy()], add_help=add_help),
        *parameters_of([own_spec(dataset) for dataset in datasets], add_help=add_help),
        *parameters_of([_UNSET], is_selected=is_taken, add_help=add_help),
        *parameters_of([WhereToRun()]),
        *parameters_of([Reporting()]),
    ]


def _idle_options(dataset: Dataset) -> set[str]:
    """Options of a run that have no effect on a dataset; they are accepted, but not listed."""
    idle = {"payload"} if len(dataset.payloads) == 1 else set()
    return idle if reshard_plan(_UNSET, dataset) else idle | {"world_size", "no_reshard"}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


_STEPS = [
    (step, f"{sum(part.step_name == step for part in RECIPE)} datasets: 'prepare {step} --help' shows its options.")
    for step in STEPS
]
_ALL_OPTIONS = {
    one.name: one
    for one in (
        *parameters_of([_UNSET]),
        *parameters_of([FetchPolicy()]),
        *parameters_of([own_spec(dataset) for dataset in DATASETS.values()]),
        *parameters_of([WhereToRun()]),
        *parameters_of([Reporting()]),
        *(one for dataset in DATASETS.values() for one in parameters_of([dataset.options])),
    )
}
_OF_SOME = _ALL_OPTIONS.keys() - {one.name for one in _run_parameters(None)}
_PARSED = [
    Parameter("job", Parameter.KEYWORD_ONLY, default=None, annotation=JobOfAnother),
    *(one for name, one in _ALL_OPTIONS.items() if name != "ids"),
]

command = as_command(with_options(prepare_several, _PARSED, GivenOptions), _Prepare)
