"""What a run would do, found out without asking anybody and without writing anything.

Theory of operation. To bind a job whose files are on this machine asks no server and writes nothing, and it finds what
is wrong with the job. So such a job is bound, its claim to the output is checked, and a bounded number of its samples
is read for their hosts. Of a job that reads something from elsewhere, which is no earlier command's copy, it is said
what would be asked for first, and the numbers are those of the recipe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from datafetch.datasets import find_dataset
from datafetch.engine.archives import NO_ARCHIVES, has_copies
from datafetch.engine.bound_job import BoundJob, bind, estimate_disk, refuse_link, starting_over_of
from datafetch.engine.choices import choices_of, other_settings, row_defaults, row_settings
from datafetch.engine.claim import Claim, judge_claim
from datafetch.engine.completeness import unpublished_shards
from datafetch.engine.disk_estimate import DiskNeeds, count_published, disk_needs
from datafetch.engine.job import (
    Job,
    dataset_of,
    hash_of,
    identify_settings,
    inputs_of,
    own_spec,
    reshard_plan,
    settings_of,
)
from datafetch.engine.published import downloaded_copy, is_read_from_copy
from datafetch.engine.recipe import PlannedDataset, with_lists
from datafetch.engine.repeated_job import RepeatedJob
from datafetch.errors import ConfigurationError, ManifestError
from datafetch.fetch.urls import BadUrlError, parse_url
from datafetch.model.dataset import Dataset
from datafetch.model.kinds import OutputState
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.location import at_mirror, is_bucket, is_remote, is_url, without_secrets
from datafetch.model.options import row_options
from datafetch.model.sample import FALLBACK, FILE, MEMBER, Row
from datafetch.monitor.at_work import refuse_at_work
from datafetch.output.reshard.record import read_reshard_record
from datafetch.process.event_loop import run_to_end
from datafetch.process.threads import run_in_thread
from datafetch.store.job_file import Identity, JobFile, read_job_file
from datafetch.store.layout import OutputLayout, resolve_parent

MAX_HOSTS = 5
_MAX_SAMPLED_IMAGES = 10_000
_MAX_SAMPLED_SHARDS = 4  # of each, all of its file may have to be scanned
_ASSUMED_SHARDS = 128


_STATES = {
    Claim.NEW: OutputState.NEW,
    Claim.STARTS_OVER: OutputState.STARTED_OVER,
    Claim.TAKES_FILES: OutputState.REUSED,
    Claim.REUSES: OutputState.REUSED,
}
_ARE_THERE = frozenset({OutputState.RESUMED, OutputState.COMPLETE, OutputState.REPAIRED, OutputState.RESHARDED})


@dataclass(frozen=True, slots=True)
class HostShare:
    """A host, and how many of the sampled images would be requested from it."""

    host: str
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a run would do.

    Attributes:
        dataset: The name of the dataset.
        out: The output folder.
        state: What becomes of the output.
        problem: Why it is refused, and what to do; empty if it is not.
        asked_first: What has to be read from elsewhere before more is known, without secrets.
        samples: The number of samples; None if it is not known.
        is_counted: Whether this is their exact number, and not an upper bound, which may be a rough one.
        images: About how many images these have; None if it is not known.
        sampled_images: The number of images from which the hosts are known.
        hosts: The hosts that have most of these.
        shards: The number of shards; None if it is not known.
        shards_published: How many of them an earlier run has published.
        disk: What the output takes of the disk; None if that is not known, or nothing.
        row_settings: The options that decide the rows and differ from their defaults.
        row_defaults: Those that decide the rows by their defaults.
        other_settings: All others that differ from their defaults.
        choices: What decides the rows, and was chosen by nobody.
    """

    dataset: str
    out: str
    state: OutputState
    problem: str = ""
    asked_first: tuple[str, ...] = ()
    samples: int | None = None
    is_counted: bool = False
    images: int | None = None
    sampled_images: int = 0
    hosts: tuple[HostShare, ...] = ()
    shards: int | None = None
    shards_published: int = 0
    disk: DiskNeeds | None = None
    row_settings: tuple[str, ...] = ()
    row_defaults: tuple[str, ...] = ()
    other_settings: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    def summary(self) -> dict[str, object]:
        """All of this as a JSON object."""
        disk = self.disk
        return {
            "dataset": self.dataset,
            "out": self.out,
            "dry_run": True,
            "state": self.state,
            "problem": self.problem or None,
            "asked_first": list(self.asked_first),
            "samples": {"total": self.samples, "is_exact": self.is_counted},
            "images": {"about": self.images, "sampled": self.sampled_images},
            "hosts": [asdict(one) for one in self.hosts],
            "shards": {"total": self.shards, "published": self.shards_published},
            "disk": None
            if disk is None
            else {
                "needed_bytes": round(disk.needed_bytes),
                "result_bytes": round(disk.result_bytes),
                "free_bytes": disk.free_bytes,
            },
            "settings": {
                "rows": list(self.row_settings),
                "row_defaults": list(self.row_defaults),
                "other": list(self.other_settings),
            },
            "choices": list(self.choices),
        }


