"""Names to addresses, with a real name server that says what it is told to."""

from collections.abc import Iterator

import pytest
from conftest import LOOPBACK
from dnslib import QTYPE, RCODE, RR, A, DNSRecord
from dnslib.server import BaseResolver, DNSServer

from datafetch.fetch import Fetcher, FetchPolicy
from datafetch.model import Failure, FailureKind


class _Answers(BaseResolver):
    def resolve(self, request: DNSRecord, _handler: object) -> DNSRecord:
        """Answer by the first label of the name."""
        reply = request.reply()
        name = request.q.qname
        match str(name).split(".")[0]:
            case "nowhere":
                reply.header.rcode = RCODE.NXDOMAIN
            case "broken":
                reply.header.rcode = RCODE.SERVFAIL
            case "rebinding" if request.q.qtype == QTYPE.A:
                reply.add_answer(RR(name, QTYPE.A, rdata=A("10.0.0.7"), ttl=1))
            case "local" if request.q.qtype == QTYPE.A:
                reply.add_answer(RR(name, QTYPE.A, rdata=A("127.0.0.1"), ttl=60))
        return reply


@pytest.fixture(scope="module")
def nameserver() -> Iterator[str]:
    """A name server on loopback."""
    server = DNSServer(_Answers(), address="127.0.0.1", port=0)
    server.start_thread()
    yield f"127.0.0.1:{server.server.server_address[1]}"
    server.stop()
    server.server.server_close()


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("nowhere.example", FailureKind.DNS_NOT_FOUND),
        ("empty.example", FailureKind.DNS_NOT_FOUND),
        ("broken.example", FailureKind.DNS_FAILED),
        ("rebinding.example", FailureKind.BLOCKED_ADDRESS),
        ("local.example:1", FailureKind.CONNECT),
    ],
)
async def test_each_answer_has_its_kind(nameserver: str, host: str, kind: FailureKind) -> None:
    """A name that is not there is final; a server that fails is not the name's fault; a private answer is refused."""
    async with Fetcher(FetchPolicy(nameservers=(nameserver,), allow_net=LOOPBACK, retries=0)) as fetch:
        fetched = await fetch(f"http://{host}/cat.jpg")
    assert isinstance(fetched, Failure)
    assert fetched.kind is kind, fetched
    assert fetched.may_pass == (kind in {FailureKind.DNS_FAILED, FailureKind.CONNECT})


async def test_a_name_server_that_is_not_there_blames_no_name() -> None:
    """Silence is our failure to ask, and may pass."""
    async with Fetcher(FetchPolicy(nameservers=("127.0.0.1:1",), retries=0)) as fetch:
        fetched = await fetch("http://example.org/cat.jpg")
    assert isinstance(fetched, Failure)
    assert fetched.kind is FailureKind.DNS_FAILED
