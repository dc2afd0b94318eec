"""What a caller requests of a web server: a whole file, or a range of its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

_OK, _PARTIAL_CONTENT = HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT  # looking one up in its enum takes up to 0.6 µs
_MAX_OFFSET = 2**62
_WEAK_VALIDATOR_PREFIX = "W/"


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A range of the bytes of a file, half-open as a Python slice is.

    Attributes:
        start: Offset of the first byte, counted from 0.
        stop: Offset behind the last byte. It may lie beyond the end of the file: the range then ends with the file.

    Raises:
        ValueError: The range is empty, or begins before the file does.
    """

    start: int
    stop: int

    def __post_init__(self) -> None:
        """Refuse a range that no file can have."""
        if not 0 <= self.start < self.stop <= _MAX_OFFSET:
            raise ValueError(f"a byte range needs 0 <= start < stop <= 2**62, not {self.start} and {self.stop}")

    @property
    def size_bytes(self) -> int:
        """Number of bytes in the range."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Request:
    """One file that is to be fetched, or one range of its bytes.

    Attributes:
        url: The URL as published.
        byte_range: The bytes to request; None requests the whole file.
        if_range: A strong entity tag, quotes included, or an HTTP date, as an earlier response gave it. The server
            then sends the range only if the file is still the same (RFC 9110, 13.1.5).

    Raises:
        ValueError: ``if_range`` comes without a range, is a weak entity tag or could not be a header's value.
    """

    url: str
    byte_range: ByteRange | None = None
    if_range: str = ""

    def __post_init__(self) -> None:
        """Refuse a condition that must not be sent."""
        if not self.if_range:
            return
        if self.byte_range is None:
            raise ValueError("if_range needs a byte_range")
        if self.if_range.startswith(_WEAK_VALIDATOR_PREFIX):
            raise ValueError(f"if_range must be a strong entity tag, not {self.if_range!r}")
        if not (self.if_range.isascii() and self.if_range.isprintable()):
            raise ValueError(f"if_range must be printable ASCII, not {self.if_range!r}")

    @property
    def expected_status(self) -> int:
        """The one HTTP status that brings what was requested: 200 for a whole file, 206 for a range."""
        return _OK if self.byte_range is None else _PARTIAL_CONTENT
