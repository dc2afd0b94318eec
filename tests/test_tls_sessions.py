"""TLS sessions: what spares a server's certificate its verification, and what does not."""

import socket
import socketserver
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest
import trustme
from conftest import LOOPBACK

from datafetch.fetch import Fetcher, FetchPolicy
from datafetch.model.outcome import Body, Failure, FailureKind

POLICY = FetchPolicy(allow_net=LOOPBACK, retries=0)
PICTURE = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 7\r\n\r\npicture"
_PRE_SHARED_KEY = (41).to_bytes(2, "big") + b"\x01"  # the extension, whose length takes two bytes

pytestmark = pytest.mark.both_loops


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """The authority of all servers' certificates."""
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process trusts the authority."""
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))


class _Server(socketserver.ThreadingTCPServer):
    """A server that answers one request a connection, and knows which of its connections resumed a session.

    Args:
        next_context: Makes the context of each connection.
        answers_offers: How a first message is answered that offers a session, in place of a handshake; None to make it.
    """

    daemon_threads = True

    def __init__(self, next_context: Callable[[], ssl.SSLContext], *, answers_offers: bytes | None = None) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.refused = 0
        self._answer_to_offers = answers_offers
        self.resumed: list[bool | None] = []
        self._next_context = next_context
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def finish_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Answer one request."""
        del client_address
        assert isinstance(request, socket.socket)
        if self._answer_to_offers is not None and _PRE_SHARED_KEY in request.recv(65_536, socket.MSG_PEEK):
            self.refused += 1
            request.recv(65_536)
            request.sendall(self._answer_to_offers)
            return
        with suppress(OSError), self._next_context().wrap_socket(request, server_side=True) as connection:
            self.resumed.append(connection.session_reused)
            connection.recv(65_536)
            connection.sendall(PICTURE)


def _context(authority: trustme.CA, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def _fetch(server: _Server, times: int, policy: FetchPolicy = POLICY) -> None:
    async with Fetcher(policy) as fetch:
        for _ in range(times):
            fetched = await fetch(f"https://127.0.0.1:{server.server_address[1]}/")
            assert isinstance(fetched, Body), fetched


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_the_third_connection_to_a_server_resumes_a_session(
    authority: trustme.CA, version: ssl.TLSVersion
) -> None:
    """The second shows that the server is visited again, and its session serves all that follow."""
    context = _context(authority, version)
    with _Server(lambda: context) as server:
        await _fetch(server, 4)
    assert server.resumed == [False, False, True, True]


@pytest.mark.usefixtures("trusted")
async def test_a_session_outlives_no_fetcher(authority: trustme.CA) -> None:
    """Another fetcher may have been told to verify otherwise."""
    context = _context(authority)
    with _Server(lambda: context) as server:
        await _fetch(server, 2)
        await _fetch(server, 2)
    assert server.resumed == [False] * 4


async def test_a_server_that_was_not_verified_has_no_session(authority: trustme.CA) -> None:
    """Each image is tried with verification first, for the ledger marks those that needed the permission."""
    context = _context(authority)
    with _Server(lambda: context) as server:
        await _fetch(server, 4, replace(POLICY, insecure=True))
    assert server.resumed == [False] * 4


@pytest.mark.usefixtures("trusted")
async def test_a_server_that_forgets_its_sessions_is_asked_once(authority: trustme.CA) -> None:
    """Each of its connections has new keys, as behind a load balancer, and takes no session; that costs no image."""
    with _Server(lambda: _context(authority)) as server:
        await _fetch(server, 6)
    assert server.resumed == [False] * 6


@pytest.mark.usefixtures("trusted")
async def test_a_server_may_have_no_sessions(authority: trustme.CA) -> None:
    """It gives no tickets, and has no other sessions."""
    context = _context(authority)
    context.num_tickets = 0
    with _Server(lambda: context) as server:
        await _fetch(server, 4)
    assert server.resumed == [False] * 4


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("answer", [b"\x15\x03\x03\x00\x02\x02\x28", b""], ids=["an alert", "the end"])
@pytest.mark.parametrize("policy", [POLICY, replace(POLICY, insecure=True)], ids=["verified", "insecure"])
async def test_a_server_that_refuses_sessions_is_connected_to_without(
    authority: trustme.CA, answer: bytes, policy: FetchPolicy
) -> None:
    """It breaks off handshakes that offer one, which costs no image, no attempt and no permission, and happens once."""
    context = _context(authority)
    with _Server(lambda: context, answers_offers=answer) as server:
        await _fetch(server, 5, policy)
    assert server.refused == 1
    assert server.resumed == [False] * 5


async def test_messages_without_data_end_a_connection(authority: trustme.CA, tmp_path: Path) -> None:
    """Each costs CPU time, so a flood of them would hold up all other connections."""
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    context = _context(authority)
    context.num_tickets = 4000
    with _Server(lambda: context) as server:
        async with Fetcher(replace(POLICY, insecure=True)) as fetch:
            failure = await fetch(f"https://127.0.0.1:{server.server_address[1]}/")
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.DISCONNECTED
    assert failure.detail.endswith("the server sends TLS messages without data")
