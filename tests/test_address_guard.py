"""The address guard, which decides which addresses may be connected to."""

import random
from ipaddress import IPv4Address, IPv4Network, ip_network

import pytest

from datafetch.fetch.dns.address_guard import AddressGuard, BlockedAddressError

PUBLIC = [
    "8.8.8.8",
    "93.184.216.34",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
    "2606:4700::5efe:8.8.8.8",
]
NOT_PUBLIC = [
    "0.0.0.0",  # noqa: S104 - nothing binds to it here
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.1",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:db8::1",
    "fc00::1",
    "fe80::1",
    "fe80::1%eth0",
    "ff02::1",
    "fec0::1",
    "3fff::1",
    "64:ff9b:1:7f00:0:100:808:808",
    "2606:4700::5efe:10.0.0.1",
    "fe80::200:5efe:8.8.8.8",
    "192.88.99.1",
    "not an address",
    "",
    *(f"192.0.0.{last}" for last in (0, 8, 9, 10, 11, 170, 192, 255)),
    "::ffff:192.0.0.192",
    "::ffff:192.88.99.1",
    "64:ff9b::c000:c0",
    "2001:1::1",
    "2001:1::2",
    "2001:1::3",
]
METADATA = {  # where clouds give a machine its credentials
    "AWS, Google, Azure, Oracle and most others": "169.254.169.254",
    "AWS, containers": "169.254.170.2",
    "AWS, pods": "169.254.170.23",
    "AWS, IPv6": "fd00:ec2::254",
    "AWS, pods, IPv6": "fd00:ec2::23",
    "Google, IPv6": "fd20:ce::254",
    "Oracle, IPv6": "fd00:c1::a9fe:a9fe",
    "Oracle, formerly": "192.0.0.192",
    "Azure, wire server": "168.63.129.16",
    "Azure, wire server, mapped": "::ffff:168.63.129.16",
    "Azure, wire server, through NAT64": "64:ff9b::a83f:8110",
    "Alibaba": "100.100.100.200",
    "Tencent": "169.254.0.23",
    "Tencent, containers": "100.88.222.5",
    "Packet, Equinix Metal": "192.80.8.124",
    "Scaleway": "169.254.42.42",
    "Scaleway, IPv6": "fd00:42::42",
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_permitted(address: str) -> None:
    """This includes addresses that embed a public one."""
    AddressGuard(()).check(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_everything_else_is_refused(address: str) -> None:
    """No form of a private address gets past the guard."""
    with pytest.raises(BlockedAddressError):
        AddressGuard(()).check(address)


def test_no_ipv4_address_is_public_that_python_calls_special() -> None:
    """The guard's own list is Python's and two networks more, at the ends of all special networks and elsewhere."""
    special = [
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
        *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("224.0.0.0/4", "240.0.0.0/4"),
    ]
    edges = [int(IPv4Network(network)[index]) + step for network in special for index in (0, -1) for step in (-1, 0, 1)]
    numbers = [*edges, *(random.Random(0).getrandbits(32) for _ in range(20_000))]
    guard = AddressGuard(())
    stricter = [ip_network(network) for network in ("192.0.0.0/24", "192.88.99.0/24")]
    for address in (IPv4Address(number) for number in numbers if 0 <= number < 2**32):
        is_special = not address.is_global or address.is_multicast or address.is_reserved
        assert guard.permits(str(address)) == (not (is_special or any(address in network for network in stricter)))


@pytest.mark.parametrize("cloud", METADATA)
def test_metadata_services_of_clouds_are_refused(cloud: str) -> None:
    """This includes those whose address looks public."""
    assert not AddressGuard(()).permits(METADATA[cloud])


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203"])
def test_an_allowed_network_is_permitted_in_every_form(address: str) -> None:
    """If 10.0.0.0/8 is allowed, so is every way to write an address in it."""
    assert AddressGuard([ip_network("10.0.0.0/8")]).permits(address)


@pytest.mark.parametrize("address", ["11.0.0.1", "127.0.0.1", "10.1.2.3"])
def test_an_allowed_network_opens_no_other(address: str) -> None:
    """Other private networks stay refused."""
    assert AddressGuard([ip_network("10.9.0.0/16")]).permits(address) == (address == "11.0.0.1")


@pytest.mark.parametrize(
    ("address", "is_exception"),
    [
        ("10.9.1.1", True),
        ("::ffff:10.9.1.1", True),
        ("10.1.1.1", False),
        ("8.8.8.8", False),
        ("9.9.9.9", False),
        ("not an address", False),
    ],
)
def test_only_what_the_operator_permits_is_an_exception(address: str, is_exception: bool) -> None:
    """An address that is public or refused is not an exception."""
    assert AddressGuard([ip_network("10.9.0.0/16"), ip_network("9.0.0.0/8")]).is_exception(address) == is_exception
