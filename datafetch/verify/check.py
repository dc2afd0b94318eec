"""Check: what to verify, as a value; run_check(check): verify it.

Rules: nothing is written. Files are read and rows examined in a thread, a batch ahead of the codec; what is in memory
is a batch of rows and the images that wait, whatever the size of the output.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from datafetch.datasets import DATASETS, find_dataset
from datafetch.errors import ConfigurationError, DatafetchError, raise_want, refuse_outside
from datafetch.model.interfaces import Dataset
from datafetch.model.kinds import Loader
from datafetch.model.observers import observing
from datafetch.output.reshard.ranks import GROUP_OF, Ranks
from datafetch.process.event_loop import run_to_end
from datafetch.store.job_file import JobFile
from datafetch.store.layout import OutputLayout
from datafetch.store.state_file import read_if_sound
from datafetch.transcode import MAX_PROCESSES, Encoding, ImageSpec, Transcoder
from datafetch.transcode.pool.pool import available_cpus
from datafetch.verify.findings import Examined, Findings, VerifyProgress, batched
from datafetch.verify.folder import ImageFolder
from datafetch.verify.images import Decoding
from datafetch.verify.shards import ShardFolder
from datafetch.verify.torch import RecordList
from datafetch.verify.verdict import EpochUsage, Verdict

# Twice Pillow's limit is where the trainer's ``Image.open`` refuses. In shards a sound JPEG is decoded in a fraction of
# the time that all of its pixels take; files are of any format, and are decoded as the trainer does.
_MOST_PIXELS = 2 * 89_478_485
_IN_SHARDS = ImageSpec(encode=Encoding.ORIGINAL, max_pixels=_MOST_PIXELS, mends=False)
_AS_FILES = ImageSpec(encode=Encoding.RECEIVED, max_pixels=_MOST_PIXELS)

Subject: TypeAlias = ShardFolder | RecordList | ImageFolder

Observer: TypeAlias = Callable[[Callable[[], VerifyProgress]], Coroutine[None, None, None]]
"""Watches: a coroutine function that may ask how it stands as often as it likes, until it is cancelled.

What it raises is logged as an error under ``datafetch.model.observers``, and the check continues without it.
"""


@dataclass(frozen=True, slots=True)
class Check:
    """What to verify. Checked when made.

    Attributes:
        out: Folder of shards or of images, or JSON file of records.
        loader: Whose demands; None is that of the job, else what the first row is like.
        image_root: What the paths in a JSON file start from; None is the folder that a run made beside it for that,
            or its own folder.
        world_size: Ranks that will read the shards.
        batch: Groups that a rank takes in one step.
        group: Samples that the loader takes together; None is its own number, 4 of pairs and 1 of documents.
        processes: Codec processes; None takes one for each CPU.
    """

    out: str
    loader: Loader | None = None
    image_root: str | None = None
    world_size: int = 64
    batch: int = 2
    group: int | None = None
    processes: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is read."""
        self.ranks(Loader.COYO)
        if not all(character.isprintable() for character in self.out):
            raise ConfigurationError(f"paths must be printable, and valid UTF-8, not {self.out!a}")
        if self.processes is not None:
            refuse_outside("--processes", self.processes, 1, MAX_PROCESSES)

    def ranks(self, loader: Loader) -> Ranks:
        """Who will read the shards, and how."""
        return Ranks(self.world_size, self.batch, GROUP_OF[loader] if self.group is None else self.group)


def run_check(check: Check, observe: Observer | None = None) -> Verdict:
    """Verify an output, on an event loop of its own.

    Args:
        check: What to verify.
        observe: Watches meanwhile.

    Returns:
        What was found. Faults of the output are in it, not raised.

    Raises:
        DatafetchError: There is nothing to verify, or this machine ran out of something.
        KeyboardInterrupt: Ctrl-C.
    """
    return run_to_end(verify_output(check, observe))


