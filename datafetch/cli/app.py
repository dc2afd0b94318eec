"""The command ``datafetch``: options → job → run → exit code. Nothing is decided here.

Rules: standard output is for results, standard error for progress and for the one line that says what went wrong. This
module imports neither the network stack nor Arrow: the module of a command does, when that command is run.
"""

from __future__ import annotations

import errno
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

import datafetch
from datafetch.cli import signals
from datafetch.cli.command import SETTINGS, USAGE_ERRORS, write_examples
from datafetch.cli.exit_code import RESUME, ExitCode, complain, exit_code_of_error, message_of, without_fresh
from datafetch.errors import DatafetchError, ResourceError, is_exhaustion

if TYPE_CHECKING:
    from typer._click import Command as ClickCommand  # typer has a click of its own, and exports no name for this
    from typer._click import Context
    from typer._click.formatting import HelpFormatter
    from typer._click.shell_completion import CompletionItem


@dataclass(frozen=True, slots=True)
class _Summary:
    """What is known about a command without loading it.

    Attributes:
        help: Its line in the list of commands: the first sentence of its own help.
        after_ctrl_c: What to do after an interruption, or what it left behind; follows "interrupted; ".
    """

    help: str
    after_ctrl_c: str


_FRESH = "--fresh"
_LOG_JSON = "--log-json"
_VALIDATION_MESSAGES = {
    "int_parsing": "a whole number is required, not {value!r}",
    "float_parsing": "a number is required, not {value!r}",
    "greater_than_equal": "{value} is less than the minimum, {ge}",
}
"""By pydantic's kind of error."""
_EXAMPLES = {
    "datafetch demo": "try it; no network is needed",
    "datafetch prepare step-0 --dry-run": "what a step of the recipe would do",
    "datafetch prepare step-0": "do it; the same command resumes",
    "datafetch status playground/data": "how far it is",
}
_COMMANDS = {
    "demo": _Summary(
        "Fetch a small dataset from a local image server with deliberate faults.",
        "the same command starts a new demo in the same folder",
    ),
    "datasets": _Summary("Show the recipe's datasets, and how much of each is there.", "nothing was changed"),
    "prepare": _Summary("Build a dataset where the trainer expects it, resuming an earlier run.", RESUME),
    "get": _Summary("Fetch the images of a list of URLs, resuming an earlier run.", RESUME),
    "status": _Summary("Show the progress of a run, without disturbing it.", "nothing was changed"),
    "failures": _Summary("List the failed images, a line each, also while a run is at work.", "nothing was changed"),
    "explain": _Summary(
        "Show everything about one sample: whether it became a row, and what became of each of its images.",
        "nothing was changed",
    ),
    "retry": _Summary("Retry failures that may be temporary, and add the images that arrive to the shards.", RESUME),
    "verify": _Summary(
        "Check an output as the trainer's loader will read it, decoding every image; exit 1 if there are problems.",
        "nothing was changed; run the same command to start over",
    ),
    "reshard": _Summary("Make shards of equal size, so that every rank reads the same number of samples.", RESUME),
}

_MIN_ADDRESS_SPACE_BYTES = 1 << 30  # most of it reserved for threads and never used


class _Commands(typer.core.TyperGroup):
    """The group of commands: loads a command when it is run, and lists all of them without loading any."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # typer takes suggestions for mistyped names from here; the commands come from get_command.
        self.commands.update(cast("dict[str, ClickCommand]", dict.fromkeys(_COMMANDS)))

    def list_commands(self, ctx: Context) -> list[str]:  # noqa: ARG002 - typer's signature
        """Return the names of the commands, in the order in which help lists them."""
        return list(_COMMANDS)

    def get_command(self, ctx: Context, cmd_name: str) -> ClickCommand | None:  # noqa: ARG002 - typer's signature
        """Load the command with a name; None if there is none."""
        if cmd_name not in _COMMANDS:
            return None
        _refuse_small_address_space()
        command: ClickCommand = import_module(f"datafetch.cli.commands.{cmd_name}").command
        signals.begin()
        return command

    def shell_complete(self, ctx: Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands or options that begin with what was typed, for the shell."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        from typer._click.shell_completion import CompletionItem  # noqa: PLC0415 - only for the shell

        return [
            CompletionItem(name, help=command.help)
            for name, command in _COMMANDS.items()
            if name.startswith(incomplete)
        ]

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write examples before the options and the list of commands."""
        write_examples(formatter, _EXAMPLES)
        super().format_options(ctx, formatter)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002 - typer's signature
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in _COMMANDS.items()])


