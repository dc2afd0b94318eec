"""Turns a response into a body or a failure, by its status, its headers and its bytes.

Rules: a task waits for no more of a body than is wanted and memory has been reserved for. What its connection receives
beyond that is bounded (``received_body``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http import HTTPStatus

from datafetch.fetch.client import Response
from datafetch.fetch.content_encoding import BodyTooLargeError, decode
from datafetch.fetch.deadline import Deadline
from datafetch.fetch.headers import content_codings, opt_out, partial_content
from datafetch.fetch.hop import Hop
from datafetch.fetch.memory import Reservation
from datafetch.fetch.policy import DEFAULT_MAX_BODY_BYTES, FetchPolicy, OptOut
from datafetch.model.outcome import Body, Failure, FailureKind, Fetched, PartialContent, Permission

_INITIAL_RESERVATION_BYTES = 256 * 1024  # most images are smaller; for a larger one it doubles as the bytes arrive
_DECODERS = 2


class BodyReader:
    """Reads the bodies of responses.

    Args:
        policy: Says which bodies may be taken.
        count: Called with how many more bytes have arrived.
    """

    def __init__(self, policy: FetchPolicy, count: Callable[[int], None]) -> None:
        self._policy = policy
        self._count = count
        # Threads of its own: the loop's default threads write the spool, and a bomb takes some tenths of a second.
        self._decoder = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")

    def close(self) -> None:
        """Release the threads."""
        self._decoder.shutdown(wait=False, cancel_futures=True)

    async def read(self, response: Response, hop: Hop) -> Fetched:
        """Read one response.

        Args:
            response: Its head has arrived; its body may still be on its way.
            hop: The hop that it answers. The deadline is running, and is paused while there is no memory for the body,
                or reading more would exceed the cap on the rate.

        Returns:
            The body, or the failure that ``Fetcher`` names for this response.

        Raises:
            CodingError: The body's compression is damaged.
        """
        final_url = response.url.href
        if response.status != hop.request.expected_status:
            return Failure(FailureKind.HTTP_STATUS, _status_detail(response), response.status, final_url=final_url)
        part = partial_content(response.headers, hop.request.byte_range)
        failure = self._rejection(response, hop, part)
        if failure is None:
            limit_bytes = self._policy.max_body_bytes if part is None else part.size_bytes
            try:
                content = await self._read_body(response, hop, limit_bytes)
            except BodyTooLargeError as error:
                failure = Failure(FailureKind.TOO_LARGE, str(error))
            else:
                failure = _incomplete(content, part)
                if failure is None:
                    return Body(content, final_url, part=part)
        return replace(failure, status=response.status, final_url=final_url)

    def _rejection(self, response: Response, hop: Hop, part: PartialContent | None) -> Failure | None:
        """The failure that the headers alone amount to, if they do."""
        if part is None and hop.request.byte_range is not None:
            return Failure(FailureKind.HTTP_STATUS, "HTTP 206 without a Content-Range that matches the requested range")
        if part is not None and content_codings(response.headers):
            return Failure(FailureKind.HTTP_STATUS, "HTTP 206 with a content coding: a part alone can't be decoded")
        directive = opt_out(response.headers)
        if directive is not None:
            if self._policy.opt_out == OptOut.OBEY:
                return Failure(FailureKind.OPTED_OUT, f"X-Robots-Tag: {directive}")
            hop.deadline.permitted.add(Permission.OPT_OUT)
        max_bytes = self._policy.max_body_bytes
        if part is not None and part.size_bytes > max_bytes:
            return Failure(FailureKind.TOO_LARGE, f"Content-Range has over {max_bytes:,} bytes")
        if (response.content_length or 0) > max_bytes:
            return Failure(FailureKind.TOO_LARGE, f"Content-Length is over {max_bytes:,} bytes")
        return None

    async def _read_body(self, response: Response, hop: Hop, limit_bytes: int) -> bytes:
        body, memory, deadline = response.body, hop.memory, hop.deadline
        expected_bytes = limit_bytes if response.content_length is None else min(response.content_length, limit_bytes)
        counted_bytes = 0
        try:
            while body.size_bytes <= limit_bytes and not body.is_complete:
                if hop.transfer is not None and hop.transfer.owes:
                    await deadline.paused(hop.transfer.pay())
                if body.size_bytes >= memory.held_bytes:
                    size_bytes = min(max(2 * body.size_bytes, _INITIAL_RESERVATION_BYTES), expected_bytes)
                    await _reserve(size_bytes, memory, deadline)
                # With a cap on the rate wait for any more bytes, for they may have to be paid for.
                await body.wait(memory.held_bytes if hop.transfer is None else body.size_bytes)
                self._count(body.size_bytes - counted_bytes)
                counted_bytes = body.size_bytes
        finally:
            self._count(body.size_bytes - counted_bytes)
        if body.size_bytes > limit_bytes:
            raise BodyTooLargeError(f"over {limit_bytes:,} bytes")
        await _reserve(body.size_bytes, memory, deadline)  # it may have arrived together with its head
        received_bytes, content = body.size_bytes, body.content()
        codings = content_codings(response.headers)
        if codings:
            await _reserve(len(content) + limit_bytes, memory, deadline)
            decoding = asyncio.get_running_loop().run_in_executor(self._decoder, decode, content, codings, limit_bytes)
            content = await deadline.paused(decoding)
        if max(received_bytes, len(content)) > DEFAULT_MAX_BODY_BYTES:
            deadline.permitted.add(Permission.MAX_BODY)
        memory.shrink(len(content))
        return content


def _status_detail(response: Response) -> str:
    if response.status == HTTPStatus.OK:
        return "HTTP 200: the whole file instead of the requested range"
    return f"HTTP {response.status}"


def _incomplete(content: bytes, part: PartialContent | None) -> Failure | None:
    """The failure that a body which is too short amounts to."""
    if part is not None and len(content) < part.size_bytes:
        return Failure(FailureKind.DISCONNECTED, "the body ended before all bytes of the range had arrived")
    return None if content else Failure(FailureKind.EMPTY, "200 without a body")


async def _reserve(size_bytes: int, memory: Reservation, deadline: Deadline) -> None:
    if not memory.try_grow(size_bytes):
        await deadline.paused(memory.grow(size_bytes))
