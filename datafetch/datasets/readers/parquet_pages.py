"""Pages of a parquet file, by their headers: what Arrow will make room for before it knows whether it is there.

Rules: nothing but headers is read, and those in little memory. A footer says the same and may say something else; Arrow
goes by the headers.

Source: github.com/apache/parquet-format (PageHeader), and Thrift's compact protocol.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

_SIZE, _STORED_SIZE = 2, 3  # fields of a header
_ENCODING_FIELDS = {5: 2, 8: 4}  # of a page of either version: where it says how its values are written
_VALUES_FIELD = 1
_DICTIONARY_ENCODINGS = frozenset({2, 8})
_REPEATING_ENCODING = 7  # a value takes its beginning from the one before, of any length
_MAX_DEPTH = 8
_MAX_FIELDS = 1000  # of a header, those of structs in it included; the format knows some thirty
_MAX_LIST = 1000
_LONG_LIST = 15
_MAX_VARINT_BITS = 63
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12


class DamagedPageError(ValueError):
    """The header of a page can't be read."""


@dataclass(frozen=True, slots=True)
class Page:
    """What the header of a page says.

    Attributes:
        size_bytes: Unpacked.
        values: How many there are in it; 0 of a dictionary.
        is_of_dictionary: Whether its values are places in the dictionary.
        repeats: Whether its values may be longer than the page.
    """

    size_bytes: int
    values: int
    is_of_dictionary: bool
    repeats: bool


def read_pages(file: BinaryIO, start: int, size_bytes: int) -> Iterator[Page]:
    """The pages of a column chunk.

    Args:
        file: A parquet file.
        start: Where the chunk begins.
        size_bytes: Its length in the file.

    Raises:
        DamagedPageError: It is not made up of pages.
    """
    end = min(start + size_bytes, os.fstat(file.fileno()).st_size)
    while start < end:
        file.seek(start)
        header = _read_struct(file, 0, iter(range(_MAX_FIELDS)))
        size, stored = header.get(_SIZE), header.get(_STORED_SIZE)
        if not isinstance(size, int) or not isinstance(stored, int) or size < 0 or stored < 0:
            raise DamagedPageError("a page does not say how large it is")
        yield _page(size, header)
        start = file.tell() + stored


def _page(size_bytes: int, header: dict[int, Any]) -> Page:
    for field, encoding_field in _ENCODING_FIELDS.items():
        if isinstance(identity_fields := header.get(field), dict):
            encoding = identity_fields.get(encoding_field)
            values = identity_fields.get(_VALUES_FIELD)
            return Page(
                size_bytes,
                values if isinstance(values, int) else 0,
                encoding in _DICTIONARY_ENCODINGS,
                encoding == _REPEATING_ENCODING,
            )
    return Page(size_bytes, 0, is_of_dictionary=False, repeats=False)


def _read_struct(file: BinaryIO, depth: int, fields_left: Iterator[int]) -> dict[int, Any]:
    """Fields by number: numbers, and structs of such; everything else is skipped.

    Args:
        file: Where the struct begins.
        depth: Structs and lists that it lies in.
        fields_left: One is taken for each field, whatever struct of the header it lies in.
    """
    if depth > _MAX_DEPTH:
        raise DamagedPageError("the header of a page is nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while (mark := _read_byte(file)) != 0:
        if next(fields_left, None) is None:
            raise DamagedPageError("the header of a page has too many fields")
        number = number + (mark >> 4) if mark >> 4 else _zigzag(_read_varint(file))
        fields[number] = _read_value(file, mark & 0xF, depth, fields_left)
    return fields


def _read_value(file: BinaryIO, kind: int, depth: int, fields_left: Iterator[int]) -> object:
    if kind in _BOOLEANS:
        return kind == _BOOLEANS[0]
    if kind in _INTEGERS:
        return _zigzag(_read_varint(file))
    if kind == _STRUCT:
        return _read_struct(file, depth + 1, fields_left)
    if kind in _LISTS:
        _skip_list(file, depth, fields_left)
        return None
    sizes: dict[int, Callable[[], int]] = {_BYTE: lambda: 1, _DOUBLE: lambda: 8, _BINARY: lambda: _read_varint(file)}
    if kind not in sizes:
        raise DamagedPageError("the header of a page is damaged")
    size_bytes = sizes[kind]()
    if size_bytes > os.fstat(file.fileno()).st_size:  # a file can't even be asked for a place that far away
        raise DamagedPageError("the header of a page is damaged")
    file.seek(size_bytes, os.SEEK_CUR)
    return None


def _skip_list(file: BinaryIO, depth: int, fields_left: Iterator[int]) -> None:
    mark = _read_byte(file)
    count = mark >> 4 if mark >> 4 != _LONG_LIST else _read_varint(file)
    if count > _MAX_LIST:
        raise DamagedPageError("the header of a page is damaged")
    for _ in range(count):
        # In a list a truth is a byte of its own.
        _read_value(file, _BYTE if mark & 0xF in _BOOLEANS else mark & 0xF, depth + 1, fields_left)


def _read_byte(file: BinaryIO) -> int:
    read = file.read(1)
    if not read:
        raise DamagedPageError("the file ends in the header of a page")
    return read[0]


def _read_varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, _MAX_VARINT_BITS, 7):
        byte = _read_byte(file)
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value
    raise DamagedPageError("the header of a page is damaged")


def _zigzag(value: int) -> int:
    return value >> 1 ^ -(value & 1)
