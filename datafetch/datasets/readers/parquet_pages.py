"""Reads where a parquet file's columns lie, and the headers of their pages.

These say how much of a file has to be loaded, and how much memory Arrow would allocate for it.

A column chunk is a sequence of pages, each behind a header that claims the page's size before and after decompression.
Arrow allocates the claimed size before it decompresses, so a header of a few bytes can make it allocate gigabytes. The
footer has sizes as well, but Arrow relies on the headers, and the two may differ. pyarrow does not expose page headers,
so they are parsed here. It does expose where columns lie, but a damaged footer makes it end the process: it doesn't
catch C++ exceptions there.

A header is, like the footer, a struct in Thrift's compact protocol: fields, each a byte with its type and the distance
of its number from that of the field before, then its value; a zero byte ends the struct. Integers are variable-length
and zigzag-coded. Only integers, nested structs and short bytes are kept, and everything else is skipped. Both are
untrusted, so the number of fields and elements, the nesting, and the lengths of integers are limited, and no more than
a header is read.

The footer also has the least and the greatest value of most column chunks. pyarrow exposes these, too, and likewise
ends the process if one of them has too few bytes, so they are read here.

Source: github.com/apache/parquet-format (``PageHeader``), and github.com/apache/thrift
(doc/specs/thrift-compact-protocol.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

_SIZE, _STORED_SIZE = 2, 3  # numbers of the header's fields: the sizes after and before decompression
_ENCODING_FIELDS = {5: 2, 8: 4}  # the structs of data pages, versions 1 and 2, and the field with the encoding in each
_VALUES_FIELD = 1  # in both structs, the number of values
_DICTIONARY_ENCODINGS = frozenset({2, 8})  # PLAIN_DICTIONARY, RLE_DICTIONARY
_PREFIX_ENCODING = 7  # DELTA_BYTE_ARRAY: a value shares a prefix of any length with the one before
_MAX_DEPTH = 8
_MAX_FIELDS = 1000  # of a header, including those of nested structs; the format has some thirty
_MAX_FOOTER_FIELDS = 1 << 24  # with elements of lists; the size of footers is limited, too
_LONG_LIST = 15  # in place of a list's length: the length follows
_MAX_VARINT_BITS = 63
_ROW_GROUPS, _COLUMNS, _METADATA = 4, 1, 3  # numbers of fields: of the footer, a row group, and a column in it
_CHUNK_BYTES, _DATA_OFFSET, _DICTIONARY_OFFSET, _STATISTICS = 7, 9, 11, 12  # of a column's metadata
_MAX_VALUE, _MIN_VALUE = 5, 6  # of the statistics; two others are deprecated, since their order was not defined
_MAX_KEPT_BYTES = 1024  # of bytes; those in statistics are as long as the longest value, unless a writer shortens them
# The types of the compact protocol. A boolean's value is part of its type.
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12


class DamagedPageError(ValueError):
    """The header of a page can't be parsed."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page, as its header claims.

    Attributes:
        size_bytes: The size of its data after decompression.
        values: The number of its values; 0 for a dictionary.
        is_dictionary_encoded: Whether its values are indices into the dictionary.
        shares_prefixes: Whether a value may share a prefix with the one before, so that each may be as long as the
            page.
    """

    size_bytes: int
    values: int
    is_dictionary_encoded: bool
    shares_prefixes: bool


@dataclass(frozen=True, slots=True)
class Chunk:
    """A column in a row group, as the footer claims.

    Attributes:
        start: The offset of its first byte, which is that of its dictionary if it has one.
        stop: The offset behind its last byte.
        least: Its least value as its pages would hold it, or a lower bound; None if that is not known.
        greatest: Its greatest value, or an upper bound; None if that is not known.
    """

    start: int
    stop: int
    least: bytes | None = None
    greatest: bytes | None = None


def read_pages(file: BinaryIO, start: int, size_bytes: int) -> Iterator[Page]:
    """Read the page headers of a column chunk, in order.

    Args:
        file: A parquet file.
        start: The offset of the chunk in the file.
        size_bytes: The size of the chunk in the file.

    Raises:
        DamagedPageError: A header can't be parsed, or lacks a size.
    """
    end = min(start + size_bytes, os.fstat(file.fileno()).st_size)
    while start < end:
        file.seek(start)
        header = _read_struct(file, 0, iter(range(_MAX_FIELDS)))
        size, stored = header.get(_SIZE), header.get(_STORED_SIZE)
        if not isinstance(size, int) or not isinstance(stored, int) or size < 0 or stored < 0:
            raise DamagedPageError("the header of a page has no size")
        yield _page(size, header)
        start = file.tell() + stored


def read_chunks(file: BinaryIO, footer_start: int) -> list[list[Chunk]]:
    """Read where the columns of each row group lie, and what bounds their values, as the footer claims.

    Args:
        file: A parquet file.
        footer_start: The offset of the footer.

    Returns:
        For each row group its columns.

    Raises:
        DamagedPageError: The footer can't be parsed, or lacks an offset or a size.
    """
    file.seek(footer_start)
    left = iter(range(_MAX_FOOTER_FIELDS))
    groups: list[list[Chunk]] = []
    try:
        for number, kind in _read_fields(file, left):
            if number == _ROW_GROUPS and kind in _LISTS:
                groups = [_read_group(file, left) for _ in _read_elements(file, left)]
            else:
                _read_value(file, kind, 0, left)
    except DamagedPageError as error:
        raise DamagedPageError("its footer is damaged") from error
    return groups


def _read_group(file: BinaryIO, left: Iterator[int]) -> list[Chunk]:
    chunks: list[Chunk] = []
    for number, kind in _read_fields(file, left):
        if number == _COLUMNS and kind in _LISTS:
            chunks = [_chunk(_read_struct(file, 0, left)) for _ in _read_elements(file, left)]
        else:
            _read_value(file, kind, 0, left)
    return chunks


def _chunk(chunk: dict[int, Any]) -> Chunk:
    metadata = chunk.get(_METADATA)
    found = metadata if isinstance(metadata, dict) else {}
    start, size_bytes, dictionary_start = map(found.get, (_DATA_OFFSET, _CHUNK_BYTES, _DICTIONARY_OFFSET))
    if not isinstance(start, int) or not isinstance(size_bytes, int):
        raise DamagedPageError("a column has no offset or no size")
    if isinstance(dictionary_start, int) and 0 < dictionary_start < start:
        start = dictionary_start
    statistics = found.get(_STATISTICS)
    bounds = statistics if isinstance(statistics, dict) else {}
    least, greatest = map(bounds.get, (_MIN_VALUE, _MAX_VALUE))
    return Chunk(
        start,
        start + size_bytes,
        least if isinstance(least, bytes) else None,
        greatest if isinstance(greatest, bytes) else None,
    )


def _page(size_bytes: int, header: dict[int, Any]) -> Page:
    for field, encoding_field in _ENCODING_FIELDS.items():
        if isinstance(data_page := header.get(field), dict):
            encoding = data_page.get(encoding_field)
            values = data_page.get(_VALUES_FIELD)
            return Page(
                size_bytes,
                values if isinstance(values, int) else 0,
                is_dictionary_encoded=encoding in _DICTIONARY_ENCODINGS,
                shares_prefixes=encoding == _PREFIX_ENCODING,
            )
    return Page(size_bytes, 0, is_dictionary_encoded=False, shares_prefixes=False)


def _read_struct(file: BinaryIO, depth: int, fields_left: Iterator[int]) -> dict[int, Any]:
    """Parse a struct into its fields by number. Integers, nested structs and short bytes are kept.

    Args:
        file: The file, at the beginning of the struct.
        depth: The number of structs and lists around it.
        fields_left: Shared by all structs of a header; one is consumed for each field and each element of a list.

    Raises:
        DamagedPageError: The struct is damaged, or is beyond a limit.
    """
    if depth > _MAX_DEPTH:
        raise DamagedPageError("the header of a page is nested too deeply")
    fields: dict[int, Any] = {}
    for number, kind in _read_fields(file, fields_left):
        fields[number] = _read_value(file, kind, depth, fields_left)
    return fields


def _read_fields(file: BinaryIO, fields_left: Iterator[int]) -> Iterator[tuple[int, int]]:
    """Read the number and the type of each field of a struct; the caller reads the value before the next one."""
    number = 0
    while (byte := _read_byte(file)) != 0:
        if next(fields_left, None) is None:
            raise DamagedPageError("the header of a page has too many fields")
        distance, kind = byte >> 4, byte & 0xF
        number = number + distance if distance else _zigzag(_read_varint(file))
        yield number, kind


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
    if kind == _BINARY and size_bytes <= _MAX_KEPT_BYTES:
        return file.read(size_bytes)
    if size_bytes > os.fstat(file.fileno()).st_size:  # the offset may be one that seek() can't take
        raise DamagedPageError("the header of a page is damaged")
    file.seek(size_bytes, os.SEEK_CUR)
    return None


def _read_elements(file: BinaryIO, fields_left: Iterator[int]) -> Iterator[int]:
    """Read the head of a list, and yield the type for each element; the caller reads it before the next one."""
    byte = _read_byte(file)
    length, kind = byte >> 4, byte & 0xF
    if length == _LONG_LIST:
        length = _read_varint(file)
    for _ in range(length):
        if next(fields_left, None) is None:
            raise DamagedPageError("the header of a page has too many fields")
        yield kind


def _skip_list(file: BinaryIO, depth: int, fields_left: Iterator[int]) -> None:
    for kind in _read_elements(file, fields_left):
        # In a list, a boolean is a byte of its own.
        _read_value(file, _BYTE if kind in _BOOLEANS else kind, depth + 1, fields_left)


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
