"""One HTTP request on the way to a file: the first one, or one that a redirect led to."""

from __future__ import annotations

from typing import NamedTuple

from datafetch.fetch.cookies import Cookies
from datafetch.fetch.deadline import Deadline
from datafetch.fetch.memory import Reservation
from datafetch.fetch.receive_rate import Transfer
from datafetch.fetch.urls import WebUrl
from datafetch.model.request import Request


class Hop(NamedTuple):
    """Everything that one HTTP request depends on, from its host's slot to the last byte of its body.

    Attributes:
        url: The http or https URL that this hop requests; it differs from the request's after a redirect.
        request: What the caller wants of it.
        memory: The reservation that the body's bytes are counted against. Its number decides which of several hops
            to one host goes first.
        deadline: The attempt's clock, which runs while the request is in flight.
        cookies: The cookies that earlier hops of this attempt have set.
        transfer: What it receives, where that has a cap and the request may be sent; else None.
    """

    url: WebUrl
    request: Request
    memory: Reservation
    deadline: Deadline
    cookies: Cookies
    transfer: Transfer | None = None
