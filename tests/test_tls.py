"""Outdated TLS and invalid certificates, which are accepted only with --insecure."""

import socket
import socketserver
import ssl
import struct
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest
import trustme
from conftest import LOOPBACK
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from datafetch.fetch import Fetcher, FetchPolicy
from datafetch.model.outcome import Body, Failure, FailureKind, Permission

STRICT = FetchPolicy(allow_net=LOOPBACK, retries=0)
LAX = replace(STRICT, insecure=True)
PERMITTED = (Permission.ALLOW_NET, Permission.INSECURE)
PICTURE = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npicture"
_SHA256_WITH_RSA, _SHA1_WITH_RSA = (bytes.fromhex(f"2a864886f70d0101{last}") for last in ("0b", "05"))

pytestmark = pytest.mark.both_loops


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a PEM file with a key and a self-signed certificate."""
    path = tmp_path_factory.mktemp("certificate") / "own.pem"
    leaf = trustme.CA().issue_cert("127.0.0.1")
    path.write_bytes(leaf.private_key_and_cert_chain_pem.bytes())
    return path


@pytest.fixture(scope="module")
def weak_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 1024 bits, signed with SHA-1."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - weak on purpose
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    # No library creates such signatures any more, so it is signed again by hand.
    body, whole = (
        part.replace(_SHA256_WITH_RSA, _SHA1_WITH_RSA)
        for part in (signed.tbs_certificate_bytes, signed.public_bytes(serialization.Encoding.DER))
    )
    signature = key.sign(body, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303 - weak on purpose
    path = tmp_path_factory.mktemp("certificate") / "weak.pem"
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    path.write_bytes(
        key.private_bytes(pem, form, serialization.NoEncryption())
        + ssl.DER_cert_to_PEM_cert(whole[: -len(signature)] + signature).encode()
    )
    return path


Tune = Callable[[ssl.SSLContext], object]


def _untuned(_: ssl.SSLContext) -> None:
    """Leave a context as OpenSSL creates it."""


def _speaks(version: ssl.TLSVersion) -> Tune:
    def tune(context: ssl.SSLContext) -> None:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            context.minimum_version = context.maximum_version = version

    return tune


class _Server(socketserver.ThreadingTCPServer):
    """A server with one TLS configuration, on OpenSSL's own sockets, which report why a handshake is refused.

    Args:
        certificate: PEM file with key and chain.
        tune: Configures the context.
        hang_ups: How many connections are reset after the first byte.
    """

    daemon_threads = True

    def __init__(self, certificate: Path, tune: Tune = _untuned, hang_ups: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.hellos = 0
        self._hang_ups = hang_ups
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.set_ciphers("DEFAULT:@SECLEVEL=0")
        self._context.load_cert_chain(certificate)
        tune(self._context)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"https://127.0.0.1:{self.server_address[1]}/"

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
        self.hellos += 1
        if self.hellos <= self._hang_ups:
            request.recv(1)
            request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        with suppress(OSError), self._context.wrap_socket(request, server_side=True) as connection:
            connection.recv(65_536)
            connection.sendall(PICTURE)


def _hashes_by_sha1(context: ssl.SSLContext) -> None:
    _speaks(ssl.TLSVersion.TLSv1_2)(context)
    context.set_ciphers("AES128-SHA:ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")


@pytest.mark.parametrize(
    "tune",
    [
        _speaks(ssl.TLSVersion.TLSv1),
        _speaks(ssl.TLSVersion.TLSv1_1),
        _speaks(ssl.TLSVersion.TLSv1_2),
        _hashes_by_sha1,
    ],
    ids=["TLS 1.0", "TLS 1.1", "TLS 1.2", "TLS 1.2 by SHA-1"],
)
@pytest.mark.parametrize("key", ["certificate", "weak_certificate"])
async def test_outdated_servers_need_the_permission(key: str, tune: Tune, request: pytest.FixtureRequest) -> None:
    """Old versions, old ciphers and short keys fail with kind tls; with --insecure they are accepted and recorded."""
    with _Server(request.getfixturevalue(key), tune) as server:
        async with Fetcher(STRICT) as fetch:
            refused = await fetch(server.url)
        async with Fetcher(LAX) as fetch:
            taken = await fetch(server.url)
    assert isinstance(refused, Failure)
    assert (refused.kind, refused.permitted) == (FailureKind.TLS, (Permission.ALLOW_NET,))
    assert isinstance(taken, Body), taken
    assert (taken.content, taken.permitted) == (b"picture", PERMITTED)


async def test_an_image_that_needed_no_permission_is_not_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: Path
) -> None:
    """A valid certificate is not recorded as an exception even if --insecure is on."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    sound = tmp_path / "sound.pem"
    sound.write_bytes(authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    with _Server(sound) as valid, _Server(certificate) as invalid:
        async with Fetcher(LAX) as fetch:
            permitted = [(await fetch(server.url)).permitted for server in (valid, invalid, valid)]
    assert permitted == [(Permission.ALLOW_NET,), PERMITTED, (Permission.ALLOW_NET,)]


async def test_a_server_that_closes_on_a_client_hello_is_tried_again(certificate: Path) -> None:
    """Some servers just close the connection on a ClientHello that they reject; --insecure tries again."""
    with _Server(certificate, hang_ups=1) as server:
        async with Fetcher(LAX) as fetch:
            taken = await fetch(server.url)
        assert server.hellos == 2
    with _Server(certificate, hang_ups=2) as server:
        async with Fetcher(STRICT) as fetch:
            assert isinstance(await fetch(server.url), Failure)
        assert server.hellos == 1
    assert isinstance(taken, Body), taken
    assert taken.permitted == PERMITTED


async def test_a_refused_connection_is_not_a_failure_of_tls() -> None:
    """No second connection is tried with --insecure, and the permission that its address needed is recorded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with Fetcher(LAX) as fetch:
        failure = await fetch(f"https://127.0.0.1:{port}/")
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.permitted) == (FailureKind.CONNECT, (Permission.ALLOW_NET,))


async def test_an_image_that_failed_without_verification_too_is_marked(certificate: Path) -> None:
    """The record shows that --insecure does not help it."""
    with _Server(certificate, hang_ups=2) as server:
        async with Fetcher(replace(LAX, retries=0)) as fetch:
            failure = await fetch(server.url)
    assert isinstance(failure, Failure)
    assert failure.permitted == PERMITTED


class _Spoiler(_Server):
    """A server that sends the head of a response and a part of its body, and then bytes that are no TLS."""

    def finish_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Answer one request."""
        del client_address
        assert isinstance(request, socket.socket)
        with suppress(OSError):
            below = request.dup()
            with below, self._context.wrap_socket(request, server_side=True) as connection:
                connection.recv(65_536)
                connection.sendall(PICTURE[:-1])
                below.sendall(b"e" * 100)


async def test_bytes_that_are_no_tls_are_no_body(certificate: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was not encrypted could come from anybody; the body ends there, incomplete."""
    with _Spoiler(certificate) as server:
        async with Fetcher(LAX) as fetch:
            failure = await fetch(server.url)
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.DISCONNECTED
    assert not caplog.records  # of the event loop, about the alert that can't be sent any more
