"""Directories of tags, as in TIFF files, EXIF, and the MPF segments of JPEGs.

Rules: nothing is copied. Corrupt data raises no exception; reading stops where Pillow stops.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

_SUBDIRECTORY_TAGS = frozenset({34665, 34853, 40965})  # EXIF, GPS, and EXIF's interoperability directory
_BIGTIFF_VERSION = 43
# Bytes per value, by its type. Pillow skips other types.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_INTEGER_LETTERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # unsigned, as struct has them


class Tag(NamedTuple):
    """One tag of a directory."""

    number: int
    external_bytes: int
    """How many bytes of values are stored elsewhere in the file; 0 if they are stored in the tag itself."""
    first_value: int
    """The first integer that is stored in the tag itself; meaningless if the values are stored elsewhere."""


class _Layout(NamedTuple):
    byte_order: Literal["little", "big"]
    offset_bytes: int
    count_bytes: int
    tag: struct.Struct


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
    """Yield the tags of the first directory of a TIFF or BigTIFF; none for anything else."""
    layout = _layout(file)
    return _tags(file, layout, _first_directory(file, layout)) if layout else iter(())


def values_exceed(file: memoryview, max_bytes: int) -> bool:
    """Return whether the values of a TIFF's first directory and its subdirectories exceed N bytes.

    Thousands of tags may refer to the same bytes, and a reader copies them for each.
    """
    layout = _layout(file)
    if layout is None:
        return False
    starts, seen, total_bytes = [_first_directory(file, layout)], set[int](), 0
    for start in starts:
        if start in seen:
            continue
        seen.add(start)
        subdirectories = {}
        for tag in _tags(file, layout, start):
            total_bytes += tag.external_bytes
            if total_bytes > max_bytes:
                return True
            if tag.number in _SUBDIRECTORY_TAGS:
                subdirectories[tag.number] = tag.first_value  # if a tag is repeated, the last one counts
        if len(seen) <= 1 + len(_SUBDIRECTORY_TAGS):
            starts.extend(subdirectories.values())
    return False


def _layout(file: memoryview) -> _Layout | None:
    return _LAYOUTS.get((bytes(file[:2]), file[2] == _BIGTIFF_VERSION)) if len(file) > 2 else None  # noqa: PLR2004


def _first_directory(file: memoryview, layout: _Layout) -> int:
    start = layout.offset_bytes  # byte order and version, before it, take as many bytes
    return int.from_bytes(file[start : start + layout.offset_bytes], layout.byte_order)


def _tags(file: memoryview, layout: _Layout, start: int) -> Iterator[Tag]:
    """Yield the tags up to the first whose values extend beyond the end of the file, where Pillow stops as well."""
    first = start + layout.count_bytes
    count = int.from_bytes(file[start:first], layout.byte_order)
    tags = file[first : first + count * layout.tag.size]
    whole_bytes = len(tags) // layout.tag.size * layout.tag.size
    for number, value_type, value_count, content in layout.tag.iter_unpack(tags[:whole_bytes]):
        value_bytes = _TYPE_BYTES.get(value_type)
        if value_bytes is None:
            continue
        length_bytes = value_count * value_bytes
        if length_bytes <= layout.offset_bytes:
            yield Tag(number, 0, int.from_bytes(content[:value_bytes], layout.byte_order))
        elif int.from_bytes(content, layout.byte_order) + length_bytes <= len(file):
            yield Tag(number, length_bytes, 0)
        else:
            return


def directory_values(file: memoryview, wanted: Mapping[int, int]) -> dict[int, tuple[int, ...]] | None:
    """Read whole numbers from the first directory of a TIFF or BigTIFF.

    Args:
        file: The file.
        wanted: The most values that are read of each tag, by its number.

    Returns:
        The values by tag, of those that have any and no more than that; None if the directory, the place of the next
        one, or values of any tag are behind the end of the file.
    """
    layout = _layout(file)
    if layout is None:
        return None
    start = _first_directory(file, layout)
    first = start + layout.count_bytes
    count = int.from_bytes(file[start:first], layout.byte_order)
    end = first + count * layout.tag.size
    if start < layout.offset_bytes or not count or end + layout.offset_bytes > len(file):
        return None
    for _, value_type, value_count, content in layout.tag.iter_unpack(file[first:end]):
        length_bytes = value_count * _TYPE_BYTES.get(value_type, 0)
        is_external = length_bytes > layout.offset_bytes
        if is_external and int.from_bytes(content, layout.byte_order) + length_bytes > len(file):
            return None
    # Of a tag that is repeated only the last one is read, for thousands may refer to the same values.
    tags = {tag[0]: tag for tag in layout.tag.iter_unpack(file[first:end]) if tag[0] in wanted}
    values: dict[int, tuple[int, ...]] = {}
    order = layout.tag.format[:1]
    for number, value_type, value_count, content in tags.values():
        letter = _INTEGER_LETTERS.get(value_type)
        if letter is None or not 0 < value_count <= wanted[number]:
            continue
        length_bytes = value_count * _TYPE_BYTES[value_type]
        data: memoryview | bytes = content[:length_bytes]
        if length_bytes > layout.offset_bytes:
            offset = int.from_bytes(content, layout.byte_order)
            data = file[offset : offset + length_bytes]
        values[number] = struct.unpack(f"{order}{value_count}{letter}", data)
    return values
