"""Reads members of archives, on servers and on this machine, by ranges of their bytes."""

from datafetch.fetch.archive.members import MemberReader
from datafetch.fetch.archive.ranges import (
    ArchiveChangedError,
    LocalRanges,
    NoRangesError,
    RangeReader,
    RemoteRanges,
)

__all__ = ["ArchiveChangedError", "LocalRanges", "MemberReader", "NoRangesError", "RangeReader", "RemoteRanges"]
