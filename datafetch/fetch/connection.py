"""One connection, and the responses that arrive over it one after another.

Theory of operation. A connection is idle, or a response is expected on it. ``expect_response`` leaves the idle state
just before a request is written; ``read_head`` waits for the head; ``body`` then collects the bytes. The connection is
reusable once the response is complete, and broken by any error and by any byte that arrives while nothing is expected.
A timer ends the response with TimeoutError when the server is silent for too long. It does not run while this side has
paused reading, since the silence is then our own.

Rules: reading is paused when the reader of the body falls behind. It is paused at the socket and not at the TLS layer
above it, which holds nothing: what it had buffered when the peer closes the connection would be lost.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from datafetch.fetch.receive_rate import Transfer
from datafetch.fetch.received_body import ReceivedBody
from datafetch.fetch.response_body import FramingTooLargeError, IncompleteBodyError
from datafetch.fetch.response_head import ProtocolError, ResponseHead
from datafetch.fetch.response_parser import ResponseParser
from datafetch.fetch.timers import Timer, Timers
from datafetch.fetch.urls import WebUrl
from datafetch.model.outcome import Permission


class ConnectionLostError(OSError):
    """The connection ended before the response did."""


class ResponseProtocol(asyncio.Protocol):
    """Receives the responses of one connection.

    Args:
        timers: Those of the event loop.

    Attributes:
        body: The body of the current response; None until its head has arrived.
        transport: The transport that requests are written to; None once the connection has ended.
    """

    def __init__(self, timers: Timers) -> None:
        loop = timers.loop
        self.body: ReceivedBody | None = None
        self.transport: asyncio.Transport | None = None
        self._closed: asyncio.Future[None] | None = None
        self._loop = loop
        self._socket: asyncio.Transport | None = None
        self._parser: ResponseParser | None = None
        self._head: asyncio.Future[ResponseHead] | None = None
        self._transfer: Transfer | None = None
        self._is_broken = False
        self._is_reading_paused = False
        self._stall_timeout_s = 0.0
        self._last_received_s = 0.0
        self._timer = Timer(timers)

    @property
    def is_reusable(self) -> bool:
        """Whether another request may be sent: the last response is complete, and nothing has arrived since."""
        parser = self._parser
        is_over = parser is None or parser.keeps_alive
        return is_over and not self._is_broken and self.transport is not None and not self.transport.is_closing()

    def expect_response(self, stall_timeout_s: float, transfer: Transfer | None = None) -> None:
        """Prepare for the response to a request that is about to be sent.

        Args:
            stall_timeout_s: How many seconds the server may be silent while the response is incomplete.
            transfer: Counts what is received, where that has a cap.
        """
        self._transfer = transfer
        self._parser = ResponseParser()
        self._head = self._loop.create_future()
        self.body = None
        self._stall_timeout_s = stall_timeout_s
        self._last_received_s = self._loop.time()
        self._start_stall_timer()

    def read_head(self) -> Awaitable[ResponseHead]:
        """Return what to await for the head of the response: a future, which costs less than a coroutine.

        Raises:
            ConnectionLostError: The connection ended before the head was complete.
            TimeoutError: The server is silent.
            ProtocolError: What arrives is no HTTP response.
        """
        assert self._head is not None, "expect_response comes first"
        return self._head

    def forget_response(self) -> None:
        """Expect nothing any more, and drop the references to the response, which form a cycle with this object."""
        self._timer.cancel()
        self._parser = self._head = self.body = self._transfer = None

    def wait_closed(self) -> Awaitable[None]:
        """Return what to await for the end of the connection."""
        if self._closed is None:
            self._closed = self._loop.create_future()
            if self._socket is None:
                self._closed.set_result(None)
        return self._closed

    def use_tls(self, transport: asyncio.Transport) -> None:
        """Write to a TLS transport from now on, which lies on top of the connection."""
        self.transport = transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport; the event loop calls this."""
        self.transport = self._socket = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse the bytes and pass on those of the body; the event loop calls this."""
        self._last_received_s = self._loop.time()
        if self._transfer is not None:
            self._transfer.received_bytes += len(data)
        parser = self._parser
        if parser is None or parser.is_complete:  # nothing is expected
            self._is_broken = True
            self._abort()
            return
        try:
            content = parser.feed(data)
        except (ProtocolError, FramingTooLargeError) as error:
            # A status counts, even if a body that can't be parsed came in the same read.
            self._start_body_if_head_is_complete(parser)
            self._fail(error)
            self._abort()
            return
        if self.body is None:
            self._start_body_if_head_is_complete(parser)
        if self.body is not None:
            self.body.feed(content)
            self._finish_body_if_complete(parser)

    def eof_received(self) -> None:
        """The server will send no more; ``connection_lost`` follows."""
        self._timer.cancel()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End the response, with an error unless it is complete; the event loop calls this."""
        self.transport = self._socket = None
        self._timer.cancel()
        parser = self._parser
        if parser is not None and not parser.is_complete:
            if exc is not None:
                lost = ConnectionLostError(f"the connection was lost: {exc}")
                lost.errno = getattr(exc, "errno", None)
                self._fail(lost)
            elif parser.head is None:
                self._fail(ConnectionLostError("the server closed the connection without an answer"))
            else:
                try:
                    parser.feed_eof()
                except IncompleteBodyError as error:
                    self._fail(error)
                else:
                    self._finish_body()
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)

    def _pause_reading(self) -> None:
        """Stop reading from the socket, so that flow control holds the server back."""
        if not self._is_reading_paused:
            self._is_reading_paused = True
            self._timer.cancel()  # the silence that follows is our own
            if self._socket is not None and not self._socket.is_closing():
                self._socket.pause_reading()

    def _resume_reading(self) -> None:
        if self._is_reading_paused:
            self._is_reading_paused = False
            if self._socket is not None and not self._socket.is_closing():
                self._socket.resume_reading()
                self._last_received_s = self._loop.time()
                if self._parser is not None and not self._parser.is_complete:
                    self._start_stall_timer()

    def _start_body_if_head_is_complete(self, parser: ResponseParser) -> None:
        head = parser.head
        if self.body is not None or head is None:
            return
        self.body = ReceivedBody(self._loop, self._pause_reading, self._resume_reading)
        if self._head is not None and not self._head.done():
            self._head.set_result(head)

    def _finish_body_if_complete(self, parser: ResponseParser) -> None:
        if parser.is_complete:
            self._finish_body()

    def _finish_body(self) -> None:
        self._timer.cancel()
        if self.body is not None:
            self.body.finish()

    def _fail(self, error: BaseException) -> None:
        """End the response with an error. Only the first error counts, because later ones follow from it."""
        self._is_broken = True
        self._timer.cancel()
        if self.body is not None:
            self.body.fail(error)
        elif self._head is not None and not self._head.done():
            self._head.set_exception(error)
            self._head.exception()  # marks it as retrieved, for the task that waited may have been cancelled

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _start_stall_timer(self) -> None:
        """Start the timer that ends the response after a silence.

        When it fires, it is set again for the rest of the time; restarting it after each read would cost more.
        """
        self._timer.start(self._last_received_s + self._stall_timeout_s, self._check_stall)

    def _check_stall(self) -> None:
        if self._loop.time() < self._last_received_s + self._stall_timeout_s:
            self._start_stall_timer()
        else:
            self._fail(TimeoutError(f"no data for {self._stall_timeout_s:g} s"))


class Endpoint(NamedTuple):
    """The far end of a connection. Requests to the same endpoint may use the same connection."""

    host: str
    port: int
    is_tls: bool
    proxy: WebUrl | None = None

    @classmethod
    def of(cls, url: WebUrl, proxy: WebUrl | None) -> Endpoint:
        """The endpoint for a URL."""
        return cls(url.host, url.port, url.scheme == "https", proxy)


@dataclass(slots=True, eq=False)
class Connection:
    """An open connection, the protocol that receives its responses, and the permissions that making it took."""

    endpoint: Endpoint
    transport: asyncio.Transport
    protocol: ResponseProtocol
    permitted: frozenset[Permission] = frozenset()
    _unread: select.poll | None = field(default=None, init=False, repr=False)  # made when first needed, and kept

    @property
    def has_unread(self) -> bool:
        """Whether data or the end of the connection has arrived that the event loop has not read yet."""
        if self._unread is None:
            self._unread = select.poll()
            self._unread.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(self._unread.poll(0))

    def drop(self) -> None:
        """Close the connection at once, and discard whatever the server still sends."""
        self.protocol.forget_response()
        self.transport.abort()
