"""Directories of tags, which TIFF has, and with it EXIF and the MPF of a JPEG.

Rules: nothing is copied, and nothing raises for what is corrupt: it is read as far as Pillow reads it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal, NamedTuple

_FURTHER_DIRECTORIES = frozenset({34665, 34853, 40965})  # of EXIF, of a position, and of EXIF's own exchange of files
_MARK_OF_BIG = 43
# Bytes of a value by its type. Pillow passes over other types.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


class Tag(NamedTuple):
    """One tag of a directory."""

    number: int
    far_bytes: int
    """How many bytes of values stand elsewhere; 0 where they stand in the tag itself."""
    first_value: int
    """A whole number that stands in the tag itself; else something."""


class _Layout(NamedTuple):
    byte_order: Literal["little", "big"]
    offset_bytes: int
    count_bytes: int
    row: struct.Struct


_LAYOUTS = {
    (mark, is_big): _Layout(
        "little" if mark == b"II" else "big",
        8 if is_big else 4,
        8 if is_big else 2,
        struct.Struct(("<" if mark == b"II" else ">") + ("HHQ8s" if is_big else "HHI4s")),
    )
    for mark in (b"II", b"MM")
    for is_big in (False, True)
}


def first_tags(file: memoryview) -> Iterator[Tag]:
    """The tags of the first directory of a TIFF, classic or big; none for anything else."""
    layout = _layout(file)
    return _tags(file, layout, _start(file, layout)) if layout else iter(())


def copies_more_than(file: memoryview, most_bytes: int) -> bool:
    """Whether the values of a TIFF's first directory, and of those it leads to, are more than so many bytes.

    Thousands of tags may name the same bytes, and a reader copies them for each.
    """
    layout = _layout(file)
    if layout is None:
        return False
    starts, seen, copied_bytes = [_start(file, layout)], set[int](), 0
    for start in starts:
        if start in seen:
            continue
        seen.add(start)
        further = {}
        for tag in _tags(file, layout, start):
            copied_bytes += tag.far_bytes
            if copied_bytes > most_bytes:
                return True
            if tag.number in _FURTHER_DIRECTORIES:
                further[tag.number] = tag.first_value  # the last counts
        if len(seen) <= 1 + len(_FURTHER_DIRECTORIES):
            starts.extend(further.values())
    return False


def _layout(file: memoryview) -> _Layout | None:
    return _LAYOUTS.get((bytes(file[:2]), file[2] == _MARK_OF_BIG)) if len(file) > 2 else None  # noqa: PLR2004


def _start(file: memoryview, layout: _Layout) -> int:
    at = layout.offset_bytes  # just as long as what stands before it
    return int.from_bytes(file[at : at + layout.offset_bytes], layout.byte_order)


def _tags(file: memoryview, layout: _Layout, start: int) -> Iterator[Tag]:
    """The tags, up to the first whose values are not all there: there Pillow stops as well."""
    first = start + layout.count_bytes
    count = int.from_bytes(file[start:first], layout.byte_order)
    rows = file[first : first + count * layout.row.size]
    whole = len(rows) // layout.row.size * layout.row.size
    for number, kind, values, content in layout.row.iter_unpack(rows[:whole]):
        value_bytes = _TYPE_BYTES.get(kind)
        if value_bytes is None:
            continue
        length_bytes = values * value_bytes
        if length_bytes <= layout.offset_bytes:
            yield Tag(number, 0, int.from_bytes(content[:value_bytes], layout.byte_order))
        elif int.from_bytes(content, layout.byte_order) + length_bytes <= len(file):
            yield Tag(number, length_bytes, 0)
        else:
            return
