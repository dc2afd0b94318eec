"""FetchPolicy: what the operator may set about fetching."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from datafetch.model.fields import check_types, invalid, require_in_range
from datafetch.model.options import Effect, Option, OptionGroup, option

_NAMESERVER = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[^:\[\]]+))(?::(?P<port>\d{1,5}))?")
_MAX_PORT = 65_535
MIB = 1024 * 1024
DEFAULT_MAX_BODY_BYTES = 32 * MIB
"""A larger body is accepted only by the operator's permission."""
MAX_BYTES = 2**50
"""Upper bound for the size of a body and for the memory budget; no machine has as much."""
_MAX_CONNECTIONS = 1_000_000  # no process has as many descriptors
MIN_RATE_BYTES_PER_S = 1024
"""Less is a slip of the pen: of 100 KB, an image would take minutes."""
_MAX_REDIRECTS = 1000
_MAX_RETRIES = (
    60  # the ledger counts attempts in 8 bits, and a truncated image is fetched again with retries of its own
)
_DEFAULT_TIMEOUT_S = 30.0
_MAX_TIMEOUT_S = 86_400.0
_SILENCE_S = 20.0  # longer is hardly ever followed by an image, and keeps connections from other hosts
_NetworkOption = partial(Option, group=OptionGroup.NETWORK, effect=Effect.NONE)
_Permission = partial(Option, group=OptionGroup.NETWORK, effect=Effect.PERMITS)


