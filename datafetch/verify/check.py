"""Check: what to verify, as a value. run_check(): verify it.

Rules: nothing is written. A thread reads the files and examines the rows, one batch ahead of the codec. Whatever the
size of the output, only a batch of rows and the images that wait for the codec are in memory.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import TypeAlias

from datafetch.datasets import DATASETS, dataset_of_output
from datafetch.errors import ConfigurationError, raise_if_exhausted
from datafetch.model.at_hand import AtHand, is_at_hand
from datafetch.model.dataset import Dataset
from datafetch.model.fields import check_types, invalid, require_in_range
from datafetch.model.kinds import Loader
from datafetch.model.location import is_bucket
from datafetch.model.observers import Observer, observed_by
from datafetch.model.options import Option, OptionGroup, option
from datafetch.model.untrusted import short_repr
from datafetch.model.wording import command_that_made
from datafetch.output.formats import ROWS_SUFFIX, ImageFilesFormat, PickleFormat
from datafetch.output.reshard.ranks import BATCH, GROUP, WORLD_SIZE
from datafetch.output.training_list import list_name_of
from datafetch.process.cpus import available_cpus
from datafetch.process.event_loop import run_to_end
from datafetch.process.threads import run_in_thread
from datafetch.store.buckets.view import observed_place
from datafetch.store.layout import SUFFIX, OutputLayout
from datafetch.transcode import MAX_PROCESSES, Encoding, ImageSpec, Transcoder
from datafetch.verify.findings import MAX_KEPT_PROBLEMS, Examination, Findings, Problem, VerifyProgress, batched
from datafetch.verify.image_folder import ImageFolder
from datafetch.verify.images import ImageDecoder
from datafetch.verify.intended_ranks import IntendedRanks, WantedRanks, read_sound_job
from datafetch.verify.record_list import RecordList
from datafetch.verify.recorded_files import RecordedFiles
from datafetch.verify.sample_shards import FORMATS_OF_SAMPLES, SampleShards, format_of_samples
from datafetch.verify.shards import ShardFolder
from datafetch.verify.verdict import EpochUsage, Verdict

# The trainer's ``Image.open`` refuses images above twice Pillow's limit. Shards hold JPEGs; files may have any format,
# and must open as in the trainer. Intact JPEGs are checked without decoding all of their pixels (docs/fidelity.md).
_READABLE_FORMATS = FORMATS_OF_SAMPLES | {PickleFormat.name, ImageFilesFormat.name}
_MAX_PIXELS = 2 * 89_478_485
_SHARD_SPEC = ImageSpec(encode=Encoding.ORIGINAL, max_pixels=_MAX_PIXELS, repairs_png=False)
_FILE_SPEC = ImageSpec(encode=Encoding.RECEIVED, max_pixels=_MAX_PIXELS)

Subject: TypeAlias = ShardFolder | RecordList | ImageFolder | RecordedFiles | SampleShards


@dataclass(frozen=True, slots=True)
class Check:
    """What to verify. Validated when created.

    Attributes:
        out: A folder of shards or of images, a JSON file of records, or the place of an output in a bucket.
        loader: The loader whose requirements are checked; None takes that of the job, or else determines it from the
            first row.
        image_root: The folder to which the paths in a JSON file are relative; None takes that of the run that created
            it, or else the folder of the file.
        follow_links: Whether images of a JSON file may lie behind links that lead out of that folder.
        world_size: How many ranks will read the shards; None takes the number that they were made for, or else 64.
        batch: How many groups a rank takes in one step; None takes the number that they were made for, or else 2.
        group: How many samples the loader groups; None takes the number that they were made for, or else the loader's
            own, 4 pairs or 1 document.
        processes: How many codec processes; None takes one for each CPU.
        quick: Whether files are only compared with what was recorded when they were written, and nothing is decoded.
    """

    out: str
    loader: Loader | None = option(
        None, Option(help="Loader to check for.", group=OptionGroup.BEHAVIOUR, unset="the job's, or by the first row")
    )
    image_root: str | None = option(
        None,
        Option(
            help="Base of the paths in a JSON list.",
            group=OptionGroup.BEHAVIOUR,
            metavar="DIR",
            unset="as the run that made it, or its folder",
        ),
    )
    follow_links: bool = option(
        False,
        Option(
            help="Read images of a JSON list behind links, such as to a set that others share.",
            group=OptionGroup.BEHAVIOUR,
        ),
    )
    world_size: int | None = option(None, replace(WORLD_SIZE, unset="that of the output, or 64"))
    batch: int | None = option(None, replace(BATCH, unset="that of the output, or 2"))
    group: int | None = option(None, replace(GROUP, unset="that of the output, or 4 for pairs, 1 for documents"))
    processes: int | None = option(
        None,
        Option(help="Number of codec processes.", group=OptionGroup.BEHAVIOUR, metavar="N", unset="CPU count"),
    )
    quick: bool = option(
        False,
        Option(
            help="Only compare sizes and checksums with those recorded when the files were written, as after a move.",
            group=OptionGroup.BEHAVIOUR,
        ),
    )

    def __post_init__(self) -> None:
        """Refuse invalid values before anything is read."""
        check_types(self)
        _ = self.ranks
        if not all(character.isprintable() for character in self.out):
            raise ConfigurationError(f"paths must be printable, and valid UTF-8, not {self.out!a}")
        require_in_range(self, "processes", 1, MAX_PROCESSES)

    @property
    def ranks(self) -> WantedRanks:
        """How many ranks will read the shards, and in which groups, as far as that was said."""
        return WantedRanks(world_size=self.world_size, batch=self.batch, group=self.group)


def run_check(check: Check, observers: Iterable[Observer[VerifyProgress]] = ()) -> Verdict:
    """Verify an output, on an event loop of its own.

    Args:
        check: What to verify.
        observers: Each observes the progress.

    Returns:
        The verdict, which contains the problems of the output; they are not raised.

    Raises:
        DatafetchError: There is nothing to verify, or this machine ran out of something.
        KeyboardInterrupt: Ctrl-C.
    """
    return run_to_end(verify_output(check, observers), instead="await verify_output(check)")


async def verify_output(check: Check, observers: Iterable[Observer[VerifyProgress]] = ()) -> Verdict:
    """Verify an output inside a running event loop, of any kind; otherwise like ``run_check``."""
    if not isinstance(check, Check):
        raise ConfigurationError(f"a Check is needed, not {short_repr(check)}; write Check(out)")
    if not is_bucket(check.out):
        return await _verify(check, observers, is_at_hand)
    with ExitStack() as opened:
        place = await run_in_thread(opened.enter_context, observed_place(check.out))
        verdict = await _verify(replace(check, out=str(place.out)), observers, place.at_hand)
    return replace(verdict, out=check.out, remarks=tuple(map(place.renamed, verdict.remarks)))


async def _verify(check: Check, observers: Iterable[Observer[VerifyProgress]], at_hand: AtHand) -> Verdict:
    """Verify an output whose files are on this machine while they are read."""
    try:
        subject = await asyncio.to_thread(_open, check, at_hand)
        findings = Findings(await asyncio.to_thread(lambda: subject.total_bytes))
    except OSError as error:
        raise_if_exhausted(error)
        raise ConfigurationError(f"can't read {check.out}: {error.strerror or error}") from error
    async with observed_by(observers, findings.progress):
        if isinstance(subject, RecordedFiles):
            await _compare(subject, findings)
        else:
            await _examine(subject, findings, check.processes or available_cpus())
            for problem in await asyncio.to_thread(_lost_shards, subject, check):
                findings.add_problem(problem)
    usage = None
    if isinstance(subject, ShardFolder | RecordedFiles) and subject.shards and subject.loader is not None:
        intended = await asyncio.to_thread(_intended_ranks, check, subject.loader)
        usage = EpochUsage.from_row_counts(subject.row_counts, intended)
    usage_problems = tuple(usage.problems()) if usage else ()
    return Verdict(
        out=check.out,
        loader=subject.loader,
        shards=subject.shards if isinstance(subject, ShardFolder | RecordedFiles | SampleShards) else None,
        samples=findings.samples,
        images=findings.images,
        problems=(*usage_problems, *findings.kept_problems),
        problem_count=findings.problems + len(usage_problems),
        remarks=(*await asyncio.to_thread(_remarks, Path(check.out)), *_quick_remarks(subject, findings)),
        epoch_usage=usage,
        is_quick=check.quick,
        output_format=subject.output_format if isinstance(subject, RecordedFiles | SampleShards) else "",
    )


def _intended_ranks(check: Check, loader: Loader) -> IntendedRanks:
    return check.ranks.of_output(OutputLayout(Path(check.out).absolute()), loader)


async def _compare(subject: RecordedFiles, findings: Findings) -> None:
    """Compare everything, in a thread."""
    steps = subject.examine()
    while (step := await asyncio.to_thread(_next, steps)) is not None:
        for examination in step:
            findings.add(examination)


def _lost_shards(subject: Subject, check: Check) -> list[Problem]:
    """What a folder of shards lacks by its own record, if it has one."""
    if not isinstance(subject, ShardFolder | SampleShards):
        return []
    out = Path(check.out)
    try:
        recorded = RecordedFiles(OutputLayout(out.absolute()), _dataset_of_job(out), subject.loader)
        return list(islice(recorded.lost_shards(), MAX_KEPT_PROBLEMS))
    except ConfigurationError:
        return []


def _quick_remarks(subject: Subject, findings: Findings) -> Iterator[str]:
    if not isinstance(subject, RecordedFiles):
        return
    if findings.problems and subject.has_job:
        yield (
            "the command that made the output makes again what is missing; delete what has other bytes first; "
            f"{command_that_made(subject.out)}"
        )
    if subject.without_checksum:
        count = subject.without_checksum
        files = "1 file has" if count == 1 else f"{count:,} files have"
        yield f"{files} no recorded checksum; only presence, and the size where that was recorded, were compared"


async def _examine(
    subject: ShardFolder | RecordList | ImageFolder | SampleShards, findings: Findings, processes: int
) -> None:
    """Read and decode everything; the next batch of rows is read as soon as all images of the last are submitted."""
    batches = batched(subject.examine())
    spec = _SHARD_SPEC if isinstance(subject, ShardFolder) else _FILE_SPEC
    async with Transcoder(spec, processes=processes) as transcode, asyncio.TaskGroup() as group:
        decoder = ImageDecoder(transcode, findings, group, processes)
        while (batch := await asyncio.to_thread(_next, batches)) is not None:
            for examination in batch:
                findings.add(examination)
                for image in examination.images:
                    await decoder.submit(image)


def _next(batches: Iterator[list[Examination]]) -> list[Examination] | None:
    return next(batches, None)


def _open(check: Check, at_hand: AtHand) -> Subject:
    """Open what is to be verified.

    Raises:
        ConfigurationError: There is nothing to verify, or it does not fit the loader.
    """
    out = Path(check.out)
    if not out.exists() and _dataset_of_job(out) is None:
        raise ConfigurationError(f"there is no {out}; {_what_to_give(out)}")
    if check.quick:
        if out.is_file():
            out = _output_of_list(out) or out
        return RecordedFiles(OutputLayout(out.absolute()), _dataset_of_job(out), check.loader, at_hand)
    if out.is_dir() or not out.exists():  # a list needs no folder
        return _open_folder(check, out, at_hand)
    if not out.is_file():
        raise ConfigurationError(f"{out} is neither a folder of shards or images nor a JSON file")
    if check.loader not in {None, Loader.TORCH}:
        raise invalid(check, f"{{path}} is a file; {{loader:{check.loader}}} takes a folder of shards", path=str(out))
    image_root = _image_root(out) if check.image_root is None else Path(check.image_root)
    return RecordList(out, image_root, follow_links=check.follow_links)


def _what_to_give(missing: Path) -> str:
    """What to verify in place of a path that does not exist: the list that a run has written in its folder."""
    names = [missing.with_name(path.name) for path in _lists_in(missing.absolute().parent)]
    if not names:
        return "give a folder of shards or images, or a JSON list of records"
    return f"{'the list is' if len(names) == 1 else 'the lists are'} {', '.join(map(str, names))}"


def _open_folder(check: Check, out: Path, at_hand: AtHand) -> Subject:
    dataset = _dataset_of_job(out)
    if dataset is not None and dataset.output_format not in _READABLE_FORMATS:
        raise ConfigurationError(f"verify can't read {dataset.output_format}, the output format of {dataset.name}")
    if dataset is not None and dataset.list_name is not None and check.loader in {None, dataset.loader}:
        path = out.absolute().parent / list_name_of(OutputLayout(out.absolute()), dataset)
        if not path.is_file():
            raise ConfigurationError(f"{path} does not exist; the run that creates it is not complete")
        image_root = _root_of_list(out, dataset) if check.image_root is None else Path(check.image_root)
        return RecordList(path, image_root, follow_links=check.follow_links)
    if not out.is_dir():
        if OutputLayout(out.absolute()).report.exists():
            raise ConfigurationError(
                f"{out} has no rows, since no sample of its run became one; "
                f"'datafetch status {quote(str(out))}' says why"
            )
        raise ConfigurationError(f"there is no folder {out}; the run that makes it has nothing to show yet")
    if check.image_root is not None:
        raise invalid(check, "{image_root} is only for a JSON file; shards contain their images")
    loader = check.loader or (None if dataset is None else dataset.loader)
    sample_format = format_of_samples(out, at_hand) if loader is None else None
    if sample_format is not None:
        return SampleShards(out, sample_format, at_hand)
    if loader is not Loader.TORCH:
        return ShardFolder(out, loader, at_hand)
    if any(out.glob(f"*{ROWS_SUFFIX}")):
        template = "{path} holds shards; {loader:torch} takes a JSON file or a folder of images"
        raise invalid(check, template, path=str(out))
    return ImageFolder(out)


def _image_root(path: Path) -> Path:
    """Find the images of a JSON list, if a run created it; otherwise they are in its own folder."""
    made_with = _output_of_list(path)
    own = None if made_with is None else _dataset_of_job(made_with)
    if made_with is not None and own is not None:
        return _root_of_list(made_with, own)
    for dataset in DATASETS.values():
        if dataset.list_name == path.name:
            images = path.parent / PurePosixPath(dataset.path).name
            if images.is_dir():
                return _root_of_list(images, dataset)
    return path.parent


def _output_of_list(path: Path) -> Path | None:
    """The output next to which a run has written a JSON list; None if none has."""
    for state in sorted(path.absolute().parent.glob(f"*{SUFFIX}")):
        out = state.with_name(state.name.removesuffix(SUFFIX))
        dataset = _dataset_of_job(out)
        if dataset is not None and list_name_of(OutputLayout(out.absolute()), dataset) == path.name:
            return out
    return None


def _lists_in(folder: Path) -> Iterator[Path]:
    """The JSON lists that runs have written in a folder."""
    for state in sorted(folder.glob(f"*{SUFFIX}")):
        out = state.with_name(state.name.removesuffix(SUFFIX))
        dataset = _dataset_of_job(out)
        name = "" if dataset is None else list_name_of(OutputLayout(out.absolute()), dataset)
        if name and (folder / name).is_file():
            yield folder / name


def _root_of_list(out: Path, dataset: Dataset) -> Path:
    return Path(os.path.normpath(out.absolute() / dataset.list_root))


def _dataset_of_job(out: Path) -> Dataset | None:
    """Return the dataset that the job of an output names; None if there is no job, or the dataset is unknown."""
    job = read_sound_job(OutputLayout(out.absolute()))
    try:
        return dataset_of_output(job.dataset, job.identity) if job else None
    except ConfigurationError:
        return None


def _remarks(out: Path) -> tuple[str, ...]:
    """Remark that the run that creates the output is not complete, judging by its state folder."""
    job = read_sound_job(OutputLayout(out.absolute()))
    if job is None or job.limit is not None:  # with a limit, some shards are never made
        return ()
    layout = OutputLayout(out.absolute())
    if layout.retry.exists():
        return ("a retry was interrupted; 'datafetch retry' completes it",)
    try:
        missing = sum(not layout.ledger(shard).exists() for shard in job.shards)
    except OSError:
        return ()
    if missing:
        return (f"the run is not complete: {missing:,} of {len(job.shards):,} shards of its manifest are missing",)
    return () if layout.report.exists() else ("the run is not complete: its last step was interrupted",)
