"""The number of requests in flight, which is found by hill climbing."""

from collections.abc import Callable

import pytest

from datafetch.fetch.concurrency import Concurrency


class _World:
    """A simulated web that answers at a rate that depends on the number of connections."""

    def __init__(self, concurrency: Callable[[Callable[[], float]], Concurrency]) -> None:
        self.now_s = 0.0
        self.concurrency = concurrency(lambda: self.now_s)

    def live(
        self, answers_per_s: Callable[[int], float], *, seconds: float, overloads: float = 0.0, full: bool = True
    ) -> None:
        """Let requests begin and end for some seconds."""
        end_s, owed = self.now_s + seconds, 0.0
        while self.now_s < end_s:
            request = self.concurrency.request_started(is_saturated=full)
            self.now_s += 1 / answers_per_s(self.concurrency.connections)
            owed += overloads
            is_overload = owed >= 1
            owed -= is_overload
            self.concurrency.request_ended(request, is_answered=not is_overload, is_overload=is_overload)


def _auto(clock: Callable[[], float]) -> Concurrency:
    return Concurrency(None, clock=clock)


def test_a_fixed_number_is_kept() -> None:
    """The operator's number stays, whatever happens."""
    world = _World(lambda clock: Concurrency(64, clock=clock))
    world.live(lambda _: 500, seconds=30, overloads=0.5)
    assert world.concurrency.connections == 64


@pytest.mark.parametrize("knee", [64, 100, 300, 5000])
def test_the_knee_is_found(knee: int) -> None:
    """The number climbs while that brings more answers, stays near where it no longer does, and has a bound."""
    world = _World(_auto)
    assert world.concurrency.connections == 64
    world.live(lambda connections: 10.0 * min(connections, knee), seconds=20)
    reached = world.concurrency.connections
    assert (
        min(knee, world.concurrency.max_connections) / 2 <= reached <= min(2 * knee, world.concurrency.max_connections)
    )


def test_the_number_stays_while_something_else_is_the_bottleneck() -> None:
    """If the codec is the bottleneck, no request waits for a slot, and the rate says nothing about the number."""
    world = _World(_auto)
    world.live(lambda _: 200, seconds=20, full=False)
    assert world.concurrency.connections == 64


def test_a_request_that_hangs_makes_room_for_another() -> None:
    """Tarpits take descriptors, but neither CPU nor bandwidth."""
    world = _World(_auto)
    hanging = [world.concurrency.request_started(is_saturated=True) for _ in range(40)]
    assert world.concurrency.slots == 64
    world.now_s += 5
    assert world.concurrency.slots == 64 + 40
    for request in hanging:
        world.concurrency.request_ended(request, is_answered=False, is_overload=False)
    assert (world.concurrency.slots, world.concurrency.connections) == (64, 64)


@pytest.mark.rotating
def test_overloads_lower_the_number() -> None:
    """If connections time out on hosts that were healthy, and fewer connections help, fewer are used."""
    world = _World(_auto)
    world.live(lambda connections: 10.0 * min(connections, 400), seconds=20)
    before = world.concurrency.connections
    for _ in range(40):  # for example, because a router's table is full
        overloads = 0.5 if world.concurrency.connections > 400 else 0.0
        world.live(lambda connections: 10.0 * min(connections, 400), seconds=0.5, overloads=overloads)
    assert world.concurrency.connections <= before * 0.8


def test_a_constant_share_of_failures_does_not_lower_the_number() -> None:
    """Dead hosts are a share of every manifest."""
    world = _World(_auto)
    world.live(lambda connections: 10.0 * min(connections, 300), seconds=20, overloads=0.05)
    assert world.concurrency.connections >= 150


@pytest.mark.rotating
def test_failures_that_fewer_connections_do_not_reduce_restore_the_number() -> None:
    """If fewer connections don't make for fewer failures, the number goes back to what it was."""
    world = _World(_auto)
    world.live(lambda connections: 10.0 * min(connections, 300), seconds=20)
    before = world.concurrency.connections
    world.live(lambda connections: 10.0 * min(connections, 300), seconds=60, overloads=0.3)
    assert world.concurrency.connections >= before * 0.7


@pytest.mark.rotating
@pytest.mark.parametrize("wanted", [None, 256])
def test_descriptor_pressure_takes_effect_at_once_and_passes(wanted: int | None) -> None:
    """A fixed number is lowered too, and what was taken returns slowly."""
    world = _World(lambda clock: Concurrency(wanted, clock=clock))
    world.live(lambda connections: 10.0 * connections, seconds=30)
    before = world.concurrency.connections
    for _ in range(3):
        for _ in range(10):
            world.concurrency.sockets_exhausted()  # by ten requests, in one moment
        world.now_s += 1
    pressed = world.concurrency.connections
    assert before * 0.3 <= pressed <= before * 0.4
    world.live(lambda connections: 10.0 * connections, seconds=20)
    assert pressed < world.concurrency.connections
