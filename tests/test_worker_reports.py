"""What workers report: their outcomes are compared together, added up, and logged once."""

from __future__ import annotations

import logging

import pytest

from datafetch.engine.first_outcomes import FirstOutcomes, OutcomeComparison
from datafetch.engine.workers.messages import Logged
from datafetch.engine.workers.relayed_log import RelayedLog
from datafetch.model.outcome import Encoded, Failure, FailureKind

_MISSING = Failure(FailureKind.HTTP_STATUS, "not there", status=404)
_REFUSED = Failure(FailureKind.HTTP_STATUS, "not for you", status=403)
_BLOCKED = Failure(FailureKind.BLOCKED_ADDRESS, "private", networks=("10.0.0.0/8",))
_DOWN = Failure(FailureKind.HOST_DOWN, "down")
_ARRIVED = Encoded(b"-", 1, 1, "JPEG")


def compared(*outcomes: Failure | Encoded) -> OutcomeComparison:
    """Return the comparison of a worker that had these outcomes."""
    comparison = OutcomeComparison()
    for outcome in outcomes:
        comparison.add(outcome)
    return comparison


def merged(*parts: OutcomeComparison) -> OutcomeComparison:
    """Return the comparison of all of them."""
    whole = OutcomeComparison()
    for part in parts:
        whole.merge(part)
    return whole


@pytest.mark.parametrize(
    ("parts", "is_alike"),
    [
        ([compared(_MISSING, _MISSING), compared(_MISSING)], True),
        ([compared(_MISSING), compared(_REFUSED)], False),
        ([compared(_MISSING), compared(_ARRIVED)], False),
        ([compared(_MISSING), compared()], True),
        ([compared(_DOWN), compared(_MISSING), compared(_DOWN)], True),
        ([compared(_MISSING), compared(_BLOCKED)], False),
    ],
)
def test_outcomes_of_several_workers_are_compared_as_those_of_one(
    parts: list[OutcomeComparison], is_alike: bool
) -> None:
    """Whichever of them had which."""
    assert merged(*parts).is_alike is is_alike
    assert merged(*reversed(parts)).is_alike is is_alike


def test_all_workers_together_have_enough_images_for_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """It is given once, and not at all if one of them had a success."""
    first = FirstOutcomes("")
    parts = [compared(*[_MISSING] * 90) for _ in range(2)]
    first.replace(merged(*parts))
    assert not caplog.messages
    for _ in range(2):
        first.replace(merged(*parts, compared(*[_MISSING] * 90)))
    first.end()
    assert len(caplog.messages) == 1
    assert "404" in caplog.messages[0]
    other = FirstOutcomes("")
    other.replace(merged(*parts, compared(_ARRIVED, *[_MISSING] * 90)))
    other.end()
    assert len(caplog.messages) == 1


def test_networks_of_all_workers_are_named() -> None:
    """Each of them once."""
    assert merged(compared(_BLOCKED), compared(_BLOCKED, _BLOCKED)).networks == ["10.0.0.0/8"]


def test_what_several_workers_log_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """But what one of them repeats is repeated, and texts with percent signs are texts."""
    log = RelayedLog()
    line = Logged("datafetch.fetch", logging.WARNING, "100% of the name servers are silent")
    for worker in (1, 2, 3, 1):
        log.log(worker, line)
    log.log(2, Logged("datafetch.fetch", logging.WARNING, "another"))
    assert caplog.messages == [line.text, line.text, "another"]
    assert {record.name for record in caplog.records} == {"datafetch.fetch"}
