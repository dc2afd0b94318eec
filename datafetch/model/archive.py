"""Members of archives: what an archive's directory says of a file in it, and how a sample refers to it."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Self

STORED = 0
DEFLATED = 8
DEFLATED64 = 9
METHODS = frozenset({STORED, DEFLATED, DEFLATED64})
"""The compression methods that are read."""

LOCAL_HEADER_BYTES = 30
"""Size of the header in front of a member's data, without its name and its extra fields."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a zip archive, as the archive's directory describes it.

    Attributes:
        archive: Which of the manifest's archives has it, counted from 0.
        start: Offset of its local header in the archive.
        stop: Offset behind the last byte that can belong to it: where the next member begins, or less.
        gap_bytes: How many bytes lie between the member that is selected before it, and it.
        compressed_bytes: Size of its data in the archive.
        size_bytes: Size of its content.
        crc32: Checksum of its content.
        method: How it is compressed, one of ``METHODS``.
    """

    archive: int
    start: int
    stop: int
    gap_bytes: int
    compressed_bytes: int
    size_bytes: int
    crc32: int
    method: int

    def to_json(self) -> list[int]:
        """The member as a JSON value, for a sample's metadata."""
        return list(astuple(self))

    @classmethod
    def from_json(cls, values: object) -> Self:
        """The member of a JSON value that ``to_json`` made.

        Raises:
            ValueError: It is something else.
        """
        if not isinstance(values, list) or len(values) != len(cls.__slots__):
            raise ValueError("not a member of an archive")
        if not all(type(value) is int for value in values):
            raise ValueError("a member of an archive is described by integers")
        return cls(*values)
