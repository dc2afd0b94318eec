"""Which addresses may be connected to.

Rules: what is not plainly public is refused, so that a manifest from the web can't make this machine talk to its own
network (server-side request forgery). An address that carries another one inside (mapped, 6to4, NAT64, Teredo) is
judged by that one, for that is where it may end up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum, auto
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_IPV4_COMPATIBLE = IPv6Network("::/96")  # RFC 4291, deprecated, still routed by some stacks
_LOW_32_BITS = 0xFFFFFFFF
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214, 6.1: the upper half of the interface's identifier
_NOT_PUBLIC = (  # though some Python takes them for global
    # IETF protocol assignments (RFC 6890). IANA calls two of them reachable (.9 and .10, RFC 7723 and 8155), which are
    # anycast addresses of the nearest NAT and relay, and so of one's own network; Oracle's metadata were at .192.
    IPv4Network("192.0.0.0/24"),
    IPv6Network("2001:1::/32"),  # the same in IPv6: RFC 7723, 8155, 9665
    IPv4Network("168.63.129.16/32"),  # Azure's wire server: keys and certificates of the machine
    IPv4Network("192.80.8.124/32"),  # metadata of Packet, later Equinix Metal
    IPv6Network("64:ff9b:1::/48"),  # RFC 8215: a NAT64 of somebody's own, with the IPv4 address anywhere in it
    IPv6Network("3fff::/20"),  # RFC 9637: documentation
    IPv6Network("fec0::/10"),  # RFC 3879: site-local
    IPv4Network("192.88.99.0/24"),  # RFC 7526: relays of 6to4
)
_CACHED_ADDRESSES = 16_384


def is_address(host: str) -> bool:
    """Whether a host is written as an address (in the form that parse_url gives it) and not as a name."""
    last = host.rpartition(".")[2]
    return ":" in host or last.isdecimal()


class BlockedAddressError(OSError):
    """The address is not public and was not allowed."""

    def __init__(self, address: str) -> None:
        super().__init__(f"{address} is not a public address; --allow-net would allow it")


class _Verdict(Enum):
    PUBLIC = auto()
    EXCEPTION = auto()
    BLOCKED = auto()


class AddressGuard:
    """Says which addresses may be connected to: public ones, and those that the operator named.

    Args:
        allowed: What the operator named.
    """

    def __init__(self, allowed: Sequence[IPv4Network | IPv6Network]) -> None:
        self._allowed = tuple(allowed)
        # Parsing an address takes 20 µs, and each is judged more than once: literals twice a hop, names by each answer.
        self._verdict = lru_cache(maxsize=_CACHED_ADDRESSES)(self._judge)

    def permits(self, address: str) -> bool:
        """Whether an IPv4 or IPv6 address may be connected to."""
        return self._verdict(address) is not _Verdict.BLOCKED

    def is_exception(self, address: str) -> bool:
        """Whether it may only because the operator named it."""
        return self._verdict(address) is _Verdict.EXCEPTION

    def _judge(self, address: str) -> _Verdict:
        try:
            parsed = ip_address(address.partition("%")[0])
        except ValueError:
            return _Verdict.BLOCKED
        embedded = tuple(_embedded(parsed))
        if all(map(_is_public, embedded or (parsed,))) and not (embedded and _is_named_not_public(parsed)):
            return _Verdict.PUBLIC
        if self._is_allowed(parsed):
            return _Verdict.EXCEPTION
        is_allowed = bool(embedded) and not _is_named_not_public(parsed)
        is_allowed = is_allowed and all(_is_public(inner) or self._is_allowed(inner) for inner in embedded)
        return _Verdict.EXCEPTION if is_allowed else _Verdict.BLOCKED

    def check(self, address: str) -> None:
        """Raise unless the address may be connected to.

        Raises:
            BlockedAddressError: It may not.
        """
        if not self.permits(address):
            raise BlockedAddressError(address)

    def _is_allowed(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._allowed)


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    return (
        address.is_global
        and not (address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback)
        and not _is_named_not_public(address)
    )


def _is_named_not_public(address: IPv4Address | IPv6Address) -> bool:
    return any(address in network for network in _NOT_PUBLIC)


def _embedded(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address | IPv6Address]:
    """The addresses that an IPv6 address may end up at, where that is not just itself."""
    if isinstance(address, IPv4Address):
        return
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