class OptOut(StrEnum):
    """What to do about a response that forbids its use for training (``X-Robots-Tag``)."""

    OBEY = "obey"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """How the fetcher behaves. The values are checked when it is made.

    Attributes:
        connections: Number of requests in flight at once; None lets the fetcher find the number that serves best.
        per_host: Number of requests in flight at once to one host (name and port).
        timeout_s: Seconds for one attempt, from connecting to the last byte. Time spent in queues does not count.
        connect_timeout_s: How much of it connecting may take, TLS included.
        stall_timeout_s: How much of it may pass without a byte; None allows 20 seconds, or all of it if it is longer
            than by default (``silence_s``).
        retries: Number of further attempts after a failure that may pass.
        backoff_s: Mean pause before the first retry. It doubles from one retry to the next, with jitter.
        max_body_bytes: Larger bodies are refused, before and after decompression.
        max_rate_bytes_per_s: Cap on the bytes that all connections together receive in a second, on average; None sets
            none. Time that it makes a request or a body wait counts against no timeout.
        max_redirects: Number of redirects that are followed.
        allow_net: CIDR blocks of addresses that are not public but may be connected to.
        nameservers: ``ADDRESS`` or ``ADDRESS:PORT`` each; empty uses the system's name servers.
        opt_out: Whether a response may forbid the use of its image.
        contact: Added to the User-Agent, so that the owner of a site knows whom to write to.
        insecure: Also accept invalid certificates and outdated TLS.
        trust_env: Use the proxies that environment variables name (``HTTPS_PROXY``, ``NO_PROXY`` …).
    """

    connections: int | None = option(
        None, _NetworkOption(help="Maximum number of open requests.", metavar="N|auto", none_word="auto")
    )
    per_host: int = option(8, _NetworkOption(help="Maximum number of open requests to one host.", metavar="N"))
    timeout_s: float = option(
        _DEFAULT_TIMEOUT_S,
        _NetworkOption(
            name="timeout",
            help="Seconds for one attempt, from sending to the last byte. A server may be silent for "
            f"{_SILENCE_S:g} of them, or for all if they are more than {_DEFAULT_TIMEOUT_S:g}.",
            metavar="S",
        ),
    )
    connect_timeout_s: float = 10.0
    stall_timeout_s: float | None = None
    retries: int = option(
        2, _NetworkOption(help="Further attempts after a failure that may be temporary.", metavar="N")
    )
    backoff_s: float = 0.5
    max_body_bytes: int = option(
        DEFAULT_MAX_BODY_BYTES, _Permission(name="max_body", help="Refuse larger response bodies.", is_bytes=True)
    )
    max_rate_bytes_per_s: int | None = option(
        None,
        _NetworkOption(
            name="max_rate",
            help="Cap on the bytes received a second, over all connections, such as 10MB/s.",
            metavar="BYTES/S|none",
            none_word="none",
            is_bytes=True,
            is_rate=True,
        ),
    )
    max_redirects: int = 10
    allow_net: tuple[str, ...] = option(
        (),
        _Permission(help="Also connect to these non-public addresses. Repeatable.", metavar="CIDR", unset="none"),
    )
    nameservers: tuple[str, ...] = option(
        (),
        _NetworkOption(name="nameserver", help="Name server. Repeatable.", metavar="IP[:PORT]", unset="the system's"),
    )
    opt_out: OptOut = option(
        OptOut.OBEY,
        _Permission(help="Whether to obey responses that forbid the use of their image (X-Robots-Tag)."),
    )
    contact: str = option(
        "", _NetworkOption(name="user_agent", help="Contact to add to the User-Agent.", metavar="TEXT", unset="none")
    )
    insecure: bool = option(
        False,
        _Permission(help="Also accept invalid certificates and outdated TLS; the ledger marks these images."),
    )
    trust_env: bool = option(False, _NetworkOption(help="Use the proxies named in the environment (HTTPS_PROXY …)."))

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything is fetched."""
        check_types(self)
        require_in_range(self, "connections", 1, _MAX_CONNECTIONS)
        require_in_range(self, "per_host", 1, _MAX_CONNECTIONS)
        require_in_range(self, "retries", 0, _MAX_RETRIES)
        require_in_range(self, "max_body_bytes", 1, MAX_BYTES)
        require_in_range(self, "max_rate_bytes_per_s", MIN_RATE_BYTES_PER_S, MAX_BYTES)
        require_in_range(self, "max_redirects", 0, _MAX_REDIRECTS)
        if not 0 < self.timeout_s <= _MAX_TIMEOUT_S:
            raise invalid(self, f"{{timeout_s}} must be above 0 seconds and at most a day, not {self.timeout_s}")
        if not (0 < self.connect_timeout_s <= _MAX_TIMEOUT_S and 0 < self.silence_s <= _MAX_TIMEOUT_S):
            raise invalid(self, "connect_timeout_s and stall_timeout_s must be above 0 seconds and at most a day")
        if self.backoff_s < 0:
            raise invalid(self, "backoff_s must be 0 or above")
        if not self.contact.isprintable():
            raise invalid(self, "{contact} must be one line of printable text")
        self.networks()
        for nameserver in self.nameservers:
            if not _is_nameserver(nameserver):
                template = (
                    "{nameservers} takes ADDRESS or ADDRESS:PORT, with [] around an IPv6 address before a port, "
                    "not {shown}"
                )
                raise invalid(self, template, shown=repr(nameserver))

    @property
    def silence_s(self) -> float:
        """How many seconds of an attempt may pass without a byte.

        A timeout that is longer than by default is given for servers that take long to answer.
        """
        if self.stall_timeout_s is not None:
            return self.stall_timeout_s
        return self.timeout_s if self.timeout_s > _DEFAULT_TIMEOUT_S else _SILENCE_S

    def networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """``allow_net`` as networks.

        Raises:
            ConfigurationError: One of them is not a CIDR block.
        """
        try:
            return tuple(ip_network(block, strict=False) for block in self.allow_net)
        except ValueError as error:
            template = "{allow_net} takes addresses in CIDR form, such as 10.0.0.0/8: {reason}"
            raise invalid(self, template, reason=str(error)) from error


def _is_nameserver(text: str) -> bool:
    match = _NAMESERVER.fullmatch(text)
    address = (match["v6"] or match["v4"]) if match else text
    port = int(match["port"] or 0) if match else 0
    return _is_address(address) and port <= _MAX_PORT


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
