"""``stopped.json``: why the last run or retry of an output stopped, until the next one begins.

Rules: it is for people, and nothing depends on it. So what can't be written or read is done without: a run may have
stopped because the disk is full.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import orjson
from msgspec import Meta

from datafetch.errors import DatafetchError, ResourceError, is_exhaustion
from datafetch.model.bounds import Amount
from datafetch.model.untrusted import MAX_LINE_CHARS, one_line
from datafetch.store.atomic import write_atomically
from datafetch.store.layout import OutputLayout
from datafetch.store.state_file import read_if_sound


@dataclass(frozen=True, slots=True)
class LastStop:
    """Why a run or a retry stopped. The names of the fields are those in the file.

    Attributes:
        unix_s: When it stopped.
        message: What it wrote to standard error, in one line.
        was_fresh: Whether it was to start over, so that the same command would delete what it has fetched.
    """

    unix_s: Amount
    message: Annotated[str, Meta(max_length=MAX_LINE_CHARS)]
    was_fresh: bool


def record_stop(layout: OutputLayout, error: Exception, *, was_fresh: bool) -> None:
    """Record what has stopped a run or a retry, unless it is a bug, which has a traceback and no message."""
    if is_exhaustion(error) and not isinstance(error, DatafetchError):
        error = ResourceError.from_exhaustion(error)
    if isinstance(error, DatafetchError):
        stop = LastStop(time.time(), one_line(str(error)), was_fresh)
        with suppress(OSError):
            write_atomically(layout.last_stop, orjson.dumps(stop, option=orjson.OPT_INDENT_2))


def forget_stop(layout: OutputLayout) -> None:
    """Delete the record, as another run or retry begins."""
    with suppress(OSError):
        layout.last_stop.unlink()


def read_last_stop(layout: OutputLayout) -> LastStop | None:
    """Why the last run or retry stopped; None if it did not, was killed or interrupted, or that is not known.

    Raises:
        ResourceError: This machine has run out of descriptors or memory.
    """
    return read_if_sound(layout.last_stop, LastStop)
