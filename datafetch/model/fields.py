"""Checks of the fields of dataclasses that a user makes, such as ``Job`` and ``FetchPolicy``.

Rules: a value is checked in one place, and by whoever makes it: Python names the field in the message, and the command
line the option that the field is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from functools import cache
from operator import index
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from msgspec import UnsetType

from datafetch.errors import InvalidFieldError
from datafetch.model.untrusted import short_repr

_MAX_SHOWN = 10**24
_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a string", Path: "a path"}


def invalid(values: object, template: str, **shown: str) -> InvalidFieldError:
    """The error for a field that is set to what it can't be.

    Args:
        values: The instance of a dataclass.
        template: The message, as ``InvalidFieldError`` takes it.
        shown: What else the template names.
    """
    return InvalidFieldError(type(values), template, shown)


def require_in_range(values: object, field: str, minimum: int, maximum: int, value: int | None = None) -> None:
    """Check a number.

    Args:
        values: The instance of a dataclass.
        field: The field with the number; one that is None is not checked.
        minimum: The smallest permitted value.
        maximum: The largest permitted value.
        value: The number, where it is not the field's value.

    Raises:
        InvalidFieldError: It is out of range; the message states the range.
    """
    number = getattr(values, field) if value is None else value
    if number is not None and not minimum <= number <= maximum:
        shown = f"{number:,}" if abs(number) < _MAX_SHOWN else "one of more than 24 digits"
        raise invalid(values, f"{{{field}}} must be from {minimum:,} to {maximum:,}, not {{shown}}", shown=shown)


def check_types(values: Any) -> None:
    """Check the types of all fields of a frozen dataclass, when it is made.

    A choice may be given as a plain string, a path as a string and the other way round, a tuple as a list; they become
    what the field declares.

    Raises:
        InvalidFieldError: A value is of another type, or no choice; the message says what the field takes.
    """
    cls: Any = type(values)
    for field, hint in _hints_of(cls).items():
        value = getattr(values, field)
        try:
            converted = _convert(value, hint)
        except (TypeError, ValueError):
            template = f"{{{field}}} must be {_describe(hint)}, not {{value}}"
            raise invalid(values, template, value=short_repr(value)) from None
        if converted is not value:
            object.__setattr__(values, field, converted)


@cache
def _hints_of(cls: type) -> Mapping[str, Any]:
    return get_type_hints(cls)


def _convert(value: object, hint: Any) -> object:
    """The value as its field declares it.

    Raises:
        TypeError: It is of another type, or no choice.
    """
    for kind in _kinds_of(hint):
        with suppress(TypeError, ValueError):
            return _convert_to(kind, value)
    raise TypeError


def _convert_to(kind: Any, value: object) -> object:
    if get_origin(kind) in (tuple, frozenset):
        return _convert_all(get_origin(kind), get_args(kind)[0], value)
    if kind is str and isinstance(value, os.PathLike):
        return _convert_to(str, os.fspath(value))
    if kind is Path and isinstance(value, str | os.PathLike):
        return value if isinstance(value, Path) else Path(value)
    if kind in (int, float) and not isinstance(value, bool):
        return value if kind is float and isinstance(value, int | float) else index(value)  # type: ignore[arg-type]
    if issubclass(kind, StrEnum) and isinstance(value, str):
        return kind(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError
    return value


def _convert_all(collection: type, kind: Any, value: object) -> object:
    if not isinstance(value, list | tuple | set | frozenset):
        raise TypeError
    converted = collection(_convert_to(kind, one) for one in value)
    return value if isinstance(value, collection) and converted == value else converted


def _kinds_of(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _describe(hint: Any) -> str:
    """What a field takes, for a message: such as ``a whole number or None``."""
    return " or ".join(word for kind in _kinds_of(hint) for word in _words_for(kind))


def _words_for(kind: Any) -> Sequence[str]:
    if get_origin(kind) in (tuple, frozenset):
        (part, *_) = get_args(kind)
        what = "strings" if part is str else part.__name__
        return [f"{'a tuple' if get_origin(kind) is tuple else 'a set'} of {what}"]
    if kind in (NoneType, UnsetType):
        return ["None"] if kind is NoneType else []
    if issubclass(kind, StrEnum):
        return [str(choice) for choice in kind]
    name = kind.__name__
    return [_WORDS.get(kind) or f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"]