def look_ahead(planned: Sequence[PlannedDataset], repeated: RepeatedJob | None = None) -> list[DryRun]:
    """Say for each of several datasets what its run would do.

    Args:
        planned: The datasets.
        repeated: The job of another output, whose rows they are to make; None for any rows.

    Raises:
        ResourceError: This machine lacks something.
        KeyboardInterrupt: Ctrl-C.
    """
    return run_to_end(_look_at_all(planned, repeated))


async def _look_at_all(planned: Sequence[PlannedDataset], repeated: RepeatedJob | None) -> list[DryRun]:
    return [await _look_at(one, repeated) for one in planned]


async def _look_at(one: PlannedDataset, repeated: RepeatedJob | None) -> DryRun:
    if one.job is None:
        return DryRun(dataset=one.part.name, out=one.out, state=OutputState.REFUSED, problem=one.problem)
    try:
        _refuse_bucket(one.job)
        asked_first = await run_in_thread(_asked_first, one, one.job)
        if asked_first:
            return await run_in_thread(_look_from_outside, one, one.job, asked_first)
        here = await run_in_thread(_read_here, one, one.job)
        async with bind(await with_lists(here, here.job or one.job)) as bound:
            if repeated is not None:
                await run_in_thread(repeated.refuse_other_rows, bound.identity, one.job, bound.spec)
            return await run_in_thread(_look_inside, one.job, bound)
    except (ConfigurationError, ManifestError) as error:
        return replace(_settings_of(one.job), state=OutputState.REFUSED, problem=str(error))


def _refuse_bucket(job: Job) -> None:
    if is_bucket(job.out):
        raise ConfigurationError(
            f"--dry-run asks nobody, so it can't know what is in {job.out}; with a local folder it says all the rest"
        )


def _settings_of(job: Job) -> DryRun:
    return DryRun(
        dataset=job.dataset,
        out=job.out,
        state=OutputState.NEW,
        row_settings=tuple(row_settings(job)),
        row_defaults=tuple(row_defaults(job)),
        other_settings=tuple(other_settings(job)),
    )


def _asked_first(one: PlannedDataset, job: Job) -> list[str]:
    """What a job reads that is not on this machine, without secrets."""
    dataset = dataset_of(job)
    if dataset.takes_inputs:
        missing = [place for place in inputs_of(job) if is_remote(place)]
    else:
        missing = [job.source] if is_read_from_copy(dataset) and _copy_of_source(job, dataset) is None else []
    if dataset.archives:
        location = at_mirror(dataset.archive_location(job.source), job.mirror)
        if is_url(location) and (job.fresh or not has_copies(dataset, location, _layout_of(job, dataset))):
            missing.append(location)
    if job.ids is not None and _copy_of(job.ids) is None:
        missing.append(job.ids)
    missing += [other.source for other in one.lists if _copy_of_source(other, find_dataset(other.dataset)) is None]
    return list(dict.fromkeys(map(without_secrets, missing)))


