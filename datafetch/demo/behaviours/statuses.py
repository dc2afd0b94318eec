"""HTTP statuses: permanent ones, ones that may pass, and ones that do pass after a while."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from datafetch.demo.behaviours.exchange import Answer, Behaviour, Exchange
from datafetch.model.outcome import FailureKind

_FINAL = (
    *(204, 205, 206, 226, 300, 304, 305),
    *(400, 401, 402, 403, 404, 405, 406, 407, 409, 410, 414, 418, 422, 423, 451, 498),
    *(501, 505, 507, 511, 520, 530, 599, 999),
)
_MAY_PASS = (408, 425, 429, 500, 502, 503, 504)
_BODILESS = (204, 304)
_ERROR_PAGE = b"<!doctype html><title>Sorry</title><p>There is no picture here."


def _always(status: int) -> Answer:
    async def answer(exchange: Exchange) -> None:
        if status in _BODILESS:
            exchange.send(f"HTTP/1.1 {status} Nothing\r\n\r\n".encode())
            return
        exchange.send_head(status, len(_ERROR_PAGE), "Content-Type: text/html")
        exchange.send(_ERROR_PAGE)

    return answer


def _first(status: int, *fields: str) -> Answer:
    """Send this status once, and the picture from then on."""

    async def answer(exchange: Exchange) -> None:
        if exchange.request.times_requested == 1:
            exchange.send_head(status, 0, *fields)
        else:
            exchange.send_ok(exchange.picture)

    return answer


async def _retry_after_date(exchange: Exchange) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1)
    await _first(429, f"Retry-After: {format_datetime(soon, usegmt=True)}")(exchange)


async def _missing_at_length(exchange: Exchange) -> None:
    """Send 404 with an endless error page."""
    exchange.send_head(404, None, "Content-Type: text/html")
    await exchange.send_without_end(_ERROR_PAGE * 100)


_PASSES: Mapping[str, Answer] = {
    "flaky": _first(500),
    "busy": _first(503),
    "too_many": _first(429),
    "retry_at_once": _first(429, "Retry-After: 0"),
    "retry_before_now": _first(429, "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"),
    "retry_some_time": _first(503, "Retry-After: soon"),
    "retry_backwards": _first(503, "Retry-After: -1"),
}
_PASSES_AFTER_A_SECOND: Mapping[str, Answer] = {
    "retry_after_second": _first(429, "Retry-After: 1"),
    "busy_for_a_second": _first(503, "Retry-After: 1"),
    "retry_after_date": _retry_after_date,
}
_NEVER: Mapping[str, tuple[Answer, int]] = {
    "missing": (_always(404), 404),
    "missing_at_length": (_missing_at_length, 404),
    **{f"status_{status}": (_always(status), status) for status in _FINAL},
}
_NOT_YET: Mapping[str, tuple[Answer, int]] = {
    "broken": (_always(500), 500),
    **{f"status_{status}": (_always(status), status) for status in _MAY_PASS},
}

STATUSES: Mapping[str, Behaviour] = {
    **{name: Behaviour(answer, attempts=2) for name, answer in _PASSES.items()},
    **{name: Behaviour(answer, attempts=2, waits=True) for name, answer in _PASSES_AFTER_A_SECOND.items()},
    **{name: Behaviour(answer, FailureKind.HTTP_STATUS, status) for name, (answer, status) in _NEVER.items()},
    **{
        name: Behaviour(answer, FailureKind.HTTP_STATUS, status, attempts=None)
        for name, (answer, status) in _NOT_YET.items()
    },
}
"""Name in the path → which status is sent."""
