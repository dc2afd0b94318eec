"""Decides which addresses may be connected to.

Rules: an address that is not certain to be public is refused, so that a manifest from the web can't make this machine
send requests into its own network (server-side request forgery). An IPv6 address that embeds an IPv4 address (mapped,
6to4, NAT64, Teredo) is judged by the embedded one, because that is where packets to it may end up.
"""

from __future__ import annotations

import socket
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, auto
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address


def _bounds(networks: Iterable[IPv4Network]) -> list[int]:
    """The first addresses of networks and those behind their last ones, in turn and in ascending order, as numbers."""
    disjoint = collapse_addresses(networks)
    return [bound for network in disjoint for bound in (int(network[0]), int(network[-1]) + 1)]


def _is_within(number: int, bounds: Sequence[int]) -> bool:
    """Whether an IPv4 address, as a number, is within the networks that have these bounds."""
    return bisect_right(bounds, number) % 2 == 1


_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_IPV4_COMPATIBLE = IPv6Network("::/96")  # RFC 4291, deprecated, still routed by some stacks
_LOW_32_BITS = 0xFFFFFFFF
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214, 6.1: the upper half of the interface identifier
# IANA's registry of special-purpose IPv4 addresses, and what looks public but is not. All are listed here, for what
# Python reports differs between its versions, and takes ten times as long.
_NOT_PUBLIC_IPV4 = _bounds(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",  # RFC 6598: between a provider and its customers
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            # IETF protocol assignments (RFC 6890). IANA lists .9 and .10 as globally reachable (RFC 7723 and 8155), but
            # they are anycast addresses of the nearest NAT and relay, and so of the own network; Oracle's metadata were
            # at .192.
            "192.0.0.0/24",
            "192.0.2.0/24",  # RFC 5737: documentation, as two others below
            "192.88.99.0/24",  # RFC 7526: 6to4 relays
            "192.168.0.0/16",
            "198.18.0.0/15",  # RFC 2544: benchmarks
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",  # multicast, and reserved
            "168.63.129.16/32",  # Azure's WireServer, which has keys and certificates of the machine
            "192.80.8.124/32",  # the metadata service of Packet, later Equinix Metal
        ),
    )
)
_NOT_PUBLIC_IPV6 = (  # some versions of Python report these as global
    IPv6Network("2001:1::/32"),  # anycast addresses of the own network: RFC 7723, 8155, 9665
    IPv6Network("64:ff9b:1::/48"),  # RFC 8215: local-use NAT64, which may embed the IPv4 address anywhere
    IPv6Network("3fff::/20"),  # RFC 9637: documentation
    IPv6Network("fec0::/10"),  # RFC 3879: site-local
)
_CACHED_ADDRESSES = 16_384
_MAX_NAMED_ADDRESSES = 3
_LOOPBACK = IPv4Network("127.0.0.0/8")


def is_address(host: str) -> bool:
    """Whether a URL's host, in the form that ``parse_url`` gives it, is an address and not a name."""
    last = host.rpartition(".")[2]
    return ":" in host or last.isdecimal()


class BlockedAddressError(OSError):
    """No address of a host is public, and the operator has not allowed any.

    Args:
        addresses: The addresses, or a name of this machine itself, which no option allows to ask a proxy for.

    Attributes:
        networks: The networks that ``--allow-net`` would have to name for all of them, at most a few; none for a name.
    """

    def __init__(self, *addresses: str) -> None:
        shown = addresses[:_MAX_NAMED_ADDRESSES]
        self.networks = tuple(dict.fromkeys(filter(None, map(_network_to_allow, shown))))
        what = "is not a public address" if len(shown) == 1 else "are not public addresses"
        options = " ".join(f"--allow-net {network}" for network in self.networks)
        hint = f"; {options} would allow {'it' if len(shown) == 1 else 'them'}" if options else ""
        super().__init__(f"{', '.join(shown)} {what}{hint}")


