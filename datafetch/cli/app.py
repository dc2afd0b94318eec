"""Options → Job → run → exit code. Nothing is decided here.

Rules: standard output is for results, standard error for progress and for the one line that says what went wrong. This
module imports neither the network stack nor Arrow: a command's own module does, once that command is the one to run.
"""

from __future__ import annotations

import errno
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from datafetch.cli import signals
from datafetch.cli.exit_code import ExitCode, complain
from datafetch.errors import ConservationError, DatafetchError, ResourceError, is_want

if TYPE_CHECKING:
    from typer._click import Command as ClickCommand  # typer has a click of its own, and exports no name for this
    from typer._click import Context
    from typer._click.formatting import HelpFormatter


@dataclass(frozen=True, slots=True)
class _Summary:
    """What is known of a command without loading it.

    Attributes:
        help: Its line in the list of commands: the first sentence of what its own help says.
        after_ctrl_c: What to do once it was interrupted, or what it left; follows "interrupted; ".
    """

    help: str
    after_ctrl_c: str


_GO_ON = "run the same command again to go on from here"
_COMMANDS = {
    "prepare": _Summary("Build a dataset where the trainer expects it; an earlier run is gone on with.", _GO_ON),
    "retry": _Summary(
        "Try again what failed for a reason that may pass, and bring what arrives into the shards.", _GO_ON
    ),
    "demo": _Summary(
        "See it work: an image server on this machine, with faults, and a small dataset fetched from it.",
        "the same command begins a new demo in the same folder",
    ),
    "reshard": _Summary(
        "Make equal shards, so that each rank reads as much as the others and nothing is lost.", _GO_ON
    ),
    "verify": _Summary(
        "Check everything that the trainer's loader demands, every image decoded; exit 1 when something is amiss.",
        "nothing was changed, and the same command begins anew",
    ),
    "status": _Summary("Say where a run stands, also while it goes on; it is not disturbed.", "nothing was changed"),
}

_LEAST_ADDRESS_SPACE_BYTES = 1 << 30  # most of it reserved for threads and never used

_EXIT_CODES: Mapping[type[DatafetchError], ExitCode] = {
    ResourceError: ExitCode.OUT_OF_RESOURCES,
    ConservationError: ExitCode.BUG,
}

# All errors of usage, by their common base: typer exports only this one of them, from a click of its own.
_USAGE_ERRORS: tuple[type[typer.BadParameter], ...] = (cast("type[typer.BadParameter]", typer.BadParameter.__base__),)

_SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}


class _Commands(typer.core.TyperGroup):
    """Loads a command when it is asked for, and lists all of them without loading any."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # typer suggests of these names what may have been meant; the commands come from get_command.
        self.commands.update(cast("dict[str, ClickCommand]", dict.fromkeys(_COMMANDS)))

    def list_commands(self, ctx: Context) -> list[str]:  # noqa: ARG002 - typer's signature
        """Their names, in the order of the list of commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: Context, cmd_name: str) -> ClickCommand | None:  # noqa: ARG002 - typer's signature
        """The command of a name; None when there is none."""
        if cmd_name not in _COMMANDS:
            return None
        _refuse_small_address_space()
        command = getattr(import_module(f"datafetch.cli.commands.{cmd_name}"), cmd_name)
        signals.begin()
        alone = typer.Typer(**_SETTINGS)
        alone.command(cmd_name)(command)
        return typer.main.get_command(alone)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002 - typer's signature
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in _COMMANDS.items()])


app = typer.Typer(
    cls=_Commands,
    help="Fetch the images that vision-language models are trained on, into exactly the files the trainer loads.",
    **_SETTINGS,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code; errors become one line on standard error."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code: int | None = app(words or ["--help"], prog_name="datafetch", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = ExitCode.INTERRUPTED
    except DatafetchError as error:
        return complain(str(error), _exit_code(error))
    except _USAGE_ERRORS as error:
        command = error.ctx.command_path if error.ctx else "datafetch"
        return complain(f"{error.format_message()} (see '{command} --help')", ExitCode.WRONG_COMMAND)
    except Exception as error:
        if not (is_want(error) or isinstance(error, OSError)):
            raise
        return _complain_of_machine(error)
    if code == ExitCode.INTERRUPTED:  # typer itself makes this of Ctrl-C, without a word
        return complain(f"interrupted{_after_ctrl_c(words)}", ExitCode.INTERRUPTED)
    return ExitCode.COMPLETE if code is None else code


def _refuse_small_address_space() -> None:
    """See that there is room for the libraries that a command loads; some of them end the process where there is not.

    Raises:
        ResourceError: There is too little.
    """
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit_bytes != resource.RLIM_INFINITY and limit_bytes < _LEAST_ADDRESS_SPACE_BYTES:
        raise ResourceError(
            f"this process may have {limit_bytes >> 20:,} MiB of address space ('ulimit -v'), and needs "
            f"{_LEAST_ADDRESS_SPACE_BYTES >> 20:,} at least; raise that limit and run the same command again"
        )


def _exit_code(error: DatafetchError) -> ExitCode:
    return next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), ExitCode.WRONG_COMMAND)


def _complain_of_machine(error: Exception) -> ExitCode:
    """Say what this machine lacks, or which file it could not do something with."""
    if is_want(error) or not isinstance(error, OSError):
        return complain(str(ResourceError.of_want(error)), ExitCode.OUT_OF_RESOURCES)
    is_wrong_path = error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)
    code = ExitCode.WRONG_COMMAND if is_wrong_path else ExitCode.OUT_OF_RESOURCES
    return complain(str(ResourceError.of_disk(error, "go on")), code)


def _after_ctrl_c(words: Sequence[str]) -> str:
    command = next((word for word in words if not word.startswith("-")), "")
    return f"; {_COMMANDS[command].after_ctrl_c}" if command in _COMMANDS else ""


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
