"""NameServer: a small DNS server on loopback that says what its script says, for tests and benchmarks.

Rules: real packets, no mocks. A thread of its own, or, as ``python nameserver.py``, a process of its own, so that
measuring a resolver does not measure this. Questions and answers are put together by hand: 13 µs each, where dnslib
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
_BUFFER_BYTES = 4 * 1024 * 1024  # a burst of thousands of questions is dropped by the script alone


class Type(IntEnum):
    """What is asked for."""

    A = 1
    CNAME = 5
    AAAA = 28


_ADDRESS_TYPES = (Type.A, Type.AAAA)


class Code(IntEnum):
    """How the server says it went (RFC 1035, 4.1.1)."""

    NOERROR = 0
    SERVFAIL = 2
    NXDOMAIN = 3
    REFUSED = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server says to a question.

    Attributes:
        addresses: IPv4 and IPv6 in one; a question gets those of its type, perhaps none (no data).
        ttl_s: How long it may be kept.
        code: Anything but NOERROR comes without records.
        alias: The name that these addresses really belong to (CNAME); "" for none.
        is_truncated: Over UDP only the news that it does not fit; over TCP the answer.
        is_silent: Nothing at all is said.
        is_silent_by_tcp: Nothing is said over TCP.
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

Says: TypeAlias = Answer | Sequence[Answer]
"""What is said each time, or one after another, counted for each type of question apart; the last one stays."""


class NameServer:
    """A DNS server on 127.0.0.1 and, where there is one, ::1; UDP and TCP; the same free port for all.

    Use it as ``with NameServer({"cat.example": Answer(("127.0.0.1",))}) as server: …``.

    Args:
        script: What to say of a name in lower case without the last dot. May be changed at any time.
        otherwise: The answer to any other name; None makes up an address in 127.0.0.0/8 from the name.
        drop_share: This share of all queries is lost, 0 to 1.
        seed: Of which are lost.
    """

    def __init__(
        self,
        script: Mapping[str, Says] | None = None,
        *,
        otherwise: Answer | None = NXDOMAIN,
        drop_share: float = 0.0,
        seed: int = 7,
    ) -> None:
        self.script = dict(script or {})
        self.script_by_type: dict[tuple[str, int], Says] = {}
        """The same for one type of question, which goes before the other."""
        self._otherwise = otherwise
        self._drop_share = drop_share
        self._chance = random.Random(seed)
        self._asked: Counter[tuple[str, int]] = Counter()
        self._asked_by_tcp: set[str] = set()
        self._dropped = 0
        self._selector = selectors.DefaultSelector()
        self._resources = ExitStack()
        self._thread = threading.Thread(target=self._serve, name="name server", daemon=True)
        self._conversations: list[tuple[threading.Thread, socket.socket]] = []
        self._port = 0
        self._has_v6 = False

    @property
    def address(self) -> str:
        """``127.0.0.1:PORT``."""
        return f"127.0.0.1:{self._port}"

    @property
    def address_v6(self) -> str | None:
        """``[::1]:PORT``, or None where this machine has no IPv6."""
        return f"[::1]:{self._port}" if self._has_v6 else None

    @property
    def dropped(self) -> int:
        """Queries that were lost so far."""
        return self._dropped

    @property
    def asked_by_tcp(self) -> frozenset[str]:
        """Names for which a query arrived over TCP."""
        return frozenset(self._asked_by_tcp)

    def asked(self, name: str, kind: Type | None = None) -> int:
        """How many queries for a name arrived, lost ones included: of one type, or the most of any type."""
        kinds = _ADDRESS_TYPES if kind is None else (kind,)
        return max(self._asked[name, each] for each in kinds)

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
            with suppress(OSError):  # it is over already
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
                except OSError:  # somebody else has this port for the other protocol
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
        with connection, suppress(OSError):  # the other side may leave at any time
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
        number = self._asked[name, kind]
        self._asked[name, kind] = number + 1
        if self._drop_share and self._chance.random() < self._drop_share:
            self._dropped += 1
            return None
        answer = self._answer(name, kind, number)
        if not is_udp:
            self._asked_by_tcp.add(name)
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
    """The name that begins there, in lower case, and where it ends."""
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
    """So many bytes, or none when the other side has closed."""
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
