"""The markers of a JPEG, but for those in its segments: where its frame and scans begin, and where it ends.

Searching backwards from the end of a file could find a marker in data that was appended to the image, so it is read
from its start.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
"""Where entropy-coded data starts, and where the image ends."""
_WITHOUT_SEGMENT = frozenset({0x01, 0xD8, END_OF_IMAGE})
# Entropy-coded data contains restart markers, and a zero is stuffed behind each 0xff byte in it.
_MARKER = re.compile(rb"\xff([^\0\xff\xd0-\xd7])")
_WINDOW_BYTES = 1 << 16
_LENGTH_BYTES = 2


def find_markers(jpeg: bytes) -> Iterator[tuple[int, int]]:
    """The markers in order, each with the offset behind it; other threads may go on in between.

    Segments are skipped by their lengths, so that the markers of a thumbnail in them are none.
    """
    at = len(b"\xff\xd8")
    while at < len(jpeg):
        found = _MARKER.search(jpeg, at, at + _WINDOW_BYTES)
        if found is None:
            at += _WINDOW_BYTES - 1  # the marker may begin with the last byte
            continue
        marker, at = found[1][0], found.end()
        yield marker, at
        if marker not in _WITHOUT_SEGMENT:
            at += max(_LENGTH_BYTES, int.from_bytes(jpeg[at : at + _LENGTH_BYTES], "big"))
