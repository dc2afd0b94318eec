"""Rows of lists → samples: URLs, caption, kept columns, and which bodies the images have to be."""

from __future__ import annotations

import base64
import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

from datafetch.datasets.lists.columns import ChosenColumns, parse_list
from datafetch.datasets.lists.table import ListRow
from datafetch.datasets.url_length import bounded_url
from datafetch.model.sample import HASHES, Row
from datafetch.model.untrusted import is_utf8

CAPTION, COLUMNS, TYPES, ID, IS_LIST = "caption", "columns", "types", "id", "is_list"
"""Keys of the metadata of a sample."""
MAX_IMAGES = 4096
"""How many images a sample may have."""
_HASH_BYTES = {"sha256": 32, "md5": 16}
_HEX_DIGITS = frozenset(string.hexdigits)


class BadValueError(ValueError):
    """A row has a value from which no sample can be made; the message says which, and why."""


def urls_of(value: object) -> tuple[str, ...]:
    """The URLs of a row; an empty one in place of what can't be one, which the fetcher refuses.

    Raises:
        BadValueError: There are more than a sample may have.
    """
    values = as_list(value)
    urls = [value] if values is None else values
    if len(urls) > MAX_IMAGES:
        raise BadValueError(f"it has {len(urls):,} URLs, where a sample may have {MAX_IMAGES:,}")
    return tuple(bounded_url(plain_text(url)) for url in urls) or ("",)


def as_list(value: object) -> list[object] | None:
    """The values of a list, also of one that is JSON in a text; None if a value is no list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        return parse_list(value)
    return list(value) if isinstance(value, list | tuple) else None


def metadata_of(row: ListRow, columns: ChosenColumns, number: int, types: Mapping[str, str]) -> Row:
    """The metadata of a row's sample.

    Args:
        row: The row.
        columns: Which columns have what.
        number: The number of the row in all of the input.
        types: The types of columns, as far as they are known.

    Raises:
        BadValueError: A hash column holds something that is not a hash of that algorithm.
    """
    values = as_list(row.get(columns.url))
    metadata: dict[str, object] = {ID: number if columns.id is None else _id(row.get(columns.id))}
    if values is not None:
        metadata[IS_LIST] = True
    if columns.caption is not None:
        caption = row.get(columns.caption)
        metadata[CAPTION] = None if _is_missing(caption) else plain_text(caption)
    if columns.keep:
        metadata[COLUMNS] = {name: json_value(row.get(name)) for name in columns.keep}
        if known := {name: types[name] for name in columns.keep if name in types}:
            metadata[TYPES] = known
    if columns.sha256 is not None or columns.md5 is not None:
        metadata[HASHES] = _hashes(row, columns, None if values is None else len(values))
    return metadata


def plain_text(value: object) -> str:
    """A value as text: empty if there is none, and what is no text as it is written; bytes are UTF-8."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value if is_utf8(value) else value.encode("utf-8", "replace").decode()
    return "" if _is_missing(value) else str(value)


def json_value(value: Any) -> object:
    """A value as JSON has it: NaN becomes null, bytes become base64, times and decimals are text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {plain_text(name): json_value(element) for name, element in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(element) for element in value]
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else plain_text(str(value))


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _id(value: object) -> str | int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():  # LAION has them as floating point
        return int(value)
    return None if _is_missing(value) else plain_text(json_value(value))


def _hashes(row: ListRow, columns: ChosenColumns, images: int | None) -> list[dict[str, str] | None]:
    """The hashes of each image of a row; those of a row with a list of URLs are in lists of the same length."""
    found: list[dict[str, str]] = [{} for _ in range(1 if images is None else max(1, images))]
    for algorithm, name in (("sha256", columns.sha256), ("md5", columns.md5)):
        if name is None:
            continue
        values = _hash_list(row.get(name), name, images)
        for image, value in zip(found, values, strict=False):
            if not _is_missing(value) and value != "":
                image[algorithm] = _hash(value, algorithm, name)
    return [image or None for image in found]


def _hash_list(value: object, name: str, images: int | None) -> Sequence[object]:
    if images is None:
        return [value]
    if _is_missing(value) or value == "":
        return []
    values = as_list(value)
    if values is None or len(values) != images:
        count = "one" if values is None else f"{len(values):,}"
        raise BadValueError(f"column {name} has {count} for {images:,} URLs")
    return values


def _hash(value: object, algorithm: str, name: str) -> str:
    size_bytes = _HASH_BYTES[algorithm]
    if isinstance(value, bytes) and len(value) == size_bytes:
        return value.hex()
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    if isinstance(text, str) and len(text.strip()) == 2 * size_bytes and _HEX_DIGITS.issuperset(text.strip()):
        return text.strip().lower()
    raise BadValueError(f"column {name} has no {algorithm} of {2 * size_bytes} hexadecimal digits")
