"""What clients of datafetch have in common, for ``subprocess_client``: uvloop, and the settings of the command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import uvloop

from benchmarks.fetch.subprocess_client import Tally, Workload, client_main
from datafetch.process.allocator import collect_garbage_rarely, return_freed_memory


def uvloop_main(drive: Callable[[Workload], Coroutine[None, None, Tally]]) -> None:
    """Fetch the workload under uvloop, with the settings of the command."""

    def fetch_all(workload: Workload) -> Tally:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(drive(workload))

    return_freed_memory()
    collect_garbage_rarely()
    client_main(fetch_all)
