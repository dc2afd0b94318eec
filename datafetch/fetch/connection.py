"""One connection, and the responses that come through it one after another.

A connection is idle, or a response is under way on it: ``expect_response`` begins one, ``read_head`` waits for its
head, and ``body`` has its bytes. What arrives on an idle connection ends it.

Rules: reading pauses when the body's reader falls behind. It is the socket that pauses and not TLS on top of it, for
uvloop's TLS throws away what it holds back when the peer closes the connection; so nothing is held back there.
"""

from __future__ import annotations

import asyncio
import select
from dataclasses import dataclass
from typing import cast

from aiohttp import ClientOSError, ClientPayloadError, ServerDisconnectedError, StreamReader
from aiohttp.base_protocol import BaseProtocol
from yarl import URL

from datafetch.fetch.response_parser import (
    FramingTooLargeError,
    IncompleteBodyError,
    ProtocolError,
    ResponseHead,
    ResponseParser,
)
from datafetch.model.outcome import Permission

_READ_BUFFER_BYTES = 128 * 1024  # reading pauses at twice that: after most photographs, and before a thousand add up


class ResponseProtocol(asyncio.Protocol):
    """Takes in what comes through a connection.

    Attributes:
        body: Of the response under way, once its head is there.
        transport: What requests are written to; None once the connection has ended.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.body: StreamReader | None = None
        self.transport: asyncio.Transport | None = None
        self.closed = loop.create_future()
        self._loop = loop
        self._socket: asyncio.Transport | None = None
        self._parser: ResponseParser | None = None
        self._head: asyncio.Future[ResponseHead] | None = None
        self._is_broken = False
        self._reading_paused = False  # StreamReader looks here
        self._stall_timeout_s = 0.0
        self._last_received_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection; StreamReader asks."""
        return self.transport is not None

    @property
    def is_reusable(self) -> bool:
        """Whether another request may be sent: the last response is over, and nothing has come since."""
        parser = self._parser
        is_over = parser is None or parser.keeps_alive
        return is_over and not self._is_broken and self.transport is not None and not self.transport.is_closing()

    def expect_response(self, stall_timeout_s: float) -> None:
        """Get ready for the response to a request that is about to be sent.

        Args:
            stall_timeout_s: How long the server may be silent before the end of it.
        """
        self._parser = ResponseParser()
        self._head = self._loop.create_future()
        self.body = None
        self._stall_timeout_s = stall_timeout_s
        self._last_received_s = self._loop.time()
        self._start_stall_timer()

    async def read_head(self) -> ResponseHead:
        """Wait for the head of the response.

        Raises:
            ServerDisconnectedError: The server closed the connection before.
            ClientOSError: It was reset before.
            TimeoutError: The server is silent.
            ProtocolError: What comes is no response.
        """
        assert self._head is not None, "expect_response comes first"
        return await self._head

    def forget_response(self) -> None:
        """What comes next belongs to no response, and what came is no longer held: it holds this protocol in turn."""
        self._cancel_stall_timer()
        self._parser = self._head = self.body = None

    def use_tls(self, transport: asyncio.Transport) -> None:
        """Go on over TLS, which lies on top of the connection that there is."""
        self.transport = transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self.transport = self._socket = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._last_received_s = self._loop.time()
        parser = self._parser
        if parser is None or parser.is_complete:  # nobody has asked for anything
            self._is_broken = True
            self._abort()
            return
        try:
            content = parser.feed(data)
        except (ProtocolError, FramingTooLargeError) as error:
            self._start_body_if_head_is_complete(
                parser
            )  # a status is one, however much of the body came in the same read
            self._fail(error)
            self._abort()
            return
        self._start_body_if_head_is_complete(parser)
        if self.body is not None:
            self.body.feed_data(content)
            self._finish_body_if_complete(parser)

    def eof_received(self) -> None:
        """The server will send no more; ``connection_lost`` follows."""
        self._cancel_stall_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        """See whether the response is whole without what will never come."""
        self.transport = self._socket = None
        self._cancel_stall_timer()
        parser = self._parser
        if parser is not None and not parser.is_complete:
            if parser.head is None:
                reason = str(exc) if exc else "Server disconnected"
                self._fail(ServerDisconnectedError(reason) if exc is None else ClientOSError(*exc.args))
            elif exc is not None:
                self._fail(ClientPayloadError(f"the connection was lost: {exc}"))
            else:
                try:
                    parser.feed_eof()
                except IncompleteBodyError as error:
                    self._fail(ClientPayloadError(str(error)))
                else:
                    self._finish_body()
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_reading(self) -> None:
        """Let what is not read yet stay in the network; StreamReader asks for it."""
        if not self._reading_paused:
            self._reading_paused = True
            self._cancel_stall_timer()  # the silence that follows is ours
            if self._socket is not None and not self._socket.is_closing():
                self._socket.pause_reading()

    def resume_reading(self, *, resume_parser: bool = True) -> None:
        """Go on reading; StreamReader asks for it."""
        del resume_parser  # nothing is held back
        if self._reading_paused:
            self._reading_paused = False
            if self._socket is not None and not self._socket.is_closing():
                self._socket.resume_reading()
                self._last_received_s = self._loop.time()
                if self._parser is not None and not self._parser.is_complete:
                    self._start_stall_timer()

    def _start_body_if_head_is_complete(self, parser: ResponseParser) -> None:
        head = parser.head
        if self.body is not None or head is None:
            return
        self.body = StreamReader(cast("BaseProtocol", self), _READ_BUFFER_BYTES, loop=self._loop)
        if self._head is not None and not self._head.done():
            self._head.set_result(head)

    def _finish_body_if_complete(self, parser: ResponseParser) -> None:
        if parser.is_complete:
            self._finish_body()

    def _finish_body(self) -> None:
        self._cancel_stall_timer()
        if self.body is not None:
            self.body.feed_eof()

    def _fail(self, error: BaseException) -> None:
        """End the response with an error. The first one counts, because later ones follow from it."""
        self._is_broken = True
        self._cancel_stall_timer()
        if self.body is not None:
            if self.body.exception() is None:
                self.body.set_exception(error)
        elif self._head is not None and not self._head.done():
            self._head.set_exception(error)
            self._head.exception()  # it may be that nobody waits any more

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _start_stall_timer(self) -> None:
        """See to it that a silence ends the response. One timer looks again and again, instead of one for each read."""
        self._cancel_stall_timer()
        self._timer = self._loop.call_at(self._last_received_s + self._stall_timeout_s, self._check_stall)

    def _check_stall(self) -> None:
        self._timer = None
        if self._loop.time() < self._last_received_s + self._stall_timeout_s:
            self._start_stall_timer()
        else:
            self._fail(TimeoutError(f"nothing came for {self._stall_timeout_s:g} s"))

    def _cancel_stall_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a connection leads: two requests with the same one may share it."""

    host: str
    port: int
    is_tls: bool
    proxy: URL | None = None

    @classmethod
    def of(cls, url: URL, proxy: URL | None) -> Endpoint:
        """The endpoint for a URL."""
        return cls(url.raw_host or "", url.port or 0, url.scheme == "https", proxy)


@dataclass(slots=True, eq=False)
class Connection:
    """A connection, what takes in its responses, and which permissions it took to make it."""

    endpoint: Endpoint
    transport: asyncio.Transport
    protocol: ResponseProtocol
    permitted: frozenset[Permission] = frozenset()

    @property
    def has_unread(self) -> bool:
        """Whether something has come, or the end, that the loop had no time to read yet."""
        unread = select.poll()
        unread.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(unread.poll(0))

    def drop(self) -> None:
        """End it at once. Closed politely, a TLS connection is read on for 30 s by uvloop (MagicStack/uvloop#471)."""
        self.protocol.forget_response()
        self.transport.abort()
