"""NameServer: a small DNS server on loopback that answers from a script, for tests and benchmarks.

Rules: real packets, no mocks. It runs in a thread of its own, or, as ``python nameserver.py``, in a process of its own,
so that measuring a resolver does not measure this. Queries and responses are packed by hand: 13 µs each, where dnslib
takes 83.
"""

from __future__ import annotations

import argparse
import random
import selectors
import signal
import socket
import struct
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from ipaddress import IPv4Address, ip_address
from types import TracebackType
from typing import Self, TypeAlias

_HEADER = struct.Struct("!HHHHHH")  # id, flags, questions, answers, authorities, additionals
_RECORD = struct.Struct("!HHIH")  # type, class, TTL, length of what follows
_LENGTH = struct.Struct("!H")
_IS_RESPONSE = 0x8180  # a response, recursion desired and available
_IS_TRUNCATED = 0x0200
_QUESTION_NAME = b"\xc0\x0c"  # a pointer to the name in the question
_INTERNET = 1
_MAX_PACKET_BYTES = 4096
_PATIENCE_S = 2.0
_BIND_ATTEMPTS = 20
_BUFFER_BYTES = 4 * 1024 * 1024  # so that only the script drops queries of a burst of thousands


class Type(IntEnum):
    """The type of a query."""

    A = 1
    NS = 2
    CNAME = 5
    AAAA = 28


_ADDRESS_TYPES = (Type.A, Type.AAAA)


