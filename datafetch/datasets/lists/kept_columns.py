"""Columns of a list that are kept with its samples: the names and the types that they have in an output.

A type is a word: a name that Arrow has (``string``, ``int64``, ``float`` …), ``list<NAME>``, or ``json``, for any
values, which are written as JSON text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

JSON, STRING = "json", "string"
SCALARS = frozenset(
    {"bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float", "double", STRING}
)
_PREFIX = "input_"
_CLASSES: dict[type, str] = {bool: "bool", int: "int64", float: "double", str: STRING}


def kept_names(columns: Collection[str], own: Collection[str]) -> dict[str, str]:
    """The name that each kept column has in an output: another one where the output has a column of that name.

    Args:
        columns: The names of the columns in the list.
        own: The names of the columns that the output has itself.
    """
    names = {}
    for name in columns:
        kept = name
        while kept in own or (kept != name and kept in columns):
            kept = _PREFIX + kept
        names[name] = kept
    return names


def types_of_rows(rows: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """The types of all columns that some rows have, by their values in these."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: type_of_values(row.get(name) for row in rows) for name in names}


def type_of_values(values: Iterable[object]) -> str:
    """The type of a column with such values, which are those of JSON; text if there are none."""
    found = {_type_of(value) for value in values if value is not None}
    if found <= {"int64", "double"} and len(found) > 1:
        return "double"
    return found.pop() if len(found) == 1 else JSON if found else STRING


def _type_of(value: object) -> str:
    if isinstance(value, list | tuple):
        element = type_of_values(value)
        return f"list<{element}>" if element in SCALARS else JSON
    return _CLASSES.get(type(value), JSON)
