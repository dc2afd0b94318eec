"""A response to a body or a failure: its status, its opinion on being used, its size, its bytes.

Rules: nothing is read that is not wanted, and no more of it than there is room for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO

from datafetch.fetch.client import Response
from datafetch.fetch.content_encoding import BodyTooLargeError, decode
from datafetch.fetch.deadline import Deadline
from datafetch.fetch.headers import content_codings, opt_out
from datafetch.fetch.memory import Reservation
from datafetch.fetch.policy import DEFAULT_MAX_BODY_BYTES, FetchPolicy, OptOut
from datafetch.model.outcome import HTTP_OK, Body, Failure, FailureKind, Fetched, Permission

_FIRST_HOLD_BYTES = 256 * 1024  # most images are smaller; a larger one's share doubles as it proves to be there
_DECODERS = 2


class Receiver:
    """Takes responses in.

    Args:
        policy: What may be taken.
        count: Told of each piece that arrives, in bytes.
    """

    def __init__(self, policy: FetchPolicy, count: Callable[[int], None]) -> None:
        self._policy = policy
        self._count = count
        # Of its own: the shared threads write the spool, and a bomb takes some tenths of a second.
        self._decoder = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")

    def close(self) -> None:
        """Let go of the threads."""
        self._decoder.shutdown(wait=False, cancel_futures=True)

    async def receive(self, response: Response, memory: Reservation, watch: Deadline) -> Fetched:
        """Take one response in.

        Args:
            response: Its headers have come, its body may be under way.
            memory: What the body is held against, from before its bytes are read.
            watch: Running; it stands still while there is no room.

        Raises:
            CodingError: The body's compression is damaged.
        """
        final_url = str(response.url)
        if response.status != HTTP_OK:
            return Failure(FailureKind.HTTP_STATUS, f"HTTP {response.status}", response.status, final_url=final_url)
        failure = self._refusal(response, watch)
        if failure is None:
            try:
                content = await self._read(response, memory, watch)
            except BodyTooLargeError as error:
                failure = Failure(FailureKind.TOO_LARGE, str(error))
            else:
                if content:
                    return Body(content, final_url)
                failure = Failure(FailureKind.EMPTY, "200 without a body")
        return replace(failure, status=HTTP_OK, final_url=final_url)

    def _refusal(self, response: Response, watch: Deadline) -> Failure | None:
        """What the headers alone say against it."""
        directive = opt_out(response.headers)
        if directive is not None:
            if self._policy.opt_out == OptOut.OBEY:
                return Failure(FailureKind.OPTED_OUT, f"X-Robots-Tag: {directive}")
            watch.permitted.add(Permission.OPT_OUT)
        if (response.content_length or 0) > self._policy.max_body_bytes:
            return Failure(FailureKind.TOO_LARGE, f"Content-Length is {response.content_length} bytes")
        return None

    async def _read(self, response: Response, memory: Reservation, watch: Deadline) -> bytes:
        reader, limit_bytes = response.body, self._policy.max_body_bytes
        most_bytes = limit_bytes if response.content_length is None else response.content_length
        buffer = BytesIO()  # grows in place and gives its bytes away uncopied; joined chunks would be there twice
        received_bytes = 0
        while not reader.at_eof():
            if received_bytes >= memory.held_bytes:
                await _hold(min(max(2 * received_bytes, _FIRST_HOLD_BYTES), most_bytes), memory, watch)
            chunk = await reader.readany()
            received_bytes += len(chunk)
            self._count(len(chunk))
            if received_bytes > limit_bytes:
                raise BodyTooLargeError(f"over {limit_bytes} bytes")
            buffer.write(chunk)
        content = buffer.getvalue()
        codings = content_codings(response.headers)
        if codings:
            await _hold(len(content) + limit_bytes, memory, watch)
            decoding = asyncio.get_running_loop().run_in_executor(self._decoder, decode, content, codings, limit_bytes)
            content = await watch.paused(decoding)
        if max(received_bytes, len(content)) > DEFAULT_MAX_BODY_BYTES:
            watch.permitted.add(Permission.MAX_BODY)
        memory.shrink(len(content))
        return content


async def _hold(size_bytes: int, memory: Reservation, watch: Deadline) -> None:
    if not memory.grow_at_once(size_bytes):
        await watch.paused(memory.grow(size_bytes))
