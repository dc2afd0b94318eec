"""Types for the fields of files: numbers within a range, and strings that can be used as names or paths.

Rules: the bounds are part of the type. ``store.state_file`` enforces them when a file is read; values that the program
creates itself are not checked.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from datafetch.model.untrusted import PLAIN_NAME

_END = 1 << 63  # integers below it are the same in Python, JSON and parquet

Count: TypeAlias = Annotated[int, Meta(ge=0, le=_END - 1)]
"""A non-negative integer that fits into a signed 64-bit integer."""

Crc32: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
"""A CRC-32, as zlib computes it."""

Amount: TypeAlias = Annotated[float, Meta(ge=0, lt=float(_END))]
"""A finite non-negative number, such as seconds or a rate."""

PlainName: TypeAlias = Annotated[str, Meta(pattern=PLAIN_NAME)]
"""A file name that does not lead to another folder."""

PathText: TypeAlias = Annotated[str, Meta(pattern=r"\A[^\0]*\Z")]
"""A string that the operating system accepts as a path."""

ShortText: TypeAlias = Annotated[str, Meta(max_length=1000)]
"""A name or a few words."""
