"""Options → Job → run → exit code. Nothing is decided here.

Rules: standard output is for results, standard error for progress and for the one line that says what went wrong.
"""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from datafetch.datasets import find_dataset
from datafetch.errors import ConfigurationError, ConservationError, DatafetchError, ResourceError
from datafetch.job import Job, own_spec
from datafetch.model import FailureKind, Loader
from datafetch.options import (
    ChoiceOptions,
    RetryOptions,
    RunOptions,
    with_choice_options,
    with_retry_options,
    with_run_options,
)
from datafetch.progress import ProgressConsole, show_progress, show_remarks, show_verifying
from datafetch.rearrange import Watch
from datafetch.report import Report
from datafetch.reshard import Request
from datafetch.reshard import reshard as make_equal_shards
from datafetch.reshard_progress import show_resharding
from datafetch.runner import retry as retry_run
from datafetch.runner import run
from datafetch.show import show_report, show_resharded, show_status, show_verdict
from datafetch.status import read_status
from datafetch.verify import Check, run_check
from datafetch.wanted import Wanted


class ExitCode(IntEnum):
    """What the shell is told."""

    COMPLETE = 0
    BUG = 1
    NOT_SOUND = 1  # the contract's, and nobody takes the two for each other: a bug says so on standard error
    WRONG_COMMAND = 2
    TOO_FEW_IMAGES = 3
    OUT_OF_RESOURCES = 4
    INTERRUPTED = 130


_EXIT_CODES = {ResourceError: ExitCode.OUT_OF_RESOURCES, ConservationError: ExitCode.BUG}

_GO_ON = "; run the same command again to go on from here"
_AFTER_CTRL_C = {
    "prepare": _GO_ON,
    "retry": _GO_ON,
    "reshard": _GO_ON,
    "demo": "; the same command begins a new demo in the same folder",
    "verify": "; nothing was changed, and the same command begins anew",
    "status": "; nothing was changed",
}

# All errors of usage, by their common base: typer exports only this one of them, from a click of its own.
_USAGE_ERRORS: tuple[type[typer.BadParameter], ...] = (cast("type[typer.BadParameter]", typer.BadParameter.__base__),)

app = typer.Typer(
    help="Fetch the images that vision-language models are trained on, into exactly the files the trainer loads.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code; errors become one line on standard error."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with _sigterm_as_ctrl_c():
            code: int | None = app(words or ["--help"], prog_name="datafetch", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = ExitCode.INTERRUPTED
    except DatafetchError as error:
        return _complain(str(error), _EXIT_CODES.get(type(error), ExitCode.WRONG_COMMAND))
    except OSError as error:
        is_wrong_path = error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)
        code = ExitCode.WRONG_COMMAND if is_wrong_path else ExitCode.OUT_OF_RESOURCES
        return _complain(str(ResourceError.of_disk(error, "go on")), code)
    except _USAGE_ERRORS as error:
        command = error.ctx.command_path if error.ctx else "datafetch"
        return _complain(f"{error.format_message()} (see '{command} --help')", ExitCode.WRONG_COMMAND)
    if code == ExitCode.INTERRUPTED:  # typer itself makes this of Ctrl-C, without a word
        return _complain(f"interrupted{_after_ctrl_c(words)}", ExitCode.INTERRUPTED)
    return ExitCode.COMPLETE if code is None else code


def _after_ctrl_c(words: Sequence[str]) -> str:
    """What to do once a command was interrupted, or what it left."""
    command = next((word for word in words if not word.startswith("-")), "")
    return _AFTER_CTRL_C.get(command, "")


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """A cluster's scheduler says SIGTERM where a person says Ctrl-C, and means the same."""
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _complain(message: str, code: ExitCode) -> ExitCode:
    sys.stderr.write(f"datafetch: {' '.join(message.split())}\n")
    return code


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"datafetch {version('datafetch')}")
        raise typer.Exit


@app.callback()
def _datafetch(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
@with_choice_options
@with_run_options
def prepare(  # noqa: PLR0913 - one parameter an option
    target: Annotated[str, typer.Argument(help="A dataset, such as coyo.")],
    *,
    source: Annotated[Path, typer.Option(metavar="PATH", help="The published manifest, or the folder it lies in.")],
    root: Annotated[Path, typer.Option(help="The trainer's data folder.")] = Path("playground/data"),
    ids: Annotated[Path | None, typer.Option(metavar="FILE", help="Wanted ids, one a line, plain or gzipped.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many samples.")] = None,
    choice_options: ChoiceOptions,
    options: RunOptions,
) -> int:
    """Build a dataset where the trainer expects it; an earlier run is gone on with."""
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
        scratch=options.scratch,
        world_size=options.ranks(),
        fresh=options.fresh,
        choices=choice_options.choices(),
    )
    console = ProgressConsole()
    with show_remarks(console):
        report = run(job, observe=partial(show_progress, console=console))
    return _close(report, options)


