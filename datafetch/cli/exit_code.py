"""The exit codes, and the line on standard error that explains them."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING

from datafetch.errors import (
    ConfigurationError,
    ConservationError,
    DatafetchError,
    InvalidFieldError,
    ResourceError,
)
from datafetch.model.untrusted import one_line

if TYPE_CHECKING:
    from datafetch.model.report import Report

AGAIN = "run the same command again"  # as all messages say it
RESUME = f"{AGAIN} to resume"
_AGAIN = re.compile(rf"{AGAIN}( later)?(?: to resume)?")
_log = logging.getLogger(__name__)


class ExitCode(IntEnum):
    """The exit codes of commands."""

    COMPLETE = 0
    BUG = 1
    NOT_SOUND = 1  # the same number by contract; a bug also prints a traceback
    WRONG_COMMAND = 2
    TOO_FEW_IMAGES = 3
    OUT_OF_RESOURCES = 4
    INTERRUPTED = 130


def check_min_success(min_success: float) -> None:
    """Check a required share of images before anything is fetched.

    Raises:
        ConfigurationError: It is not a share.
    """
    if not 0 <= min_success <= 1:
        raise ConfigurationError(f"--min-success is a share from 0 to 1, not {min_success}")


def exit_code_of(report: Report, min_success: float) -> ExitCode:
    """Return the exit code of a run or a retry; if too few images arrived, log that as an error."""
    images = report.totals.images
    share = report.totals.ok / images if images else 1.0
    if share >= min_success:
        return ExitCode.COMPLETE
    _log.error("%s of the images arrived, but --min-success requires %s", f"{share:.1%}", f"{min_success:.1%}")
    return ExitCode.TOO_FEW_IMAGES


def exit_code_of_error(error: DatafetchError) -> ExitCode:
    """Return the exit code of what stopped a command."""
    match error:
        case ResourceError():
            return ExitCode.OUT_OF_RESOURCES
        case ConservationError():
            return ExitCode.BUG
    return ExitCode.WRONG_COMMAND


def message_of(error: DatafetchError) -> str:
    """The message of what stopped a command, with options where Python has fields."""
    if not isinstance(error, InvalidFieldError):
        return str(error)
    from datafetch.model.options import options_of  # noqa: PLC0415 - this module must load where there is hardly memory

    return error.describe({one.field: one.flag for one in options_of(error.cls)})


def complain(message: str, code: ExitCode, *, as_json: bool = False) -> ExitCode:
    """Write a message as one line on standard error, and return the exit code."""
    write_line(message, as_json=as_json)
    return code


def write_line(message: str, *, level: str = "error", as_json: bool = False) -> None:
    """Write a message as one line on standard error; the level stands only in JSON."""
    text = one_line(message)
    with suppress(OSError):  # the exit code counts even if the line can't be written
        sys.stderr.write(json_line({"level": level, "message": text}) if as_json else f"datafetch: {text}\n")


def json_line(values: Mapping[str, object]) -> str:
    """Format what is reported as a line that is a JSON object, with the time."""
    import json  # noqa: PLC0415 - likewise
    from datetime import UTC, datetime  # noqa: PLC0415

    now = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")}
    return json.dumps(now | dict(values), ensure_ascii=False) + "\n"


def without_fresh(message: str) -> str:
    """Change the advice to run the same command again, given with ``--fresh``: that would delete what was fetched."""
    return _AGAIN.sub(r"run the same command without --fresh\1 to resume", message)
