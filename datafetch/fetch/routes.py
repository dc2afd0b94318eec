"""Asks the system for routes. Nothing is sent."""

from __future__ import annotations

import socket

from datafetch.errors import is_exhaustion

# Name servers of the root zone, as examples of public addresses: routes to single ones of them don't occur.
_PUBLIC_ADDRESSES = ("198.41.0.4", "2001:503:ba3e::2:30")
_ANY_PORT = 9


def has_route_to(address: str) -> bool:
    """Whether this machine has a route to an address; True if that can't be told for lack of descriptors."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.setblocking(False)
            probe.connect((address, _ANY_PORT))
    except OSError as error:
        return is_exhaustion(error)
    return True


def has_public_route() -> bool:
    """Whether this machine has a route to public addresses, of IPv4 or IPv6."""
    return any(map(has_route_to, _PUBLIC_ADDRESSES))
