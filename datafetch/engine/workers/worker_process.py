"""WorkerProcess: one worker, as the coordinator sees it.

Rules: a worker is written to only by ``send``, and what it has in hand is known from what was handed to it and what it
has reported, never by asking it.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple, Self

from datafetch.engine.feed import NextSample
from datafetch.engine.workers.channel import Channel
from datafetch.engine.workers.messages import (
    FromWorker,
    Samples,
    ShardFollows,
    ShardPublished,
    ToWorker,
    WorkerStatistics,
)
from datafetch.engine.workers.startup import LENGTH_BYTES, SampleToFetch, WorkerStartup, pickle_samples
from datafetch.errors import ResourceError
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.sample import Sample
from datafetch.process.allocator import without_blas_threads
from datafetch.process.child import child_command, start_failure

_MODULE = "datafetch.engine.workers.worker"
_FLUSH_BYTES = 4 * 1024 * 1024  # of samples, about
_END_TIMEOUT_S = 20.0  # for spools to be written, and codec processes to end, once the worker is told to
_ADVICE = (
    "free resources or raise the limit ('ulimit -a' shows them), or reduce --workers, and run the same command again"
)


class InHand(NamedTuple):
    """A sample that a worker has in hand.

    Attributes:
        next_sample: The sample, as the feed has handed it out.
        sample: The sample.
        ended: The lines of those of its images that had an outcome by then, by their number.
        jpeg_bytes: The size of those of them that had arrived.
    """

    next_sample: NextSample
    sample: Sample
    ended: Mapping[int, LedgerLine]
    jpeg_bytes: int

    def with_results(self, lines: Mapping[int, LedgerLine], jpeg_bytes: int) -> InHand:
        """The same, with further images that have an outcome, and the size of those of them that arrived."""
        return self._replace(ended={**self.ended, **lines}, jpeg_bytes=self.jpeg_bytes + jpeg_bytes)


class WorkerProcess:
    """A worker that has been started.

    Attributes:
        number: The number of the worker.
        pid: Its process.
        address: Where it listens for other workers; empty until it has said so.
        room: How many more samples it wants.
        in_hand: What was handed to it and has not ended, by the number of its shard and its position.
        is_ready: Whether it has said that it can process samples.
        has_ended_any: Whether a sample has ended in it.
        has_finished: Whether it has said that it has ended all samples.
        statistics: The last statistics that it has sent; None before the first.
    """

    def __init__(
        self, number: int, process: asyncio.subprocess.Process, channel: Channel[ToWorker, FromWorker]
    ) -> None:
        self.number = number
        self.pid = process.pid
        self.address = b""
        self.room = 0
        self.in_hand: dict[tuple[int, int], InHand] = {}
        self.is_ready = self.has_ended_any = self.has_finished = False
        self.statistics: WorkerStatistics | None = None
        self._process = process
        self._channel = channel
        self._unsent: list[SampleToFetch] = []
        self._unsent_bytes = 0
        self._shards: set[int] = set()

    @classmethod
    async def start(cls, startup: WorkerStartup) -> Self:
        """Start a worker.

        Raises:
            ResourceError: No process can be started.
        """
        pickled = pickle.dumps(startup)
        environment = dict(os.environ)
        without_blas_threads(environment)
        own_end, its_end = socket.socketpair()
        try:
            with its_end:
                process = await asyncio.create_subprocess_exec(
                    *child_command(_MODULE),
                    stdin=its_end.fileno(),
                    env=environment,
                    start_new_session=True,  # Ctrl-C in the terminal is handled by the coordinator alone
                )
            reader, writer = await asyncio.open_unix_connection(sock=own_end)
        except BaseException as error:
            own_end.close()
            if not isinstance(error, OSError):
                raise
            raise ResourceError(f"cannot start a worker process: {start_failure(error)}; {_ADVICE}") from error
        writer.writelines((len(pickled).to_bytes(LENGTH_BYTES, "little"), pickled))
        return cls(startup.worker, process, Channel(reader, writer, FromWorker))

    @property
    def returncode(self) -> int | None:
        """How it ended: a status, or a negative signal; None while it runs."""
        return self._process.returncode

    @property
    def got_nowhere(self) -> bool:
        """Whether no sample has ended in it although it had some, or it was not even ready for them."""
        return not self.has_ended_any and (bool(self.in_hand) or not self.is_ready)

    def send(self, message: ToWorker) -> None:
        """Send a message. Does nothing once the worker has ended."""
        self._channel.send(message)

    async def receive(self) -> list[FromWorker]:
        """Wait for messages; none means that the worker has ended."""
        return await self._channel.receive()

    def hand_out(self, shard: int, name: str, one: InHand) -> None:
        """Hand it a sample; ``flush`` sends it.

        Args:
            shard: The number of its shard.
            name: The name of that.
            one: The sample.
        """
        if shard not in self._shards:
            self._shards.add(shard)
            self.send(ShardFollows(shard, name))
        self.room -= 1
        self.in_hand[shard, one.sample.position] = one
        self._unsent.append(SampleToFetch(shard, one.sample, one.ended, one.jpeg_bytes))
        self._unsent_bytes += one.next_sample.held_bytes
        if self._unsent_bytes > _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send the samples that were handed out."""
        if self._unsent:
            self.send(Samples(pickle_samples(self._unsent)))
            self._unsent = []
            self._unsent_bytes = 0

    def close_shard(self, shard: int) -> None:
        """Tell it that a shard is published, if it had samples of it."""
        if shard in self._shards:
            self._shards.remove(shard)
            self.send(ShardPublished(shard))

    def close(self) -> None:
        """Close its connection, so that it ends."""
        self._channel.close()

    async def end(self) -> None:
        """Close its connection, and see to it that it ends."""
        self.close()
        try:
            async with asyncio.timeout(_END_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """Kill it unless it has ended; the kernel ends its children with it."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
