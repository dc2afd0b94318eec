"""Which output a command is about that takes one, and was given a folder above outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datafetch.cli.exit_code import write_line
from datafetch.errors import ConfigurationError
from datafetch.model.location import is_bucket, refuse_as_output
from datafetch.monitor.outputs_below import outputs_instead_of


def choose_output(path: str, say: Callable[[str], None] = write_line) -> Path | str:
    """Take the only output below a folder in its place, and say so.

    Args:
        path: What was given: an output, its state folder, a folder above outputs, a place in a bucket, or something
            else.
        say: Shows a line.

    Returns:
        That output; all other paths as they are, and places in buckets as text.

    Raises:
        ConfigurationError: There are several; they have been listed, a line for each.
    """
    refuse_as_output(path)
    if is_bucket(path):
        return path
    return _choose_below(Path(path), say)


def _choose_below(path: Path, say: Callable[[str], None]) -> Path:
    below = outputs_instead_of(path)
    if not below.outputs:
        return path
    if len(below.outputs) == 1 and below.is_complete:
        say(f"there is no run in {path}, so the only output below it is taken: {below.outputs[0]}")
        return below.outputs[0]
    for out in below.outputs:
        say(f"below {path}: {out.relative_to(path)}")
    others = "" if below.is_complete else ", or another one: there are too many files below it to look at all"
    raise ConfigurationError(f"there is no run in {path}; name one of the outputs below it{others}")