app = typer.Typer(
    cls=_Commands,
    help="Fetch the images that vision-language models are trained on, into exactly the files the trainer loads.",
    **SETTINGS,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code; errors become one line on standard error."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code: int | None = app(words or ["--help"], prog_name="datafetch", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = ExitCode.INTERRUPTED
    except DatafetchError as error:
        return _complain(message_of(error), exit_code_of_error(error), words)
    except USAGE_ERRORS as error:
        command = error.ctx.command_path if error.ctx else "datafetch"
        return _complain(f"{_usage_message(error)} (see '{command} --help')", ExitCode.WRONG_COMMAND, words)
    except Exception as error:
        if not (is_exhaustion(error) or isinstance(error, OSError)):
            raise
        return _complain_of_machine(error, words)
    if code == ExitCode.INTERRUPTED:  # typer returns this after Ctrl-C, without a message
        return _complain(f"interrupted{_after_ctrl_c(words)}", ExitCode.INTERRUPTED, words)
    return ExitCode.COMPLETE if code is None else code


def _refuse_small_address_space() -> None:
    """Refuse to run without the address space for a command's libraries, some of which would abort the process.

    Raises:
        ResourceError: The limit is too low.
    """
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit_bytes != resource.RLIM_INFINITY and limit_bytes < _MIN_ADDRESS_SPACE_BYTES:
        raise ResourceError(
            f"the address space is limited to {limit_bytes >> 20:,} MiB ('ulimit -v'), and at least "
            f"{_MIN_ADDRESS_SPACE_BYTES >> 20:,} MiB are needed; raise the limit first"
        )


def _usage_message(error: typer.BadParameter) -> str:
    """Typer's message in the form of all others: no capital, no full stop, no words of the library behind it."""
    if (validation_errors := getattr(error.__cause__, "errors", None)) is not None:  # pydantic's, behind typer
        (first, *_) = validation_errors()
        text = _VALIDATION_MESSAGES.get(first["type"])
        if text is not None:
            error.message = text.format(value=first["input"], **first.get("ctx", {}))
    message = error.format_message().removesuffix(".").replace("Value error, ", "")
    return message[:1].lower() + message[1:]


def _complain(message: str, code: ExitCode, words: Sequence[str]) -> ExitCode:
    """Say what stopped the command, in the form that it was told to report in.

    The advice to run the same command again is changed if that would delete what it has fetched so far.
    """
    return complain(without_fresh(message) if _FRESH in words else message, code, as_json=_LOG_JSON in words)


def _complain_of_machine(error: Exception, words: Sequence[str]) -> ExitCode:
    """Report which resource has run out, or which file can't be used."""
    if is_exhaustion(error) or not isinstance(error, OSError):
        return _complain(str(ResourceError.from_exhaustion(error)), ExitCode.OUT_OF_RESOURCES, words)
    is_wrong_path = error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)
    code = ExitCode.WRONG_COMMAND if is_wrong_path else ExitCode.OUT_OF_RESOURCES
    return _complain(str(ResourceError.from_disk_error(error, "continue")), code, words)


def _after_ctrl_c(words: Sequence[str]) -> str:
    command = next((word for word in words if not word.startswith("-")), "")
    return f"; {_COMMANDS[command].after_ctrl_c}" if command in _COMMANDS else ""


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"datafetch {datafetch.__version__}")
        raise typer.Exit


@app.callback()
def _datafetch(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass
