"""The newest of many things are found, and no more than there is room for."""

import random

from hypothesis import given
from hypothesis import strategies as st

from datafetch.engine.dedup import RecentUrlIndex

KEYS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, -1, 8, 16, 24])


@given(st.lists(st.tuples(KEYS, st.integers(1, 2**64 - 1)), max_size=100), st.sampled_from([8, 16, 64]))
def test_the_newest_are_found(puts: list[tuple[int, int]], places: int) -> None:
    """Eight keys have their last numbers, whatever bucket they share; of more, some may not be found."""
    recent = RecentUrlIndex(places)
    last: dict[int, int] = {}
    for key, value in puts:
        recent.put(key, value)
        last[key] = value
    for key, value in last.items():
        assert recent.get(key) in (value, None)
    if len(last) <= 8:
        assert {key: recent.get(key) for key in last} == last


def test_what_was_not_put_is_not_found() -> None:
    """Not even a zero in an empty table."""
    recent = RecentUrlIndex(8)
    assert recent.get(0) is None
    recent.put(0, 5)
    assert recent.get(0) == 5
    assert recent.get(1) is None


def test_a_table_with_room_has_them_all() -> None:
    """Hashes fill buckets unevenly, and there is room for that."""
    recent = RecentUrlIndex(1 << 14)
    chance = random.Random(1)
    keys = [chance.getrandbits(63) for _ in range(1 << 11)]
    for number, key in enumerate(keys, 1):
        recent.put(key, number)
    assert [recent.get(key) for key in keys] == list(range(1, len(keys) + 1))
