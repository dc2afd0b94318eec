"""opened_meanwhile(): a transcoder that is opened while the first images are fetched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress

from datafetch.model.image_interfaces import ImageTranscoder
from datafetch.model.outcome import Failure, Fetched, Outcome


@asynccontextmanager
async def opened_meanwhile(
    context: AbstractAsyncContextManager[ImageTranscoder],
) -> AsyncIterator[ImageTranscoder]:
    """Open a transcoder while the first images are fetched, because its processes take a third of a second to start.

    Images that arrive earlier wait. If it can't be opened, they raise its error, and otherwise the end of the context.
    """
    async with AsyncExitStack() as resources:
        opening = asyncio.create_task(resources.enter_async_context(context))

        async def transcode(body: Fetched | bytes) -> Outcome:
            if isinstance(body, Failure):
                return body
            transcoder = opening.result() if opening.done() else await asyncio.shield(opening)
            return await transcoder(body)

        try:
            yield transcode
        except BaseException:
            opening.cancel()
            while not opening.done():
                with suppress(asyncio.CancelledError):  # further cancellations wait like the first
                    await asyncio.wait([opening])
            if not opening.cancelled():
                opening.exception()  # marks it as retrieved: what ended the context says more
            raise
        await opening
