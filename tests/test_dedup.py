"""The hash table that finds the most recently fetched URLs, in a fixed amount of memory."""

import random

from hypothesis import given
from hypothesis import strategies as st

from datafetch.engine.dedup import RecentUrlIndex

KEYS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, -1, 8, 16, 24])


@given(st.lists(st.tuples(KEYS, st.integers(1, 2**64 - 1)), max_size=100), st.sampled_from([8, 16, 64]))
def test_the_newest_entries_are_found(puts: list[tuple[int, int]], capacity: int) -> None:
    """The last value of each key is found if there are at most eight keys, and with more keys never a wrong value."""
    recent = RecentUrlIndex(capacity)
    last: dict[int, int] = {}
    for key, value in puts:
        recent.put(key, value)
        last[key] = value
    for key, value in last.items():
        assert recent.get(key) in (value, None)
    if len(last) <= 8:
        assert {key: recent.get(key) for key in last} == last


def test_a_missing_key_is_not_found() -> None:
    """A missing key is not found, not even zero in an empty table."""
    recent = RecentUrlIndex(8)
    assert recent.get(0) is None
    recent.put(0, 5)
    assert recent.get(0) == 5
    assert recent.get(1) is None


def test_a_table_below_its_capacity_keeps_every_entry() -> None:
    """Hashes fill buckets unevenly, and an eighth of the capacity leaves enough room for that."""
    recent = RecentUrlIndex(1 << 14)
    chance = random.Random(1)
    keys = [chance.getrandbits(63) for _ in range(1 << 11)]
    for number, key in enumerate(keys, 1):
        recent.put(key, number)
    assert [recent.get(key) for key in keys] == list(range(1, len(keys) + 1))