def _read_here(one: PlannedDataset, job: Job) -> PlannedDataset:
    """The same dataset, read from paths on this machine."""
    ids = None if job.ids is None else _copy_of(job.ids)
    lists = tuple(_with_copy_of_source(other, find_dataset(other.dataset)) for other in one.lists)
    return replace(one, job=replace(_with_copy_of_source(job, dataset_of(job)), ids=ids), lists=lists)


def _with_copy_of_source(job: Job, dataset: Dataset) -> Job:
    return replace(job, source=_copy_of_source(job, dataset) or job.source)


def _copy_of_source(job: Job, dataset: Dataset) -> str | None:
    """The path from which a manifest can be read; None if it has to be downloaded.

    The source of a dataset with archives is never replaced, since it says where these are.
    """
    if dataset.archives and is_remote(job.source):
        return None
    return _copy_of(job.source, dataset.list_name or "")


def _copy_of(location: str, default_name: str = "") -> str | None:
    if not is_remote(location):
        return location
    copy = downloaded_copy(location, default_name) if is_url(location) else None
    return None if copy is None else str(copy)


def _layout_of(job: Job, dataset: Dataset) -> OutputLayout:
    scratch = resolve_parent(Path(job.scratch)) if job.scratch else None
    return OutputLayout(resolve_parent(Path(job.out)), scratch, output_format=dataset.output_format)


def _look_from_outside(one: PlannedDataset, job: Job, asked_first: list[str]) -> DryRun:
    """What is known of a run before anything is read from elsewhere."""
    dataset = dataset_of(job)
    layout = _layout_of(job, dataset)
    known = (one.part.listed_images if one.lists else 0) or one.part.images
    if dataset.id_list is not None and job.ids != (one.part.ids or None):
        known = 0  # the recipe's number is that of its own list
    samples = min(known or job.limit, job.limit) if job.limit is not None else known or None
    before = read_job_file(layout)
    shards = list(before.shards) if before is not None and not job.fresh else []
    state, problem = _state_of(layout, job, shards, partial(_claim_from_outside, layout, job, dataset, before))
    is_there = state in _ARE_THERE
    is_written = bool(samples) and dataset.image_root is None and state is not OutputState.COMPLETE
    estimate = estimate_disk(job, dataset, samples or 0, len(shards) or _ASSUMED_SHARDS)
    return replace(
        _settings_of(job),
        state=state,
        problem=problem,
        asked_first=tuple(asked_first),
        samples=samples,
        shards=len(shards) or None,
        shards_published=_published(layout, shards) if is_there else 0,
        disk=disk_needs(layout, estimate, ShardCounts()) if is_written else None,
        choices=tuple(choices_of(job, None)),
    )


def _look_inside(job: Job, bound: BoundJob) -> DryRun:
    """What is known of a run whose manifest is open."""
    layout = bound.layout
    state, problem = _state_of(layout, job, bound.shards, bound.judge_claim)
    is_there = state in _ARE_THERE
    counts = count_published(layout, bound.shards) if is_there else ShardCounts()
    sampled = _Sampled()
    sampled.read(bound)
    samples = sampled.samples if sampled.is_all else bound.manifest.max_samples()
    samples = samples if job.limit is None else min(samples, job.limit)
    estimate = bound.disk_estimate()
    is_written = estimate.samples and state is not OutputState.COMPLETE
    return replace(
        _settings_of(job),
        state=state,
        problem=problem,
        samples=samples,
        is_counted=sampled.is_all,
        images=round(samples * sampled.images / sampled.samples) if sampled.samples else None,
        sampled_images=sampled.hosts.total(),
        hosts=sampled.busiest(),
        shards=len(bound.shards),
        shards_published=_published(layout, bound.shards) if is_there else 0,
        disk=disk_needs(layout, estimate, counts) if is_written else None,
        choices=tuple(choices_of(job, bound.manifest)),
    )


