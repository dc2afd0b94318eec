"""Jobs with the real codec and the real commit in threads of this process, for tests that are not about processes.

Starting a fork server, and a process for each shard's commit, takes longer than the rest of a small job. What those
processes add (channels, crashes, pickled requests) has tests of its own, and test_fetch_scripts.py runs each dataset
with all of its processes.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import orjson

import datafetch
from datafetch import Job
from datafetch.engine.session import Backends
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.outcome import Body, Failure, Fetched, Outcome
from datafetch.output.commit import Commit, CommitShard, commit_shard
from datafetch.transcode import ImageSpec
from datafetch.transcode.codec import transcode

_Result = TypeVar("_Result")


class _ThreadTranscoder:
    """Transcodes one image at a time in a thread."""

    def __init__(self, spec: ImageSpec) -> None:
        self._spec = spec
        self._lock = asyncio.Lock()

    async def __call__(self, body: Fetched | bytes) -> Outcome:
        match body:
            case Failure():
                return body
            case Body():
                content = body.content
            case _:
                content = body
        async with self._lock:
            return await _until_done(lambda: transcode(content, self._spec))


@asynccontextmanager
async def _open_transcoder(_job: Job, spec: ImageSpec, _quarantine: Path) -> AsyncIterator[_ThreadTranscoder]:
    yield _ThreadTranscoder(spec)


async def commit_in_thread(commit: Commit) -> ShardCounts:
    """Commit a shard in a thread."""
    copy: Commit = pickle.loads(pickle.dumps(commit))  # as the pipe to a commit process would copy it
    return msgspec.json.decode(orjson.dumps(await _until_done(lambda: commit_shard(copy))), type=ShardCounts)


async def _until_done(work: Callable[[], _Result]) -> _Result:
    """Call a function in a thread; if the caller is cancelled, wait for the thread before raising."""
    task = asyncio.create_task(asyncio.to_thread(work))
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            is_cancelled = True
    if is_cancelled:
        raise asyncio.CancelledError
    return task.result()


def threads_with(commit: CommitShard) -> Backends:
    """Backends that transcode in a thread, and commit in another way."""
    return Backends(_open_transcoder, lambda: nullcontext(commit))


THREADS = threads_with(commit_in_thread)

run = partial(datafetch.run, backends=THREADS)
fetch_dataset = partial(datafetch.fetch_dataset, backends=THREADS)
retry = partial(datafetch.retry, backends=THREADS)
