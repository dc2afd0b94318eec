"""Types of values that files may hold: numbers within a range, and texts that can be used as names or paths.

Rules: the bounds are data of the type. ``store.state_file`` enforces them when a file is read; a value made by the
program itself is not checked.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from datafetch.model.untrusted import PLAIN_NAME

_END = 1 << 63  # of any number that Python, JSON and a table agree on

Count: TypeAlias = Annotated[int, Meta(ge=0, le=_END - 1)]
"""A whole number from 0 that fits into 64 bits with a sign."""

Amount: TypeAlias = Annotated[float, Meta(ge=0, lt=float(_END))]
"""A finite number from 0: seconds, or a rate."""

PlainName: TypeAlias = Annotated[str, Meta(pattern=PLAIN_NAME)]
"""The name of a file that leads to no other folder."""

PathText: TypeAlias = Annotated[str, Meta(pattern=r"\A[^\0]*\Z")]
"""A text that the system takes as a path."""