def _claim_from_outside(layout: OutputLayout, job: Job, dataset: Dataset, before: JobFile | None) -> Claim:
    """What a run does with the output, if its manifest is the one that the output's job had.

    Raises:
        ConfigurationError: It would be refused.
    """
    spec = job.image or own_spec(dataset)
    identity: Identity = {"dataset": job.dataset, **identify_settings(job, spec)}
    if before is not None:
        row_names = {*row_options(dataset.options)}  # of which only those that are set are in an identity
        identity = {**{name: value for name, value in before.identity.items() if name not in row_names}, **identity}
        layout = replace(layout, job_hash=hash_of(before.identity))
    refuse_link(layout, job, dataset)
    starting_over = starting_over_of(layout, job, dataset, spec, has_archives=bool(dataset.archives))
    return judge_claim(layout, identity, settings_of(job, spec), before.shards if before else (), starting_over)


def _state_of(
    layout: OutputLayout, job: Job, shards: Sequence[str], judge: Callable[[], Claim]
) -> tuple[OutputState, str]:
    """What a run would do with an output, and why it would be refused, if so.

    Args:
        layout: The paths of the output.
        job: The job.
        shards: The names of its shards.
        judge: Judges its claim to the output.
    """
    try:
        claim = judge()
        refuse_at_work(layout, no_lock=job.no_lock)
        if claim is not Claim.GOES_ON:
            return _STATES[claim], ""
        is_complete = layout.report.exists() and not unpublished_shards(layout, shards, job.limit)
        record = read_reshard_record(layout)
    except ConfigurationError as error:
        return OutputState.REFUSED, str(error)
    if not is_complete:
        return OutputState.RESUMED, ""
    if record is not None and record.missing_files(layout):
        return OutputState.REPAIRED, ""
    is_as_wanted = record is None or record.plan == reshard_plan(job, find_dataset(job.dataset, job.options))
    return OutputState.COMPLETE if is_as_wanted else OutputState.RESHARDED, ""


def _published(layout: OutputLayout, shards: Iterable[str]) -> int:
    return sum(layout.ledger(shard).exists() for shard in shards)


@dataclass(slots=True)
class _Sampled:
    """The first samples of a manifest.

    Attributes:
        samples: Their number.
        images: The number of their images.
        hosts: How many of these each host has; those that are on this machine are not counted.
        is_all: Whether there are no others.
    """

    samples: int = 0
    images: int = 0
    hosts: Counter[str] = field(default_factory=Counter)
    is_all: bool = False

    def busiest(self) -> tuple[HostShare, ...]:
        """The hosts that have most of the images."""
        most = sorted(self.hosts.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_HOSTS]
        return tuple(HostShare(host, images) for host, images in most)

    def read(self, bound: BoundJob) -> None:
        """Read samples, until there are enough.

        Raises:
            ManifestError: The manifest is damaged, so that the run would stop, too.
        """
        has_places = bound.archives != NO_ARCHIVES  # otherwise a published record may have the same keys
        archive_host = next(map(_host_of, filter(is_url, bound.archives.locations)), "")
        for number, shard in enumerate(bound.manifest.shards()):
            if number == _MAX_SAMPLED_SHARDS:
                return
            for sample in bound.manifest.samples(shard):
                if self.samples == bound.job.limit:
                    break
                if self.images >= _MAX_SAMPLED_IMAGES or sample.content is not None:
                    return
                self.samples += 1
                self.images += len(sample.urls)
                row = sample.row if has_places else {}
                self.hosts.update(filter(None, _hosts_of(sample.urls, row, archive_host)))
        self.is_all = True


def _hosts_of(urls: Iterable[str], row: Row, archive_host: str) -> Iterator[str]:
    """The host of each image of a sample; empty for one that is not requested from any.

    Args:
        urls: The sample's URLs.
        row: What its metadata says of where its images are.
        archive_host: The host of the archives.
    """
    if MEMBER in row:
        yield archive_host
    elif FALLBACK in row:
        yield _host_of(str(row[FALLBACK]))
    elif FILE not in row:
        yield from map(_host_of, urls)


def _host_of(url: str) -> str:
    try:
        return parse_url(url).host
    except BadUrlError:
        return ""
