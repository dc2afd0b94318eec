"""The types of the columns of a sample, in Arrow and for the library ``datasets``.

The types of kept columns are words (``datasets.lists.kept_columns``).

Rules: writing never fails for a value that does not fit the type of its column. It becomes null there, as its type is
decided once for all rows of a shard, and most before they are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import orjson
import pyarrow as pa

from datafetch.datasets.lists.kept_columns import JSON, SCALARS, type_of_values
from datafetch.output.formats.sample_columns import (
    CAPTION,
    ERROR_MESSAGE,
    IMAGE,
    KEY,
    STATUS,
    URL,
    SampleValues,
    metadata_json,
)
from datafetch.store.ledger_format import escaped

_TYPE_KEY = b"datafetch.type"  # in the metadata of a field whose Arrow type does not say it
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How ``datasets`` stores an image."""
_LIST = re.compile(r"list<([a-z0-9]+)>")
_OF_IMAGES = {
    **dict.fromkeys((URL, STATUS, ERROR_MESSAGE, "exif", "sha256"), "string"),
    **dict.fromkeys(("width", "height", "original_width", "original_height"), "int32"),
}
_FIXED = {CAPTION: "string", KEY: "string"}
_FEATURE_NAMES = {"float": "float32", "double": "float64", JSON: "string"}  # others have the same name in ``datasets``


def is_known(kind: str) -> bool:
    """Whether a word is a type of a kept column."""
    matched = _LIST.fullmatch(kind)
    return kind == JSON or (matched[1] if matched else kind) in SCALARS


def column_types(rows: Sequence[SampleValues], given: Mapping[str, str], *, are_several: bool) -> dict[str, str]:
    """The type of each column of a shard.

    Args:
        rows: Its first rows; at least one.
        given: The types of kept columns, as far as they are known. Others are inferred from the rows.
        are_several: Whether the URLs of each row are a list.
    """
    types = {}
    for name in rows[0]:
        if name in _OF_IMAGES:
            types[name] = f"list<{_OF_IMAGES[name]}>" if are_several else _OF_IMAGES[name]
        elif name in _FIXED:
            types[name] = _FIXED[name]
        elif is_known(given.get(name, "")):
            types[name] = given[name]
        else:
            types[name] = type_of_values(row.get(name) for row in rows)
    return types


def arrow_type(kind: str) -> pa.DataType:
    """The Arrow type of a column."""
    matched = _LIST.fullmatch(kind)
    if matched:
        return pa.list_(pa.type_for_alias(matched[1]))
    return pa.string() if kind == JSON else pa.type_for_alias(kind)


def arrow_field(name: str, kind: str) -> pa.Field:
    """The field of a column in a schema."""
    return pa.field(name, arrow_type(kind), metadata={_TYPE_KEY: JSON} if kind == JSON else None)


def type_names(schema: pa.Schema) -> dict[str, str]:
    """The types of the columns of a file that was written with these types, without its images."""
    return {field.name: _type_name(field) for field in schema if field.name != IMAGE}


def _type_name(field: pa.Field) -> str:
    if field.metadata and _TYPE_KEY in field.metadata:
        return JSON
    return f"list<{field.type.value_type}>" if pa.types.is_list(field.type) else str(field.type)


def as_array(values: Sequence[object], kind: str) -> pa.Array:
    """The values of a column; null for one that does not fit, and escapes for lone surrogates."""
    target = arrow_type(kind)
    if kind == JSON:
        return pa.array([_json_text(value) for value in values], target)
    try:
        return pa.array(values, target)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return pa.array([_fitted(value, target) for value in values], target)


class JsonText(str):
    """A value of a column of JSON that is JSON text already, since it was read from such a column."""

    __slots__ = ()


def _json_text(value: object) -> str | None:
    if value is None or isinstance(value, JsonText):
        return value
    return metadata_json({"": value})[len(b'{"":') : -1].strip().decode()


def _fitted(value: object, target: pa.DataType) -> object:
    """A value as the type of its column takes it; None if it does not."""
    if isinstance(value, str):
        value = escaped(value)
    elif isinstance(value, list | tuple) and pa.types.is_list(target):
        return [_fitted(element, target.value_type) for element in value]
    elif value is not None and pa.types.is_string(target):
        value = _json_text(value)
    try:
        if isinstance(value, int) and pa.types.is_floating(target):
            value = float(value)
        pa.scalar(value, target)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None
    return value


def features_metadata(types: Mapping[str, str], *, are_several: bool) -> bytes:
    """What ``datasets`` reads under the key ``huggingface`` of a schema: the features of the columns, the image first.

    A list of features is written as a list of one, which all versions of ``datasets`` understand.
    """
    image: object = {"_type": "Image"}
    features: dict[str, object] = {IMAGE: [image] if are_several else image}
    for name, kind in types.items():
        matched = _LIST.fullmatch(kind)
        word = matched[1] if matched else kind
        feature = {"dtype": _FEATURE_NAMES.get(word, word), "_type": "Value"}
        features[name] = [feature] if matched else feature
    return orjson.dumps({"info": {"features": features}})
