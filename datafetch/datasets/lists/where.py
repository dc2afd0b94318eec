"""``--where``: conditions that rows have to meet, such as ``width >= 256`` or ``lang = ja``.

The form of the value decides how it is compared. A number is compared with numbers, also with those that a column has
as text; any other value, and one in quotes, with texts, by their bytes as UTF-8. A row without a value, or with one
that can't be compared like this, meets no condition.
"""

from __future__ import annotations

import math
import operator
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datafetch.datasets.lists.row_bits import Bools
from datafetch.datasets.readers import ParquetFile
from datafetch.errors import ConfigurationError, ManifestError

_CONDITION = re.compile(r"\s*([^=!<>]+?)\s*(!=|<=|>=|==|=|<|>)\s*(.*?)\s*", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_QUOTES = ("'", '"')
_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ARROW_FUNCTIONS = {
    "=": "equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition.

    Attributes:
        column: The name of the column.
        comparison: ``=``, ``!=``, ``<``, ``<=``, ``>`` or ``>=``.
        value: A number, or a text.
    """

    column: str
    comparison: str
    value: float | str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Parse a condition, ``COLUMN OP VALUE``.

        Raises:
            ConfigurationError: It has another form.
        """
        match = _CONDITION.fullmatch(text)
        if match is None or not match[3]:
            raise ConfigurationError(
                "--where takes 'COLUMN OP VALUE' with one of = != < <= > >=, such as 'width >= 256' or 'lang = ja', "
                f"not {text!r}"
            )
        column, comparison, value = match.groups()
        comparison = "=" if comparison == "==" else comparison
        if value[0] in _QUOTES and value[-1] == value[0] and len(value) > 1:
            return cls(column, comparison, value[1:-1])
        return cls(column, comparison, value if (number := _number(value)) is None else number)

    def passes(self, value: object) -> bool:
        """Whether a single value meets it."""
        compare = _OPERATORS[self.comparison]
        if isinstance(self.value, str):
            if isinstance(value, bool):
                value = str(value).lower()
            return isinstance(value, str) and compare(
                value.encode("utf-8", "replace"), self.value.encode("utf-8", "replace")
            )
        if isinstance(value, str):
            value = _number(value.strip())
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
        return is_number and compare(value, self.value)

    def select(self, values: Any) -> Bools:
        """Which values of an Arrow array meet it."""
        import pyarrow.compute as pc  # noqa: PLC0415 - its functions take long to load, and few jobs have conditions

        values, target = _comparable(values, self.value)
        met = pc.call_function(_ARROW_FUNCTIONS[self.comparison], [values, target]).fill_null(False)
        selected = np.asarray(met.to_numpy(zero_copy_only=False), np.bool_)
        if pa.types.is_floating(values.type) and self.comparison == "!=":
            selected &= ~np.asarray(pc.is_nan(values).fill_null(True).to_numpy(zero_copy_only=False))
        return selected

    def refuse_type(self, name: str, found: Any) -> None:
        """Check that it can be compared with a column of an Arrow type.

        Raises:
            ManifestError: It can't.
        """
        found = found.value_type if pa.types.is_dictionary(found) else found
        wants_text = isinstance(self.value, str)
        is_text = _is_text(found)
        is_number = pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found)
        if is_text or (is_number and not wants_text) or (wants_text and _has_text_form(found)):
            return
        what = "numbers" if is_number else f"values of the type {found}"
        raise ManifestError(
            f"{name}: column {self.column} has {what}, which --where can't compare with "
            f"{self.value if not wants_text else repr(self.value)}; give another condition"
        )

    def may_pass(self, found: Any, least: bytes | None, greatest: bytes | None) -> bool:
        """Whether values between two bounds may meet it; true if that is not known.

        Args:
            found: The Arrow type of the column.
            least: A lower bound of its values, as parquet stores it; None if it is not known.
            greatest: An upper bound.
        """
        low: Any = _bound(found, least)
        high: Any = _bound(found, greatest)
        value: Any = self.value.encode() if isinstance(self.value, str) else self.value
        if low is None or high is None or isinstance(low, bytes) != isinstance(value, bytes):
            return True
        if self.comparison == "=":
            return bool(low <= value <= high)
        if self.comparison == "!=":
            return isinstance(low, bytes) or not low == value == high
        nearest = low if self.comparison.startswith("<") else high
        return bool(_OPERATORS[self.comparison](nearest, value))


def parse_conditions(texts: Sequence[str]) -> tuple[Condition, ...]:
    """Parse conditions, all of which have to be met.

    Raises:
        ConfigurationError: One has another form than ``COLUMN OP VALUE``.
    """
    return tuple(map(Condition.parse, texts))


def columns_of(conditions: Sequence[Condition]) -> tuple[str, ...]:
    """The columns that conditions need, each once."""
    return tuple(dict.fromkeys(one.column for one in conditions))


def possible_groups(file: ParquetFile, conditions: Sequence[Condition]) -> list[int]:
    """The numbers of the row groups of a parquet file in which rows may meet all conditions, by its statistics."""
    possible = set(range(len(file.group_rows)))
    for condition in conditions:
        found = file.types[condition.column]
        for number, chunk in enumerate(file.chunks(condition.column)):
            if not condition.may_pass(found, chunk.least, chunk.greatest):
                possible.discard(number)
    return sorted(possible)


def _number(text: str) -> float | None:
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else None


def _comparable(values: Any, target: float | str) -> tuple[Any, Any]:
    """An Arrow array and a scalar of one type that can be compared."""
    import pyarrow.compute as pc  # noqa: PLC0415 - as above

    found = values.type
    if pa.types.is_dictionary(found):
        values, found = values.dictionary_decode(), found.value_type
    if isinstance(target, str):
        if not _is_text(found):
            values = values.cast(pa.string())
        return values.cast(pa.large_binary()), pa.scalar(target.encode("utf-8", "replace"), pa.large_binary())
    if _is_text(found):
        texts = values.cast(pa.large_binary())
        is_number = pc.match_substring_regex(texts, rf"^[ \t]*{_NUMBER.pattern}[ \t]*$").fill_null(False)
        numbers = pc.if_else(is_number, texts, None).cast(pa.large_string())
        return pc.utf8_trim(numbers, " \t").cast(pa.float64()), pa.scalar(float(target))
    if pa.types.is_integer(found) and isinstance(target, int):
        try:
            return values, pa.scalar(target, found)
        except (pa.ArrowInvalid, OverflowError):
            pass  # beyond all values of the type
    return values.cast(pa.float64(), safe=False), pa.scalar(float(target))


def _is_text(found: Any) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(bool(is_kind(found)) for is_kind in kinds)


def _has_text_form(found: Any) -> bool:
    return bool(pa.types.is_boolean(found) or pa.types.is_date(found) or pa.types.is_timestamp(found))


_BOUND_FORMS: Mapping[Any, str] = {
    pa.int32(): "<i",
    pa.int64(): "<q",
    pa.uint32(): "<I",
    pa.uint64(): "<Q",
    pa.int8(): "<i",
    pa.int16(): "<i",
    pa.uint8(): "<i",
    pa.uint16(): "<i",
    pa.float32(): "<f",
    pa.float64(): "<d",
}


def _bound(found: Any, stored: bytes | None) -> float | bytes | None:
    """A bound of the values of a column, as parquet stores it; None if it says nothing."""
    if stored is None:
        return None
    if pa.types.is_string(found) or pa.types.is_large_string(found):
        return stored
    form = _BOUND_FORMS.get(found)
    if form is None or struct.calcsize(form) != len(stored):
        return None
    (value,) = struct.unpack(form, stored)
    return None if math.isnan(value) else value
