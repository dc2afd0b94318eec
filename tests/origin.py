"""The web as the tests need it: the demo's origin, with and without TLS, and faults below HTTP.

Rules: everything is on loopback and on free ports. ``MISBEHAVIOURS`` is the table of all that can happen to an image
on its way here; each row has exactly one outcome.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme

from datafetch.demo.behaviours import BEHAVIOURS, Behaviour
from datafetch.demo.origin import Origin
from datafetch.model.outcome import FailureKind

_LOOPBACK = "127.0.0.1"
_LINGER_NOT_AT_ALL = struct.pack("ii", 1, 0)
_PATIENCE_S = 10.0
_RECEIVED_BYTES = 65_536
_LONG_QUEUE = 1024
_BIND_ATTEMPTS = 20
_FATAL_HANDSHAKE_FAILURE = bytes.fromhex("15 0303 0002 0228")  # TLS 1.2 alert: level fatal, handshake_failure
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_BANNER = b"SSH-2.0-OpenSSH_9.2\r\n"
_DAY = timedelta(days=1)

# Each row of the table has a host of its own, so that a paused host or an open circuit affects no other row.
_HOSTS = tuple(f"127.7.{number // 200}.{number % 200 + 1}" for number in range(600))
_CERTIFIED_HOSTS = ("localhost", _LOOPBACK, *(f"127.8.0.{number + 1}" for number in range(100)))
DOMAIN = "origin.test"
"""Certificates are good for this name and all names under it, for a test that has a name server."""


def write_certificates(folder: Path) -> Mapping[str, Path]:
    """Write valid and invalid certificates.

    Returns:
        Name → PEM file with key and chain: ``https`` (valid for ``_CERTIFIED_HOSTS`` and ``DOMAIN``), ``expired``,
        ``not_yet``, ``wrong_host``, ``unknown_authority``, ``self_signed``, ``incomplete_chain``; and ``authority``,
        the certificate to trust.
    """
    authority, stranger = trustme.CA(), trustme.CA()
    hosts = (*_CERTIFIED_HOSTS, DOMAIN, f"*.{DOMAIN}")
    now = datetime.now(UTC)
    leaves = {
        "https": authority.issue_cert(*hosts),
        "expired": authority.issue_cert(*hosts, not_before=now - 2 * _DAY, not_after=now - _DAY),
        "not_yet": authority.issue_cert(*hosts, not_before=now + _DAY, not_after=now + 2 * _DAY),
        "wrong_host": authority.issue_cert("elsewhere.test"),
        "unknown_authority": stranger.issue_cert(*hosts),
    }
    pems = {name: leaf.private_key_and_cert_chain_pem.bytes() for name, leaf in leaves.items()}
    incomplete = authority.create_child_ca().issue_cert(*hosts)
    pems["incomplete_chain"] = incomplete.private_key_pem.bytes() + incomplete.cert_chain_pems[0].bytes()
    pems["self_signed"] = stranger.private_key_pem.bytes() + stranger.cert_pem.bytes()
    pems["authority"] = authority.cert_pem.bytes()
    paths = {name: folder / f"{name}.pem" for name in pems}
    for name, path in paths.items():
        path.write_bytes(pems[name])
    return paths


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT_AT_ALL)


def _hang_up(_: socket.socket) -> None:
    """Do nothing, so that the connection is closed."""


def _read_and_reset(connection: socket.socket) -> None:
    connection.recv(_RECEIVED_BYTES)
    _reset(connection)


def _read_and_hang_up(connection: socket.socket) -> None:
    connection.recv(_RECEIVED_BYTES)


def _read_and_reply(words: bytes) -> Callable[[socket.socket], None]:
    def treat(connection: socket.socket) -> None:
        connection.recv(_RECEIVED_BYTES)
        connection.sendall(words)
        connection.shutdown(socket.SHUT_WR)
        # Closing with unread data would reset the connection, and lose the reply.
        while connection.recv(_RECEIVED_BYTES):
            pass

    return treat


_TRAPS: Mapping[str, Callable[[socket.socket], None]] = {
    "reset_on_accept": _reset,
    "closed_on_accept": _hang_up,
    "reset_on_request": _read_and_reset,
    "closed_on_request": _read_and_hang_up,
    "says_400": _read_and_reply(_BAD_REQUEST),
    "says_ssh": _read_and_reply(_BANNER),
    "says_alert": _read_and_reply(_FATAL_HANDSHAKE_FAILURE),
}


def fill_queue(listener: socket.socket, guests: ExitStack) -> None:
    """Fill a listener's queue, so that further clients wait for an answer to their first packet."""
    listener.listen(0)
    for _ in range(2):
        guest = guests.enter_context(socket.socket())
        guest.setblocking(False)
        with suppress(BlockingIOError):
            guest.connect(listener.getsockname())