def _network_to_allow(address: str) -> str:
    """All of loopback, and of other networks no more than the address; empty for what is none."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    return str(_LOOPBACK if parsed in _LOOPBACK else parsed)


class _Verdict(Enum):
    """EXCEPTION is an address that is not public and that the operator has allowed."""

    PUBLIC = auto()
    EXCEPTION = auto()
    BLOCKED = auto()


_PUBLIC, _EXCEPTION, _BLOCKED = _Verdict  # to look one up in its class takes as long as to judge an IPv4 address


class AddressGuard:
    """Permits public addresses, and those that the operator has allowed.

    Args:
        allowed: The networks that the operator has allowed.
    """

    def __init__(self, allowed: Sequence[IPv4Network | IPv6Network]) -> None:
        self._allowed_ipv4 = _bounds(network for network in allowed if isinstance(network, IPv4Network))
        self._allowed_ipv6 = tuple(network for network in allowed if isinstance(network, IPv6Network))
        # Judging an IPv6 address takes 20 µs, and each is judged repeatedly: twice for each hop if it is in the URL.
        self._verdict = lru_cache(maxsize=_CACHED_ADDRESSES)(self._judge)

    def permits(self, address: str) -> bool:
        """Whether an IPv4 or IPv6 address may be connected to."""
        return self._verdict(address) is not _BLOCKED

    def is_exception(self, address: str) -> bool:
        """Whether an address may be connected to only because the operator has allowed it."""
        return self._verdict(address) is _EXCEPTION

    def _judge(self, address: str) -> _Verdict:
        try:
            number = int.from_bytes(socket.inet_pton(socket.AF_INET, address), "big")
        except (OSError, ValueError):
            return self._judge_ipv6(address)
        if not _is_within(number, _NOT_PUBLIC_IPV4):
            return _PUBLIC
        return _EXCEPTION if _is_within(number, self._allowed_ipv4) else _BLOCKED

    def _judge_ipv6(self, address: str) -> _Verdict:
        try:
            parsed = IPv6Address(address.partition("%")[0])
        except ValueError:
            return _BLOCKED
        embedded = tuple(_embedded(parsed))
        if all(map(_is_public, embedded or (parsed,))) and not (embedded and _is_named_not_public(parsed)):
            return _PUBLIC
        if self._is_allowed(parsed):
            return _EXCEPTION
        is_allowed = bool(embedded) and not _is_named_not_public(parsed)
        is_allowed = is_allowed and all(_is_public(inner) or self._is_allowed(inner) for inner in embedded)
        return _EXCEPTION if is_allowed else _BLOCKED

    def check(self, address: str) -> None:
        """Raise unless the address may be connected to.

        Raises:
            BlockedAddressError: The address is not public, and the operator has not allowed it.
        """
        if not self.permits(address):
            raise BlockedAddressError(address)

    def _is_allowed(self, address: IPv4Address | IPv6Address) -> bool:
        if isinstance(address, IPv4Address):
            return _is_within(int(address), self._allowed_ipv4)
        return any(address in network for network in self._allowed_ipv6)


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        return not _is_within(int(address), _NOT_PUBLIC_IPV4)
    return (
        address.is_global
        and not (address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback)
        and not _is_named_not_public(address)
    )


def _is_named_not_public(address: IPv6Address) -> bool:
    return any(address in network for network in _NOT_PUBLIC_IPV6)


def _embedded(address: IPv6Address) -> Iterator[IPv4Address | IPv6Address]:
    """The addresses that packets to an IPv6 address may end up at, if not just at that address itself."""
    for inner in (address.ipv4_mapped, address.sixtofour):
        if inner is not None:
            yield inner
    if address.teredo is not None:
        yield from address.teredo
    is_isatap = (int(address) >> 32 & _LOW_32_BITS) in _ISATAP
    if is_isatap or address in _NAT64 or address in _IPV4_COMPATIBLE:
        yield IPv4Address(int(address) & _LOW_32_BITS)
    if is_isatap:
        yield address
