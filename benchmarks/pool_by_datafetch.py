"""An errand done by datafetch's own pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pool_errand import PoolErrand, Transcode, run

from datafetch.transcode import Transcoder


def main() -> None:
    """Do the errand."""
    run({"datafetch": _open})


@asynccontextmanager
async def _open(errand: PoolErrand) -> AsyncIterator[Transcode]:
    async with Transcoder(errand.spec, processes=errand.processes, codec=errand.codec) as transcode:
        yield transcode