@contextmanager
def black_holes(addresses: Sequence[str]) -> Iterator[int]:
    """Listen on one port of all these addresses, swallow what arrives, and give the port."""
    for _ in range(_BIND_ATTEMPTS):
        with ExitStack() as opened, suppress(_PortTakenError):
            listeners = _bind_all(addresses, opened)
            for listener in listeners:
                fill_queue(listener, opened)
            yield listeners[0].getsockname()[1]
            return
    raise _PortTakenError


class _PortTakenError(Exception):
    """A port that is free at one address is taken at another."""


def _bind_all(addresses: Sequence[str], opened: ExitStack) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    for address in addresses:
        listener = opened.enter_context(socket.socket())
        try:
            listener.bind((address, listeners[0].getsockname()[1] if listeners else 0))
        except OSError as error:
            raise _PortTakenError from error
        listeners.append(listener)
    return listeners


class Traps:
    """Ports with faults below HTTP: ``refuses``, ``ignores`` (its queue is full), ``silent``, and those of ``_TRAPS``.

    Each exists twice, for http and for https, so that an open circuit of one does not affect the other.
    """

    def __init__(self) -> None:
        self._open = ExitStack()
        self._ports: dict[tuple[str, str], int] = {}
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for scheme in ("http", "https"):
            self._bind("refuses", scheme)
            self._bind("silent", scheme).listen(_LONG_QUEUE)
            fill_queue(self._bind("ignores", scheme), self._open)
            for name, treat in _TRAPS.items():
                self._spring(self._bind(name, scheme), treat)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        for thread in self._threads:
            thread.join()

    def url(self, trap: str, scheme: str = "http") -> str:
        """Return a URL that leads into a trap."""
        return f"{scheme}://{_LOOPBACK}:{self._ports[trap, scheme]}/cat.jpg"

    def _bind(self, trap: str, scheme: str) -> socket.socket:
        listener = self._open.enter_context(socket.socket())
        listener.bind((_LOOPBACK, 0))
        self._ports[trap, scheme] = listener.getsockname()[1]
        return listener

    def _spring(self, listener: socket.socket, treat: Callable[[socket.socket], None]) -> None:
        listener.listen(_LONG_QUEUE)
        thread = threading.Thread(target=_serve, args=(listener, treat))
        thread.start()
        self._threads.append(thread)
        # Closing a socket does not wake a thread that waits for it; shutting it down does.
        self._open.callback(listener.shutdown, socket.SHUT_RDWR)