async def verify_output(check: Check, observe: Observer | None = None) -> Verdict:
    """Verify an output inside a running event loop, of any kind; otherwise like ``run_check``."""
    try:
        subject = await asyncio.to_thread(_open, check)
        findings = Findings(await asyncio.to_thread(lambda: subject.total_bytes))
    except OSError as error:
        raise_want(error)
        raise ConfigurationError(f"{check.out} can't be looked into: {error.strerror or error}") from error
    try:
        async with asyncio.TaskGroup() as group:
            watching = None if observe is None else group.create_task(observing(observe, findings.standing))
            await _examine(subject, findings, check.processes or available_cpus())
            if watching is not None:
                watching.cancel()
    except BaseExceptionGroup as errors:
        raise _first(errors) from errors
    reading = None
    if isinstance(subject, ShardFolder) and subject.shards:
        reading = EpochUsage.of(subject.row_counts, check.ranks(subject.loader))
    of_ranks = tuple(reading.problems()) if reading else ()
    return Verdict(
        out=check.out,
        loader=subject.loader,
        shards=subject.shards if isinstance(subject, ShardFolder) else None,
        samples=findings.samples,
        images=findings.images,
        problems=(*of_ranks, *findings.kept),
        problem_count=findings.problems + len(of_ranks),
        remarks=await asyncio.to_thread(_remarks, Path(check.out)),
        reading=reading,
    )


async def _examine(subject: Subject, findings: Findings, processes: int) -> None:
    """Read and decode everything; the next batch of rows is read as soon as the images of the last are handed over."""
    batches = batched(subject.examine())
    spec = _AS_FILES if subject.loader is Loader.TORCH else _IN_SHARDS
    async with Transcoder(spec, processes=processes) as transcode, asyncio.TaskGroup() as group:
        decoding = Decoding(transcode, findings, group, processes)
        while (batch := await asyncio.to_thread(_next, batches)) is not None:
            for examined in batch:
                findings.add(examined)
                for image in examined.images:
                    await decoding.take(image)


def _next(batches: Iterator[list[Examined]]) -> list[Examined] | None:
    return next(batches, None)


def _first(errors: BaseExceptionGroup) -> BaseException:
    """Task groups raise groups; a caller wants the one error that stopped it, ours rather than what came of it."""
    ours, others = errors.split(DatafetchError)
    error: BaseException = ours or others or errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _open(check: Check) -> Subject:
    """What there is to verify.

    Raises:
        ConfigurationError: There is nothing, or it does not fit the loader.
    """
    out = Path(check.out)
    if out.is_dir():
        return _open_folder(check, out)
    if not out.is_file():
        raise ConfigurationError(f"{out} is neither a folder of shards or images nor a JSON file")
    if check.loader not in {None, Loader.TORCH}:
        raise ConfigurationError(f"{out} is a file; --loader {check.loader} takes a folder of shards")
    return RecordList(out, _image_root(out) if check.image_root is None else Path(check.image_root))


def _open_folder(check: Check, out: Path) -> Subject:
    dataset = _dataset_of_job(out)
    if dataset is not None and dataset.list_name is not None and check.loader in {None, dataset.loader}:
        path = out.absolute().parent / dataset.list_name
        if not path.is_file():
            raise ConfigurationError(f"{path} is not there; the run that makes it is not complete")
        return RecordList(path, out if check.image_root is None else Path(check.image_root))
    if check.image_root is not None:
        raise ConfigurationError("--image-root is for a JSON file; the images of shards are in them")
    loader = check.loader or (None if dataset is None else dataset.loader)
    if loader is not Loader.TORCH:
        return ShardFolder(out, loader)
    if any(out.glob("*.pkl")):
        raise ConfigurationError(f"{out} holds shards; --loader torch takes a JSON file or a folder of images")
    return ImageFolder(out)


def _image_root(path: Path) -> Path:
    """Where the images of a JSON list lie: in the output beside it of the run that made it, or in its own folder."""
    for dataset in DATASETS.values():
        if dataset.list_name == path.name:
            images = path.parent / PurePosixPath(dataset.path).name
            if images.is_dir():
                return images
    return path.parent


def _dataset_of_job(out: Path) -> Dataset | None:
    """The dataset that the job beside a folder names, if that is a known one."""
    job = _job(out)
    try:
        return find_dataset(job.dataset) if job else None
    except ConfigurationError:
        return None


def _remarks(out: Path) -> tuple[str, ...]:
    """Whether the run that makes the output has more to do, as far as is plain."""
    job = _job(out)
    if job is None or job.limit is not None:  # a limit leaves shards out for good
        return ()
    layout = OutputLayout(out.absolute())
    if layout.retry.exists():
        return ("a retry was interrupted; 'datafetch retry' completes it",)
    try:
        left = sum(not layout.ledger(shard).exists() for shard in job.shards)
    except OSError:
        return ()
    if left:
        return (f"the run is not complete: {left:,} of {len(job.shards):,} shards of its manifest are not done",)
    return () if layout.report.exists() else ("the run is not complete: its last step was interrupted",)


def _job(out: Path) -> JobFile | None:
    """The job beside an output; None where there is none that can be read."""
    return read_if_sound(OutputLayout(out.absolute()).job, JobFile)