class Code(IntEnum):
    """The response code of an answer (RFC 1035, 4.1.1)."""

    NOERROR = 0
    SERVFAIL = 2
    NXDOMAIN = 3
    REFUSED = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's answer to a query.

    Attributes:
        addresses: IPv4 and IPv6 together; a query gets those of its type, perhaps none (no data).
        ttl_s: How long the answer may be cached.
        code: An answer with any other code than NOERROR has no records.
        alias: The name that these addresses really belong to (CNAME); "" for none.
        is_truncated: Over UDP, only the truncation flag is sent; over TCP, the answer.
        is_silent: The server sends no answer.
        is_silent_by_tcp: The server sends no answer over TCP.
    """

    addresses: tuple[str, ...] = ()
    ttl_s: int = 60
    code: Code = Code.NOERROR
    alias: str = ""
    is_truncated: bool = False
    is_silent: bool = False
    is_silent_by_tcp: bool = False


NXDOMAIN = Answer(code=Code.NXDOMAIN)
SERVFAIL = Answer(code=Code.SERVFAIL)
REFUSED = Answer(code=Code.REFUSED)
NO_DATA = Answer()
SILENCE = Answer(is_silent=True)
ROOT_ZONE = ""
"""The name under which a script answers for the root zone."""

Answers: TypeAlias = Answer | Sequence[Answer]
"""One answer for all queries, or successive ones, counted separately for each type; the last one repeats."""


class NameServer:
    """A DNS server on 127.0.0.1 and, if there is IPv6, on ::1; over UDP and TCP, all on the same free port.

    Use it as ``with NameServer({"cat.example": Answer(("127.0.0.1",))}) as server: …``.

    Args:
        script: The answers by name, in lower case without the final dot. May be changed at any time.
        otherwise: The answer for any other name; None derives an address in 127.0.0.0/8 from the name.
        drop_share: The share of queries that are dropped, 0 to 1.
        seed: Determines which queries are dropped.
    """

    def __init__(
        self,
        script: Mapping[str, Answers] | None = None,
        *,
        otherwise: Answer | None = NXDOMAIN,
        drop_share: float = 0.0,
        seed: int = 7,
    ) -> None:
        self.script = dict(script or {})
        self.script_by_type: dict[tuple[str, int], Answers] = {}
        """The answers for one type of query, which take precedence over ``script``."""
        self._otherwise = otherwise
        self._drop_share = drop_share
        self._chance = random.Random(seed)
        self._query_counts: Counter[tuple[str, int]] = Counter()
        self._names_by_tcp: set[str] = set()
        self._dropped = 0
        self._selector = selectors.DefaultSelector()
        self._resources = ExitStack()
        self._thread = threading.Thread(target=self._serve, name="name server", daemon=True)
        self._conversations: list[tuple[threading.Thread, socket.socket]] = []
        self._port = 0
        self._has_v6 = False

    @property
    def address(self) -> str:
        """The server's IPv4 address, as ``127.0.0.1:PORT``."""
        return f"127.0.0.1:{self._port}"

    @property
    def address_v6(self) -> str | None:
        """The server's IPv6 address, as ``[::1]:PORT``, or None if this machine has no IPv6."""
        return f"[::1]:{self._port}" if self._has_v6 else None

    @property
    def dropped(self) -> int:
        """The number of queries dropped so far."""
        return self._dropped

    @property
    def names_queried_by_tcp(self) -> frozenset[str]:
        """The names for which a query arrived over TCP."""
        return frozenset(self._names_by_tcp)

    def query_count(self, name: str, kind: Type | None = None) -> int:
        """Return the number of queries for a name, dropped ones included: of one type, or the maximum of all types."""
        kinds = _ADDRESS_TYPES if kind is None else (kind,)
        return max(self._query_counts[name, each] for each in kinds)

    def __enter__(self) -> Self:
        self._bind()
        self._wake, self._waker = (self._resources.enter_context(end) for end in socket.socketpair())
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waker.send(b".")
        self._thread.join()
        for thread, connection in self._conversations:
            with suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()
        self._selector.close()
        self._resources.close()

    def _bind(self) -> None:
        for _ in range(_BIND_ATTEMPTS):
            with ExitStack() as sockets:
                udp = sockets.enter_context(_listen(socket.AF_INET, socket.SOCK_DGRAM, 0))
                port = int(udp.getsockname()[1])
                try:
                    listening = [udp, sockets.enter_context(_listen(socket.AF_INET, socket.SOCK_STREAM, port))]
                    if _has_ipv6_loopback():
                        listening += [
                            sockets.enter_context(_listen(socket.AF_INET6, kind, port))
                            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)
                        ]
                        self._has_v6 = True
                except OSError:  # the port is taken for the other protocol
                    continue
                for each in listening:
                    self._selector.register(each, selectors.EVENT_READ)
                self._port = port
                self._resources.push(sockets.pop_all())
                return
        raise OSError("no port is free for both UDP and TCP")

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                ready = key.fileobj
                assert isinstance(ready, socket.socket), "only sockets are registered"
                if ready is self._wake:
                    return
                if ready.type == socket.SOCK_DGRAM:
                    self._answer_datagrams(ready)
                else:
                    self._answer_connection(ready)

    def _answer_datagrams(self, ready: socket.socket) -> None:
        while True:
            try:
                question, sender = ready.recvfrom(_MAX_PACKET_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            reply = self._reply(question, is_udp=True)
            if reply is not None:
                ready.sendto(reply, sender)

    def _answer_connection(self, listening: socket.socket) -> None:
        connection, _ = listening.accept()
        thread = threading.Thread(target=self._converse, args=(connection,), name="name server, TCP", daemon=True)
        self._conversations.append((thread, connection))
        thread.start()

    def _converse(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the other side may close the connection at any time
            connection.settimeout(_PATIENCE_S)
            while prefix := _receive(connection, _LENGTH.size):
                question = _receive(connection, _LENGTH.unpack(prefix)[0])
                reply = self._reply(question, is_udp=False)
                if reply is not None:
                    connection.sendall(_LENGTH.pack(len(reply)) + reply)

    def _reply(self, question: bytes, *, is_udp: bool) -> bytes | None:
        identity, _, _, _, _, _ = _HEADER.unpack_from(question)
        name, end = _read_name(question, _HEADER.size)
        kind = _LENGTH.unpack_from(question, end)[0]
        number = self._query_counts[name, kind]
        self._query_counts[name, kind] = number + 1
        if self._drop_share and self._chance.random() < self._drop_share:
            self._dropped += 1
            return None
        answer = self._answer(name, kind, number)
        if not is_udp:
            self._names_by_tcp.add(name)
        if answer.is_silent or (answer.is_silent_by_tcp and not is_udp):
            return None
        is_short = is_udp and answer.is_truncated
        records = () if is_short or answer.code is not Code.NOERROR else _records(answer, kind)
        flags = _IS_RESPONSE | answer.code | (_IS_TRUNCATED if is_short else 0)
        header = _HEADER.pack(identity, flags, 1, len(records), 0, 0)
        return header + question[_HEADER.size : end + 4] + b"".join(records)

    def _answer(self, name: str, kind: int, number: int) -> Answer:
        answer = self.script_by_type.get((name, kind)) or self.script.get(name, self._otherwise)
        if answer is None:
            return Answer((str(IPv4Address(0x7F000000 | (zlib.crc32(name.encode()) % 0xFFFFFD + 1))),))
        if isinstance(answer, Answer):
            return answer
        return answer[min(number, len(answer) - 1)]


@lru_cache(maxsize=1000)
def _records(answer: Answer, kind: int) -> tuple[bytes, ...]:
    owner = _QUESTION_NAME
    records: list[bytes] = []
    if answer.alias:
        target = _write_name(answer.alias)
        records.append(_record(owner, Type.CNAME, answer.ttl_s, target))
        owner = target
    for text in answer.addresses:
        address = ip_address(text)
        if kind == (Type.A if address.version == 4 else Type.AAAA):
            records.append(_record(owner, kind, answer.ttl_s, address.packed))
    return tuple(records)


def _record(owner: bytes, kind: int, ttl_s: int, content: bytes) -> bytes:
    return owner + _RECORD.pack(kind, _INTERNET, ttl_s, len(content)) + content


def _read_name(packet: bytes, start: int) -> tuple[str, int]:
    """Read the name at an offset, in lower case, and return it with the offset of its end."""
    labels = []
    while length := packet[start]:
        labels.append(packet[start + 1 : start + 1 + length])
        start += 1 + length
    return b".".join(labels).decode("latin-1").lower(), start + 1


def _write_name(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def _listen(family: socket.AddressFamily, kind: socket.SocketKind, port: int) -> socket.socket:
    listening = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_DGRAM:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        listening.bind(("127.0.0.1" if family == socket.AF_INET else "::1", port))
        if kind == socket.SOCK_STREAM:
            listening.listen()
    except OSError:
        listening.close()
        raise
    return listening


def _has_ipv6_loopback() -> bool:
    try:
        _listen(socket.AF_INET6, socket.SOCK_DGRAM, 0).close()
    except OSError:
        return False
    return True


def _receive(connection: socket.socket, wanted_bytes: int) -> bytes:
    """Receive this many bytes, or none if the other side has closed the connection."""
    received = b""
    while len(received) < wanted_bytes:
        try:
            more = connection.recv(wanted_bytes - len(received))
        except OSError:
            return b""
        if not more:
            return b""
        received += more
    return received


def main() -> int:
    """Serve made-up addresses for any name until standard input ends; the first line printed is the address."""
    parser = argparse.ArgumentParser(description=(main.__doc__ or "").partition("\n")[0])
    parser.add_argument("--drop-share", type=float, default=0.0, help="share of all queries that is lost, 0 to 1")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with NameServer(otherwise=None, drop_share=arguments.drop_share) as server:
        sys.stdout.write(f"{server.address}\n")
        sys.stdout.flush()
        sys.stdin.read()
        sys.stdout.write(f"{server.dropped}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
