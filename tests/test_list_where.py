"""``--where``: conditions on rows, by Arrow, by Python, and by the statistics of row groups."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datafetch.datasets.lists.open_table import open_table
from datafetch.datasets.lists.scan import ScanKeeper
from datafetch.datasets.lists.where import Condition, parse_conditions, possible_groups
from datafetch.datasets.readers import ParquetFile
from datafetch.errors import ConfigurationError, ManifestError

COMPARISONS = ["=", "!=", "<", "<=", ">", ">="]
TEXTS = st.sampled_from(["", "7", " 8 ", "-1.5", "1e3", "x", "é", "NaN", "07", "7 apples", "9" * 30])
NUMBERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-9, 9))


def test_a_condition_has_a_column_a_comparison_and_a_value() -> None:
    """Blanks around them don't count, and quotes make a text of a number."""
    assert Condition.parse(" width>=256 ") == Condition("width", ">=", 256)
    assert Condition.parse("aesthetic score < .5") == Condition("aesthetic score", "<", 0.5)
    assert Condition.parse("id == '007'") == Condition("id", "=", "007")
    assert Condition.parse("lang != en=us") == Condition("lang", "!=", "en=us")


@pytest.mark.parametrize("text", ["", "width", "width >=", ">= 3", "width ~ 3"])
def test_anything_else_is_refused(text: str) -> None:
    """The message says which form a condition has."""
    with pytest.raises(ConfigurationError, match="'COLUMN OP VALUE' with one of = != < <= > >="):
        Condition.parse(text)


@pytest.mark.parametrize("comparison", COMPARISONS)
@given(values=st.lists(st.one_of(st.none(), TEXTS), max_size=9), wanted=st.one_of(TEXTS, NUMBERS, st.floats(-9, 9)))
def test_texts_are_compared_alike_by_arrow_and_by_python(
    comparison: str, values: list[str | None], wanted: float | str
) -> None:
    """Numbers in texts are numbers, and what is none meets no condition with a number."""
    condition = Condition("c", comparison, wanted)
    if isinstance(wanted, int) and abs(wanted) > 2**53:
        return  # Arrow compares texts as floating-point numbers
    for kind in (pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())):
        if pa.types.is_binary(kind):
            array = pa.array([None if value is None else value.encode() for value in values], kind)
        else:
            array = pa.array(values, pa.string()).cast(kind)
        assert condition.select(array).tolist() == [condition.passes(value) for value in values]


@pytest.mark.parametrize("comparison", COMPARISONS)
@given(values=st.lists(st.one_of(st.none(), NUMBERS), max_size=9), wanted=NUMBERS)
def test_integers_are_compared_exactly(comparison: str, values: list[int | None], wanted: int) -> None:
    """Ids of 64 bits that differ in their last bit are not the same."""
    condition = Condition("c", comparison, wanted)
    expected = [condition.passes(value) for value in values]
    assert condition.select(pa.array(values, pa.int64())).tolist() == expected


@pytest.mark.parametrize("comparison", COMPARISONS)
@given(
    values=st.lists(st.one_of(st.none(), st.floats(width=32)), max_size=9),
    wanted=st.one_of(st.floats(-9, 9), st.integers(-9, 9)),
)
def test_numbers_are_compared_alike_by_arrow_and_by_python(
    comparison: str, values: list[float | None], wanted: float
) -> None:
    """NaN and null meet no condition, not even that of being another number."""
    condition = Condition("c", comparison, wanted)
    for kind in (pa.float32(), pa.float64()):
        assert condition.select(pa.array(values, kind)).tolist() == [condition.passes(value) for value in values]


