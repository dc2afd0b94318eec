"""Which worker gets which sample."""

from __future__ import annotations

from typing import cast

import pytest

from datafetch.engine.workers.waiting_samples import WaitingSamples
from datafetch.engine.workers.worker_process import InHand

_FULL = 2 * 64


def filled(*counts: int) -> WaitingSamples:
    """Return samples that wait, as many for each worker; a sample is the pair of its worker and its number."""
    waiting = WaitingSamples(len(counts))
    for owner, count in enumerate(counts, 1):
        for number in range(count):
            waiting.add(owner, cast("InHand", (owner, number)))
    return waiting


def take(waiting: WaitingSamples, worker: int) -> object:
    """Take a sample for a worker."""
    return waiting.take(worker)


def test_each_worker_gets_its_own_in_order() -> None:
    """And waits while there are none of its own, for more will come."""
    waiting = filled(2, 3)
    assert [take(waiting, 1) for _ in range(3)] == [(1, 0), (1, 1), None]
    assert [take(waiting, 2) for _ in range(4)] == [(2, 0), (2, 1), (2, 2), None]


def test_a_worker_with_nothing_to_do_takes_from_others_when_no_more_can_come() -> None:
    """As long as as many wait as may."""
    waiting = filled(0, _FULL)
    assert waiting.is_full()
    assert take(waiting, 1) == (2, 0)
    assert not waiting.is_full()
    assert take(waiting, 1) is None


@pytest.mark.parametrize("worker", [1, 2, 3])
def test_the_last_samples_go_to_whoever_has_room(worker: int) -> None:
    """Its own first, and then those of the worker for which most wait."""
    waiting = filled(1, 2, 0)
    waiting.set_last()
    taken = [take(waiting, worker) for _ in range(4)]
    assert set(taken[:3]) == {(1, 0), (2, 0), (2, 1)}
    assert taken[3] is None
    assert taken[0] == {1: (1, 0), 2: (2, 0), 3: (2, 0)}[worker]