def _serve(listener: socket.socket, treat: Callable[[socket.socket], None]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.settimeout(_PATIENCE_S)
        with connection, suppress(OSError):
            treat(connection)


class Web:
    """An origin with every kind of certificate, and the traps: ``with Web(pictures, folder) as web: …``.

    Args:
        pictures: The folder with the pictures.
        folder: A folder for the certificates.

    Attributes:
        authority: The PEM file that a client must trust (``SSL_CERT_FILE``).
        origin: The origin; its listeners are ``http`` and the names of the certificates.
        traps: The ports with faults below HTTP.
    """

    def __init__(self, pictures: Path, folder: Path) -> None:
        certificates = dict(write_certificates(folder))
        self.authority = certificates.pop("authority")
        self.origin = Origin(pictures, certificates)
        self.traps = Traps()
        self._running = ExitStack()

    def __enter__(self) -> Self:
        self._running.enter_context(self.traps)
        self._running.enter_context(self.origin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()


@dataclass(frozen=True, slots=True)
class RequestedPicture:
    """A picture to request.

    Attributes:
        picture: Its name.
        query: The query of its URL, which no other test uses.
    """

    picture: str
    query: str


@dataclass(frozen=True, slots=True)
class Misbehaviour:
    """Something that can happen to an image on its way, and its outcome.

    Attributes:
        url: Makes the URL of a picture that is served so.
        expected: The failure kind, or None if the body must arrive; faults that only the codec can find arrive.
        status: The HTTP status of the failure.
        attempts: The number of attempts; None for as many as are allowed.
        delivers: Makes the body that must arrive from the picture.
        waits: Whether it ends only when a timeout expires.
    """

    url: Callable[[Web, RequestedPicture], str]
    expected: FailureKind | None = None
    status: int | None = None
    attempts: int | None = 1
    delivers: Callable[[bytes], bytes] = lambda picture: picture
    waits: bool = False


def _served(behaviour: str, host: str, listener: str = "http") -> Callable[[Web, RequestedPicture], str]:
    def url(web: Web, requested: RequestedPicture) -> str:
        return web.origin.url(behaviour, requested.picture, requested.query, host=host, listener=listener)

    return url


def _trapped(trap: str, scheme: str = "http") -> Callable[[Web, RequestedPicture], str]:
    return lambda web, _: web.traps.url(trap, scheme)


def _plain_to_tls(web: Web, requested: RequestedPicture) -> str:
    return web.origin.url("well", requested.picture, requested.query, listener="https").replace(
        "https://", "http://", 1
    )


def _with_credentials(web: Web, requested: RequestedPicture) -> str:
    url = web.origin.url("moved_to_another_host", requested.picture, requested.query)
    return url.replace("://", "://someone:secret@", 1)


def _row(behaviour: Behaviour, url: Callable[[Web, RequestedPicture], str]) -> Misbehaviour:
    left_to_the_codec = behaviour.expected in {FailureKind.CORRUPT, FailureKind.NOT_AN_IMAGE}
    return Misbehaviour(
        url,
        None if left_to_the_codec else behaviour.expected,
        behaviour.status,
        behaviour.attempts,
        behaviour.delivers,
        behaviour.waits,
    )


def _over_http() -> Iterator[tuple[str, Misbehaviour]]:
    certified = iter(_CERTIFIED_HOSTS[2:])
    for (name, behaviour), host in zip(BEHAVIOURS.items(), _HOSTS, strict=False):
        if name == "moved_to_tls":
            host = next(certified)  # noqa: PLW2901 - it leads to TLS, where the host must have a certificate
        listener = "http"
        if name == "moved_to_plain":
            host, listener = next(certified), "https"  # noqa: PLW2901 - the same
        yield name, _row(behaviour, _served(name, host, listener))


_ALSO_OVER_TLS = (
    *("well", "flaky", "chunked", "until_close", "moved", "missing", "slow", "gzip", "unasked", "stale"),
    *("cut", "broken_off", "closed", "reset", "reset_in_body", "empty", "garbage", "chunked_cut"),
    *("stuck", "stalled", "drip", "drip_head", "large", "endless", "gzip_bomb", "noai"),
)


def _over_tls() -> Iterator[tuple[str, Misbehaviour]]:
    for name, host in zip(_ALSO_OVER_TLS, _CERTIFIED_HOSTS[20:], strict=False):
        yield f"tls_{name}", _row(BEHAVIOURS[name], _served(name, host, "https"))


def _certified(certificate: str) -> Misbehaviour:
    return Misbehaviour(_served("well", _LOOPBACK, certificate), FailureKind.TLS)


def _fails(kind: FailureKind, trap: str, scheme: str = "http", *, waits: bool = False) -> Misbehaviour:
    attempts = 1 if kind is FailureKind.TLS else None
    return Misbehaviour(_trapped(trap, scheme), kind, attempts=attempts, waits=waits)


_BELOW_HTTP: Mapping[str, Misbehaviour] = {
    "tls_localhost": Misbehaviour(_served("well", "localhost", "https")),
    "tls_expired": _certified("expired"),
    "tls_not_yet": _certified("not_yet"),
    "tls_wrong_host": _certified("wrong_host"),
    "tls_unknown_authority": _certified("unknown_authority"),
    "tls_self_signed": _certified("self_signed"),
    "tls_incomplete_chain": _certified("incomplete_chain"),
    "tls_to_plain_port": _fails(FailureKind.TLS, "says_400", "https"),
    "tls_to_ssh": _fails(FailureKind.TLS, "says_ssh", "https"),
    "tls_alert": _fails(FailureKind.TLS, "says_alert", "https"),
    "tls_refused": _fails(FailureKind.CONNECT, "refuses", "https"),
    "tls_ignored": _fails(FailureKind.CONNECT, "ignores", "https", waits=True),
    "tls_silent": _fails(FailureKind.CONNECT, "silent", "https", waits=True),
    "tls_reset_on_accept": _fails(FailureKind.CONNECT, "reset_on_accept", "https"),
    "tls_closed_on_accept": _fails(FailureKind.CONNECT, "closed_on_accept", "https"),
    "tls_reset_in_handshake": _fails(FailureKind.CONNECT, "reset_on_request", "https"),
    "tls_closed_in_handshake": _fails(FailureKind.CONNECT, "closed_on_request", "https"),
    "plain_to_tls_port": Misbehaviour(_plain_to_tls, FailureKind.DISCONNECTED, attempts=None),
    "refused": _fails(FailureKind.CONNECT, "refuses"),
    "ignored": _fails(FailureKind.CONNECT, "ignores", waits=True),
    "silent": _fails(FailureKind.TIMEOUT, "silent", waits=True),
    # A connection reset on accept may count as established or not, so this one is reset once the request was sent.
    "reset_on_request": _fails(FailureKind.DISCONNECTED, "reset_on_request"),
    "closed_on_accept": _fails(FailureKind.DISCONNECTED, "closed_on_accept"),
    "plain_to_ssh": _fails(FailureKind.DISCONNECTED, "says_ssh"),
    "credentials": Misbehaviour(_with_credentials),
}

MISBEHAVIOURS: Mapping[str, Misbehaviour] = {**dict(_over_http()), **dict(_over_tls()), **_BELOW_HTTP}
"""Name → what happens to the image, and its outcome."""
