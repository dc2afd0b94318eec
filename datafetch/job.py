"""Job: what to do, as a value; run(job): do it, or go on with it.

Rules: what can be wrong with a job is found before anything is written. One run at a time works on an output. uvloop
lives here and nowhere else; a caller with a loop of their own uses ``fetch_dataset`` and keeps theirs.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import orjson
import uvloop

from datafetch.datasets import find_dataset
from datafetch.durable import write_atomically
from datafetch.errors import ConfigurationError, DatafetchError, ResourceError
from datafetch.feed import Feed
from datafetch.fetch import BodyBudget, Fetcher, FetchPolicy, OptOut
from datafetch.ledger import read_keys
from datafetch.lock import Lock
from datafetch.model import OK, Manifest, Payload, Report, Selection, Totals
from datafetch.pipeline import Pipeline, Statistics
from datafetch.settled import Output
from datafetch.state import State
from datafetch.transcode import ImageSpec, Resize, Transcoder

GIB = 1024**3
_INT64_END = 2**63
_Identity: TypeAlias = dict[str, Any]  # JSON: what decides the rows, as job.json holds it

Observer: TypeAlias = Callable[[Callable[[], Statistics]], Coroutine[None, None, None]]
"""Watches a run: a coroutine function that may ask for statistics as often as it likes, until it is cancelled."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to do. Frozen and picklable.

    Attributes:
        dataset: Its name, as in ``datafetch.datasets``.
        source: Folder with the published manifest.
        out: Folder for what the trainer reads; the state folder becomes its sibling.
        ids: File with the wanted ids; None takes the dataset's own choice.
        limit: Only the first so many samples.
        image: What an image becomes; None is the dataset's own.
        payload: How a row holds it.
        fetch: How to ask the web.
        processes: Codec processes; None takes one for each CPU.
        memory_bytes: Budget for bodies that wait for the codec.
        scratch: Folder for shards in progress; None is the state folder.
        fresh: Start over instead of going on.
    """

    dataset: str
    source: str
    out: str
    ids: str | None = None
    limit: int | None = None
    image: ImageSpec | None = None
    payload: Payload = Payload.BASE64
    fetch: FetchPolicy = field(default_factory=FetchPolicy)
    processes: int | None = None
    memory_bytes: int = GIB
    scratch: str | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is read."""
        for option, value in (
            ("--limit", self.limit),
            ("--processes", self.processes),
            ("--memory", self.memory_bytes),
        ):
            if value is not None and not 1 <= value < _INT64_END:
                raise ConfigurationError(f"{option} must be 1 or more, not {value}")
        if self.payload not in tuple(Payload):
            raise ConfigurationError(f"--payload must be {' or '.join(Payload)}, not {self.payload!r}")
        for path in (self.source, self.out, self.ids or "", self.scratch or ""):
            if not _is_utf8(path):
                raise ConfigurationError(f"paths must be valid UTF-8 (and so the locale), not {path!a}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def run(job: Job, observe: Observer | None = None) -> Report:
    """Do a job, on an event loop of its own.

    Args:
        job: What to do.
        observe: Watches while it runs.

    Returns:
        What was done. Faults of the web are in it, not raised.

    Raises:
        DatafetchError: The job or its manifest is wrong, or this machine ran out of something.
        KeyboardInterrupt: Ctrl-C; the same job goes on from there.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(fetch_dataset(job, observe))


async def fetch_dataset(job: Job, observe: Observer | None = None) -> Report:
    """Do a job inside a running event loop, of any kind; otherwise like ``run``."""
    started_s = time.monotonic()
    dataset = find_dataset(job.dataset)
    manifest = await asyncio.to_thread(dataset.bind, Path(job.source), Path(job.ids) if job.ids else None)
    spec = job.image or ImageSpec(short_side_px=dataset.short_side_px)
    identity = await asyncio.to_thread(_identity, job, manifest, spec)
    state = State(Path(job.out), Path(job.scratch) if job.scratch else None, _hash(identity))
    async with _claimed(state, job, identity):
        feed = Feed(manifest, state, job.limit)
        budget = BodyBudget(job.memory_bytes)
        async with (
            Fetcher(job.fetch, budget=budget) as fetch,
            Transcoder(spec, processes=job.processes, quarantine=state.quarantine) as transcode,
        ):
            output = Output(dataset, state, job.payload)
            pipeline = Pipeline(feed, output, fetch=fetch, transcode=transcode, budget=budget)
            await _run_observed(pipeline, observe)
        fetching = fetch.statistics()
        report = Report(
            dataset=dataset.name,
            out=job.out,
            totals=Totals.sum(feed.published.values()),
            shards=sum(totals.rows > 0 for totals in feed.published.values()),
            reused=feed.reused[OK],
            fetched_bytes=fetching.fetched_bytes,
            written_bytes=pipeline.published_bytes,
            requests=fetching.attempts,
            connections=fetching.connections,
            elapsed_s=time.monotonic() - started_s,
            selection=await asyncio.to_thread(_selection, manifest, state, feed, job.limit),
        )
        await asyncio.to_thread(write_atomically, state.report, _json(report.summary()))
    return report


async def _run_observed(pipeline: Pipeline, observe: Observer | None) -> None:
    with _one_error():
        async with asyncio.TaskGroup() as group:
            watching = None if observe is None else group.create_task(observe(pipeline.statistics))
            await pipeline.run()
            if watching is not None:
                watching.cancel()


def _selection(manifest: Manifest, state: State, feed: Feed, limit: int | None) -> Selection | None:
    """What became of the id list, by the ledgers; a limited run has not looked everywhere."""
    keys = chain.from_iterable(read_keys(state.ledger(shard)) for shard in feed.published)
    selection = manifest.selection(keys)
    if selection is None or limit is None:
        return selection
    return replace(selection, not_found=None)


@contextmanager
def _one_error() -> Iterator[None]:
    """Task groups raise groups; a caller wants the one error that stopped the run."""
    try:
        yield
    except BaseExceptionGroup as group:
        ours, others = group.split(DatafetchError)
        raise next(_leaves(ours or others or group)) from group


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


@asynccontextmanager
async def _claimed(state: State, job: Job, identity: _Identity) -> AsyncIterator[None]:
    """Hold the output for this run alone, after making sure that this run may go on with what is there.

    Raises:
        ConfigurationError: Another run holds it, it belongs to another job, or it holds files that are not ours.
        ResourceError: It can't be written.
    """
    lock = Lock(state.lock, state.out)
    try:
        await asyncio.to_thread(_claim, state, lock, job, identity)
        yield
    except OSError as error:
        raise ResourceError.of_disk(error, f"write beside {state.out}") from error
    finally:
        await asyncio.to_thread(lock.release)


def _claim(state: State, lock: Lock, job: Job, identity: _Identity) -> None:
    shards = identity["shards"]
    if not job.fresh:
        _refuse_foreign_files(state, shards)
    state.folder.mkdir(parents=True, exist_ok=True)
    lock.acquire()
    if job.fresh:
        _start_over(state)
        _refuse_foreign_files(state, shards)
    if state.job.exists():
        _refuse_other_job(state, _read_identity(state), identity)
    shutil.rmtree(state.unpublished, ignore_errors=True)
    write_atomically(state.job, _json(identity))


def _identity(job: Job, manifest: Manifest, spec: ImageSpec) -> _Identity:
    """What decides the rows. Where the source lies does not, nor how fast the web is asked."""
    identity = {
        "format": 1,
        "dataset": job.dataset,
        "shards": {
            shard.name: [shard.source.name, shard.manifest_rows, shard.fingerprint] for shard in manifest.shards()
        },
        "ids": _sha256(Path(job.ids)) if job.ids else None,
        "limit": job.limit,
        "short_side": spec.short_side_px,
        "quality": spec.quality,
        "pixels": spec.pixels,
        "resize": _resize(spec),
        "encode": spec.encode,
        "payload": job.payload,
        "max_pixels": spec.max_pixels,
    }
    if job.fetch.insecure:
        identity["insecure"] = True
    if job.fetch.opt_out == OptOut.IGNORE:
        identity["opt_out"] = OptOut.IGNORE.value
    return identity


def _resize(spec: ImageSpec) -> Resize | None:
    """How images are shrunk, whether that was said or follows from the pixels; None where none is."""
    if spec.short_side_px is None:
        return None
    return Resize.FAST if spec.shrinks_fast else Resize.EXACT


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(identity: _Identity) -> str:
    return hashlib.sha256(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _read_identity(state: State) -> _Identity:
    """What the last run on this output was.

    Raises:
        ConfigurationError: The file is not of this version; nothing beside it is touched.
    """
    try:
        identity = orjson.loads(state.job.read_bytes())
    except orjson.JSONDecodeError:
        identity = None
    if not isinstance(identity, dict) or not isinstance(identity.get("shards"), dict):
        raise ConfigurationError(f"{state.job} is not a job of this version of datafetch; move {state.folder} away")
    return identity


def _refuse_other_job(state: State, before: _Identity, now: _Identity) -> None:
    for name in now | before:
        if before.get(name) != now.get(name):
            difference = f"{name}: {before.get(name)}, now {now.get(name)}"
            if name == "shards":
                difference = f"other manifest files: {_first_difference(before[name], now[name])}"
            raise ConfigurationError(
                f"{state.out} was begun with another job ({difference}); "
                "give the same again, choose another --root, or start over with --fresh"
            )


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first manifest file that is not what it was."""
    changed = {source for shard, (source, *_) in now.items() if before.get(shard) != now[shard]}
    return str(min(changed or {source for source, *_ in before.values()}))


def _refuse_foreign_files(state: State, shards: dict[str, object]) -> None:
    """The trainer counts every file in the folder, so nothing but this job's shards may lie there."""
    if not state.out.exists():
        return
    if not state.out.is_dir():
        raise ConfigurationError(f"{state.out} is not a folder; choose another --root")
    ours = {f"{shard}{suffix}" for shard in shards for suffix in (".pkl", ".count")} if state.job.exists() else set()
    for path in sorted(state.out.iterdir()):
        if path.name not in ours:
            raise ConfigurationError(
                f"{path} was not written by this job, and the trainer would count it; "
                "move it away or choose another --root"
            )


def _start_over(state: State) -> None:
    """Delete what an earlier run of ours left; without its job file a folder is not ours to delete."""
    if not state.job.exists():
        return
    for shard in _read_identity(state)["shards"]:
        for path in (state.out / f"{shard}.pkl", state.out / f"{shard}.count"):
            path.unlink(missing_ok=True)
    for folder in (state.ledgers, state.all_spools, state.unpublished, state.quarantine):
        shutil.rmtree(folder, ignore_errors=True)
    state.job.unlink()


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