@pytest.mark.parametrize(
    ("array", "text", "expected"),
    [
        (pa.array([1, 200, None], pa.uint8()), "c > 256", [False, False, False]),
        (pa.array([1, 200, None], pa.uint8()), "c < 256", [True, True, False]),
        (pa.array([2**64 - 1, 1], pa.uint64()), f"c = {2**64 - 1}", [True, False]),
        (pa.array([Decimal("1.5"), Decimal("2.5")]), "c < 2", [True, False]),
        (pa.array([True, False, None]), "c = true", [True, False, False]),
        (pa.array([0, 86_400], pa.timestamp("s")), "c >= 1970-01-02", [False, True]),
    ],
)
def test_other_types_are_compared_as_their_column_says(array: Any, text: str, expected: list[bool]) -> None:
    """Small integers, decimals, truth values and times; a number beyond a type is larger than all of its values."""
    assert Condition.parse(text).select(array).tolist() == expected


def test_numbers_are_not_compared_with_texts(tmp_path: Path) -> None:
    """It can't be meant, so it is refused before anything is read, in one line that names the column."""
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["http://a.example/1"], "width": [1], "box": [[1, 2]]}), path)
    table = open_table(path)
    for text in ("width = wide", "box > 3"):
        with pytest.raises(ManifestError, match=r"list\.parquet: column (width|box) has"):
            table.check(parse_conditions([text]))


@pytest.mark.parametrize("comparison", COMPARISONS)
@given(data=st.data())
def test_row_groups_that_are_left_out_have_no_row_that_passes(
    tmp_path_factory: pytest.TempPathFactory, comparison: str, data: st.DataObject
) -> None:
    """Statistics leave out row groups, and never a row."""
    path = tmp_path_factory.mktemp("groups") / "list.parquet"
    kind, values = data.draw(
        st.sampled_from(
            [
                (pa.int64(), st.integers(-50, 50)),
                (pa.uint32(), st.integers(0, 2**32 - 1)),
                (pa.float32(), st.floats(-50, 50, width=32) | st.just(math.nan)),
                (pa.string(), st.text("abé", max_size=3)),
                (pa.int8(), st.integers(-128, 127)),
            ]
        )
    )
    column = sorted(data.draw(st.lists(st.one_of(st.none(), values), max_size=40)), key=str)
    pq.write_table(pa.table({"c": pa.array(column, kind)}), path, row_group_size=5)
    wanted = data.draw(st.integers(-50, 50) if kind != pa.string() else st.text("abé", max_size=3))
    condition = Condition("c", comparison, wanted)  # type: ignore[arg-type]  # of one of both types
    groups = possible_groups(ParquetFile(path, None), [condition])
    passing = [number for number, value in enumerate(column) if condition.passes(value)]
    assert {number // 5 for number in passing} <= set(groups)
    found = open_table(path).scan([condition], ScanKeeper("key", 1 << 20, None, selects=True))
    assert found.numbers(0, 99).tolist() == passing


def test_sorted_row_groups_are_left_out(tmp_path: Path) -> None:
    """Of a file that is sorted by a column, only the row groups around its value are read."""
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"n": np.arange(1000), "s": [f"{n:04}" for n in range(1000)]}), path, row_group_size=100)
    file = ParquetFile(path, None)
    for text, expected in {"n = 555": [5], "n < 150": [0, 1], "s >= '0850'": [8, 9], "n != 3": list(range(10))}.items():
        assert possible_groups(file, parse_conditions([text])) == expected
    assert possible_groups(file, parse_conditions(["n > 150", "n <= 300"])) == [1, 2, 3]


def test_damaged_statistics_end_no_process(tmp_path: Path) -> None:
    """A bound with too few bytes says nothing; pyarrow ends the process on it, so it is not asked."""
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"n": np.arange(1000)}), path, compression="none")
    content = path.read_bytes()
    footer_bytes = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - footer_bytes : -8]
    bound = (999).to_bytes(8, "little")
    assert b"\x08" + bound in footer
    footer = footer.replace(b"\x08" + bound, b"\x03" + bound[:3])
    path.write_bytes(content[: -8 - footer_bytes] + footer + len(footer).to_bytes(4, "little") + content[-4:])
    assert possible_groups(ParquetFile(path, None), parse_conditions(["n > 5000"])) == [0]