@app.command()
@with_retry_options
def retry(
    out: Annotated[Path, typer.Argument(help="The folder that prepare filled.")],
    *,
    kinds: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND,…", help="Failures of these kinds. Repeatable.", show_default="those that may pass"),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Whatever failed.")] = False,
    options: RetryOptions,
) -> int:
    """Try again what failed for a reason that may pass, and bring what arrives into the shards."""
    console = ProgressConsole()
    with show_remarks(console):
        report = retry_run(
            str(out),
            _wanted(kinds, everything=everything),
            change=options.change,
            observe=partial(show_progress, console=console),
        )
    return _close(report, options)


def _wanted(kinds: Sequence[str] | None, *, everything: bool) -> Wanted:
    if everything and kinds:
        raise ConfigurationError("give --kinds or --all, not both")
    if everything:
        return Wanted.all()
    if not kinds:
        return Wanted()
    named = [kind.strip() for part in kinds for kind in part.split(",")]
    for kind in named:
        if kind not in tuple(FailureKind):
            raise ConfigurationError(f"there is no failure kind {kind!r}; there are: {', '.join(FailureKind)}")
    return Wanted(frozenset(map(FailureKind, named)))


def _close(report: Report, options: RunOptions | RetryOptions) -> int:
    """Say what was done, and whether it is enough."""
    show_report(report, as_json=options.json)
    images = report.totals.images
    share = report.totals.ok / images if images else 1.0
    if share >= options.min_success:
        return ExitCode.COMPLETE
    return _complain(
        f"{share:.1%} of the images arrived, --min-success asks for {options.min_success:.1%}",
        ExitCode.TOO_FEW_IMAGES,
    )


@app.command()
def demo(
    images: Annotated[int, typer.Option(help="How many, faulty ones included.", min=50, max=20_000)] = 500,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to; an empty or new folder.", show_default="a new folder")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output at the end.")] = False,
) -> int:
    """See it work: an image server on this machine, with faults, and a small dataset fetched from it."""
    from datafetch.demo import run_demo  # noqa: PLC0415 - paints pictures; no other command needs that loaded

    err = ProgressConsole()
    err.print("painting pictures, starting an image server on this machine, fetching from it …", soft_wrap=True)
    with show_remarks(err):
        result = run_demo(images, out, observe=partial(show_progress, console=err))
    show_report(result.report, as_json=json)
    (err if json else Console()).print(result.table())
    return ExitCode.COMPLETE if result.is_right else ExitCode.BUG


@app.command()
def reshard(  # noqa: PLR0913 - one parameter an option
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder of .pkl and .count files; never changed.")],
    out: Annotated[Path, typer.Argument(metavar="DST", help="Where to; an empty or new folder.")],
    *,
    world_size: Annotated[int, typer.Option(help="Ranks of the training.")] = 64,
    batch: Annotated[int, typer.Option(help="Groups that a rank takes in one step.")] = 2,
    group: Annotated[
        int | None,
        typer.Option(help="Samples that the loader takes together.", show_default="4 for pairs, 1 for documents"),
    ] = None,
    shuffle: Annotated[
        str | None,
        typer.Option(metavar="SEED|none", help="Shuffle all rows.", show_default="0 for pairs, none for documents"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output at the end.")] = False,
) -> int:
    """Make equal shards, so that each rank reads as much as the others and nothing is lost."""
    console = ProgressConsole()
    with show_remarks(console), show_resharding(console) as tell:
        made = make_equal_shards(Request(source, out, world_size, batch, group, shuffle), Watch(tell))
    if made is None:
        return ExitCode.INTERRUPTED
    show_resharded(made, as_json=json)
    return ExitCode.COMPLETE


@app.command()
def verify(  # noqa: PLR0913 - each is an option of the command line
    out: Annotated[Path, typer.Argument(help="A folder of shards, or a JSON list of records.")],
    *,
    loader: Annotated[
        Loader | None, typer.Option(help="Whose demands.", show_default="the job's, or told by the first row")
    ] = None,
    image_root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What paths in a JSON list start from.", show_default="the list's folder"),
    ] = None,
    world_size: Annotated[int, typer.Option(help="Ranks that will read the shards.")] = 64,
    batch: Annotated[int, typer.Option(help="Groups of samples that a rank takes in one step.")] = 2,
    group: Annotated[
        int | None,
        typer.Option(help="Samples that the loader takes together.", show_default="4 for coyo, 1 for mmc4"),
    ] = None,
    processes: Annotated[int | None, typer.Option(help="Codec processes.", show_default="CPU count")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output at the end.")] = False,
) -> int:
    """Check everything that the trainer's loader demands, every image decoded; exit 1 when something is amiss."""
    check = Check(
        out=str(out),
        loader=loader,
        image_root=None if image_root is None else str(image_root),
        world_size=world_size,
        batch=batch,
        group=group,
        processes=processes,
    )
    console = ProgressConsole()
    with show_remarks(console):
        verdict = run_check(check, observe=partial(show_verifying, console=console))
    show_verdict(verdict, as_json=json)
    return ExitCode.COMPLETE if verdict.is_sound else ExitCode.NOT_SOUND


@app.command()
def status(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The output folder, or its state folder.")],
    *,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> int:
    """Say where a run stands, also while it goes on; it is not disturbed."""
    show_status(read_status(out), as_json=json)
    return ExitCode.COMPLETE
