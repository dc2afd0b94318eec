"""Makes commands of functions, with help that lists options in titled groups."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import typer

from datafetch.model.options import OptionGroup

if TYPE_CHECKING:
    from typer._click import Context  # typer has a click of its own, and exports no names for these
    from typer._click.formatting import HelpFormatter

SETTINGS: dict[str, Any] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""typer's settings for every command. Its rich help takes twice as long to load, and fits less into 80 columns."""

USAGE_ERRORS: tuple[type[typer.BadParameter], ...] = (cast("type[typer.BadParameter]", typer.BadParameter.__base__),)
"""The common base of usage errors, which typer does not export: it has its own copy of click."""

_GIVEN = "given"
_ARGUMENTS = "Arguments"
_OPTIONS = "Options"
_MAX_NAME_COLUMNS = 26
_REQUIRED = re.compile(r"^\{(.*)\}(?=(?:\.\.\.)?$)")


def write_examples(formatter: HelpFormatter, examples: Mapping[str, str]) -> None:
    """Write commands as examples, each with what it does as a comment of the shell.

    Args:
        formatter: Where help is written.
        examples: What each command does, by the command.
    """
    columns = max(map(len, examples))
    with formatter.section("Examples"):
        for command, text in examples.items():
            formatter.write(f"  {command.ljust(columns)}  # {text}\n")


class Command(typer.core.TyperCommand):
    """A command whose help lists options under the titles of ``OptionGroup``, in one column."""

    def collect_usage_pieces(self, ctx: Context) -> list[str]:
        """Return the pieces of the usage line, without typer's braces around required arguments."""
        return [_REQUIRED.sub(r"\1", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the arguments, and then the options of each group; ``--help`` is in the last one.

        A command whose options are all in that group has them under a title that says no more than that.
        """
        sections: dict[str, list[tuple[str, str]]] = {}
        for one in self.get_params(ctx):
            if record := one.get_help_record(ctx):
                name, text = record
                title = getattr(one, "rich_help_panel", None) or OptionGroup.BEHAVIOUR.value
                if one.param_type_name == "argument":
                    title, name = _ARGUMENTS, name.partition(" ")[0]  # without its type
                sections.setdefault(title, []).append((name, text))
        if sections.keys() <= {_ARGUMENTS, OptionGroup.BEHAVIOUR.value}:
            sections[_OPTIONS] = sections.pop(OptionGroup.BEHAVIOUR.value)
        names = [name for records in sections.values() for name, _ in records]
        columns = max((len(name) for name in names if len(name) <= _MAX_NAME_COLUMNS), default=0)
        titles = [title.value for title in OptionGroup]
        for title in sorted(sections, key=lambda title: titles.index(title) if title in titles else -1):
            with formatter.section(title):
                records = [(name.ljust(columns), text) for name, text in sections[title]]
                formatter.write_dl(records, col_max=columns)


def as_command(function: Callable[..., int], cls: type[Command] = Command) -> Command:
    """Make a command with the name of a function, and its docstring as help."""
    alone = typer.Typer(add_completion=False, **SETTINGS)
    alone.command(function.__name__, cls=cls)(function)
    return cast("Command", typer.main.get_command(alone))


def with_options(
    function: Callable[..., int], options: Sequence[inspect.Parameter], gather: Callable[[dict[str, Any]], object]
) -> Callable[..., int]:
    """Replace the parameter ``given`` of a function by options of the command line.

    Args:
        function: The function of a command.
        options: The options, in their order; none of them is required.
        gather: Turns the options that were given, by name, into the value of ``given``.
    """
    parameters: list[inspect.Parameter] = []
    for one in inspect.signature(function, eval_str=True).parameters.values():
        parameters += options if one.name == _GIVEN else [one]
    names = [one.name for one in options]

    @functools.wraps(function)
    def wrapped(**values: Any) -> int:
        given = {name: value for name in names if (value := values.pop(name)) is not None}
        return function(**values, **{_GIVEN: gather(given)})

    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {one.name: one.annotation for one in parameters}
    return wrapped
