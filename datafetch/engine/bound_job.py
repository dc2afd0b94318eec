"""BoundJob: a job with its manifest opened, and everything that follows from the two before anything is written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from datafetch.datasets import find_dataset
from datafetch.datasets.sources.hub import is_hub
from datafetch.engine.archives import NO_ARCHIVES, Archives, images_in_place, open_archives
from datafetch.engine.claim import Claim, Reuse, StartingOver, claim_for_job, judge_claim
from datafetch.engine.completeness import refuse_missing_files, restore_missing_files
from datafetch.engine.disk_estimate import DiskEstimate
from datafetch.engine.feed import MAX_OPEN_SAMPLES, MAX_OPEN_SHARDS
from datafetch.engine.job import Job, dataset_of, hash_of, identify, own_spec, reshard_plan, settings_of
from datafetch.engine.list_inputs import OpenInputs, open_inputs
from datafetch.engine.published import download_file, download_source, find_published
from datafetch.engine.remote_files import open_remote
from datafetch.engine.scan_cache import CacheFolderScans, StateFolderCache
from datafetch.engine.web_download import policy_for_files
from datafetch.engine.workers.budgets import policy_of_reader
from datafetch.errors import ConfigurationError, ManifestError
from datafetch.fetch import FetchPolicy
from datafetch.fetch.receive_rate import ReceiveRate, rate_of
from datafetch.model.dataset import Dataset
from datafetch.model.kinds import CounterName
from datafetch.model.location import at_mirror
from datafetch.model.manifest import Manifest, RemoteFile
from datafetch.model.untrusted import short_repr
from datafetch.output.merge import Output
from datafetch.output.stored import can_read_images
from datafetch.output.training_list import keep_made, keep_published, published_source, refuse_other_list
from datafetch.process.threads import run_in_thread
from datafetch.store.job_file import Identity
from datafetch.store.layout import OutputLayout, resolve_parent
from datafetch.transcode import Encoding, ImageSpec

_LEFT_OUT = frozenset({CounterName.BAD_LINES, CounterName.FILTERED, CounterName.REPEATED_IDS})


@dataclass(frozen=True, slots=True)
class BoundJob:
    """A job with its manifest and its output.

    Attributes:
        job: What to do.
        dataset: The dataset, with its options.
        manifest: The dataset bound to the job's source.
        spec: What an image becomes.
        identity: Everything that decides the rows.
        layout: The paths of the output.
        archives: The archives that images are members of.
        source: The folder or file of the manifest; None if it is read from inputs.
        rate: The cap that reading the manifest and fetching images share; None if they don't overlap.
    """

    job: Job
    dataset: Dataset
    manifest: Manifest
    spec: ImageSpec
    identity: Identity
    layout: OutputLayout
    archives: Archives
    source: Path | None
    rate: ReceiveRate | None = None

    @property
    def shards(self) -> list[str]:
        """The names of all shards, in order."""
        return [shard.name for shard in self.manifest.shards()]

    @property
    def image_root(self) -> Path | None:
        """The folder with the images that the dataset's records name; None if they are fetched."""
        return self.archives.unpacked if self.archives.is_in_place else None

    @property
    def output(self) -> Output:
        """How records become rows, and where they go."""
        return Output(
            self.dataset,
            self.layout,
            self.job.payload,
            max_sample_bytes=self.job.max_sample_bytes,
            replaces_files=self.job.fresh or not self.dataset.adopts_files,
        )

    def claim_output(self, shards: Collection[str], *, is_whole: bool = False) -> None:
        """Claim an unused output for this job, or check that it is this job's already. Its lock is held.

        Args:
            shards: Names of the shards that are to be fetched.
            is_whole: Whether no other process is at work on the output.

        Raises:
            ConfigurationError: The output belongs to another job, or holds files that datafetch has not written.
        """
        refuse_link(self.layout, self.job, self.dataset)
        if not is_whole:  # only a whole run makes them again
            refuse_missing_files(self.layout)
        claim_for_job(
            self.layout,
            self.identity,
            settings_of(self.job, self.spec),
            shards,
            self._starting_over(is_whole=is_whole),
        )
        if is_whole:
            restore_missing_files(self.layout)

    def judge_claim(self) -> Claim:
        """What a run would do with what is in the output; nothing is written, so its lock need not be held.

        Raises:
            ConfigurationError: As ``claim_output``.
        """
        refuse_link(self.layout, self.job, self.dataset)
        settings = settings_of(self.job, self.spec)
        return judge_claim(self.layout, self.identity, settings, self.shards, self._starting_over(is_whole=True))

    def _starting_over(self, *, is_whole: bool) -> StartingOver:
        has_archives = bool(self.archives.locations or self.archives.unpacked)
        found = starting_over_of(self.layout, self.job, self.dataset, self.spec, has_archives=has_archives)
        return replace(found, takes_files=is_whole and found.takes_files)

    def keep_manifest(self) -> None:
        """Keep in the state folder what is needed of the manifest later.

        That is directories of archives, the JSON list, and, from now on, what scans of the manifest find.
        """
        self.manifest.keep_scans(StateFolderCache(self.layout))
        self.archives.keep(self.layout)
        name = self.dataset.list_name
        if name is not None and self.dataset.makes_list:
            keep_made(self.layout, name, self.manifest.write_list)
        elif name is not None and self.source is not None:
            keep_published(self.layout, _list_in(self.source, name))

    def disk_estimate(self) -> DiskEstimate:
        """What the whole output will take of the disk."""
        samples = 0 if self.image_root is not None else self.manifest.max_samples()  # its images are there
        return estimate_disk(self.job, self.dataset, samples, len(self.manifest.shards()))


def starting_over_of(
    layout: OutputLayout, job: Job, dataset: Dataset, spec: ImageSpec, *, has_archives: bool
) -> StartingOver:
    """What a whole run may do with the output of another job that is in its place.

    Args:
        layout: The paths of the output.
        job: The job.
        dataset: Its dataset.
        spec: What an image becomes.
        has_archives: Whether images are taken from archives, and not fetched by URL.
    """
    reuse = Reuse.WANTED if job.reuse else Reuse.POSSIBLE
    if has_archives or dataset.makes_list or not can_read_images(layout):
        reuse = Reuse.IMPOSSIBLE
    is_comparable = dataset.adopts_files and spec.encode is Encoding.RECEIVED
    return StartingOver(job.fresh, is_comparable or dataset.image_root is not None, reuse)


def refuse_link(layout: OutputLayout, job: Job, dataset: Dataset) -> None:
    """Check that starting over deletes nothing behind a link.

    Raises:
        ConfigurationError: It would.
    """
    if dataset.adopts_files and job.fresh and layout.out.is_symlink():
        raise ConfigurationError(
            f"{layout.out} is a symbolic link, and --fresh would delete what it leads to; replace it by a folder, or "
            "leave out --fresh"
        )


def estimate_disk(job: Job, dataset: Dataset, samples: int, shards: int) -> DiskEstimate:
    """What an output will take of the disk.

    Args:
        job: What to do.
        dataset: Its dataset.
        samples: The maximum number of samples of its manifest.
        shards: The number of its shards.
    """
    samples = samples if job.limit is None else min(samples, job.limit)
    plan = reshard_plan(job, dataset)
    return DiskEstimate(
        samples=samples,
        spec=job.image or own_spec(dataset),
        payload=job.payload,
        is_resharded=plan is not None and samples >= plan.ranks.min_rows,
        open_samples=max(samples * MAX_OPEN_SHARDS // max(1, shards), min(samples, MAX_OPEN_SAMPLES)),
    )


@asynccontextmanager
async def bind(job: Job, policy: FetchPolicy | None = None) -> AsyncIterator[BoundJob]:
    """Open the manifest of a job, without writing anything to the output.

    Args:
        job: The job.
        policy: With what limits files are fetched and the manifest is read; None takes the job's.

    Yields:
        The job with its manifest; the manifest can be read until the context ends.

    Raises:
        DatafetchError: The job or its manifest is wrong.
    """
    if not isinstance(job, Job):
        raise ConfigurationError(f"a Job is needed, not {short_repr(job)}; write Job(dataset=…, source=…, out=…)")
    dataset = await run_in_thread(dataset_of, job)
    limited = replace(job, fetch=policy or job.fetch)
    if is_hub(job.source) and dataset.reads_in_place:
        place, names = await find_published(limited, dataset)
        ids = await _download_ids(limited)
        rate = rate_of(policy_of_reader(limited))  # the manifest is read while images are fetched
        async with open_remote(policy_for_files(limited), rate) as remote:
            for name in names:
                remote.add_of_hub(place, name, job.mirror)
            reading = replace(job, ids=ids)
            bound = await run_in_thread(_bind, job, reading, dataset, NO_ARCHIVES, remote.files, on_cancel=remote.close)
            yield replace(bound, rate=rate)
        return
    if dataset.takes_inputs:
        rate = rate_of(policy_of_reader(limited))
        async with open_inputs(limited, dataset, rate) as inputs:
            bound = await run_in_thread(_bind_inputs, job, dataset, inputs, on_cancel=inputs.close)
            yield replace(bound, rate=rate if inputs.are_remote else None)
        return
    reading = replace(job, source=await download_source(limited, dataset), ids=await _download_ids(limited))
    layout = await run_in_thread(lambda: OutputLayout(resolve_parent(Path(job.out))))
    if not dataset.archives:
        root = dataset.image_root
        archives = NO_ARCHIVES if root is None else images_in_place(layout, root)
        yield await run_in_thread(_bind, job, reading, dataset, archives)
        return
    location = at_mirror(await run_in_thread(dataset.archive_location, job.source), job.mirror)
    async with open_archives(dataset, location, layout, limited.fetch, fresh=job.fresh) as archives:
        yield await run_in_thread(_bind, job, reading, dataset, archives)


async def _download_ids(job: Job) -> str | None:
    return None if job.ids is None else str(await download_file(job.ids, job))


def _bind(job: Job, reading: Job, dataset: Dataset, archives: Archives, remote: Sequence[RemoteFile] = ()) -> BoundJob:
    """Bind a job; it is read from the paths that ``reading`` has, or from files on a server."""
    _refuse_output_as_source(job, archives)
    listed = _source_of(reading, dataset)
    if dataset.list_name is not None and not job.fresh:
        published = None if dataset.makes_list else _list_in(listed, dataset.list_name)
        refuse_other_list(OutputLayout(resolve_parent(Path(job.out))), published, dataset.list_name)
    source = listed
    if dataset.archives and listed != Path(reading.source):  # the archive and all else still lie where the list was
        dataset, source = dataset.with_kept_list(listed), Path(reading.source)
    ids = Path(reading.ids) if reading.ids else None
    if archives.copies:
        manifest = dataset.bind_archives(source, archives.copies)
    elif remote:
        manifest = dataset.bind_in_place(remote, ids)
    else:
        manifest = dataset.bind(source, ids)
    spec = job.image or own_spec(dataset)
    identity = identify(reading, manifest, spec)
    layout = layout_of(Path(job.out), job, identity)
    if job.ids and (job.fresh or not layout.job.exists()):
        _refuse_foreign_ids(job.source, job.ids, manifest)
    return BoundJob(job, dataset, manifest, spec, identity, layout, archives, listed)


def _bind_inputs(job: Job, dataset: Dataset, inputs: OpenInputs) -> BoundJob:
    """Bind a job that takes inputs. What earlier runs found in them is used before anything of this one is written."""
    manifest = dataset.bind_inputs(inputs.files, inputs.refuse_closed)
    manifest.keep_scans(CacheFolderScans(OutputLayout(resolve_parent(Path(job.out)))))
    spec = job.image or own_spec(dataset)
    identity = identify(job, manifest, spec)
    layout = layout_of(Path(job.out), job, identity)
    return BoundJob(job, dataset, manifest, spec, identity, layout, NO_ARCHIVES, source=None)


def _refuse_foreign_ids(source: str, ids: str, manifest: Manifest) -> None:
    """Check that the manifest has at least one of the listed ids, before an output is begun, or an earlier one deleted.

    Files are scanned up to the first one that has some: hardly ever more than one, unless the list is of something
    else. Records that have a listed id and are left out for another reason count, too.

    Raises:
        ManifestError: It has none.
    """
    for shard in manifest.shards():
        samples = manifest.samples(shard)
        if len(samples) or not _LEFT_OUT.isdisjoint(samples.notes):
            return
    raise ManifestError(
        f"{source} has none of the {manifest.max_samples():,} ids of {ids}; one of the two is of another dataset"
    )


def _refuse_output_as_source(job: Job, archives: Archives) -> None:
    """Check that starting over deletes nothing of the folder that is read.

    Raises:
        ConfigurationError: It would.
    """
    if not job.fresh or archives.unpacked is None or archives.is_in_place:
        return
    source, out = archives.unpacked.resolve(), Path(job.out).resolve()
    if source.is_relative_to(out) or out.is_relative_to(source):
        raise ConfigurationError(
            f"{archives.unpacked} is read and {job.out} is written, and one is in the other, so --fresh would delete "
            "what is to be read; leave out --fresh, or give another --source"
        )


def layout_of(out: Path, job: Job, identity: Identity) -> OutputLayout:
    """The paths of an output, absolute, so that they still hold when the working directory is moved."""
    return OutputLayout(
        resolve_parent(out),
        resolve_parent(Path(job.scratch)) if job.scratch else None,
        hash_of(identity),
        find_dataset(job.dataset, job.options).output_format,
    )


def _list_in(source: Path, name: str) -> Path:
    return source / name if source.is_dir() else source


def _source_of(job: Job, dataset: Dataset) -> Path:
    source = Path(job.source)
    if dataset.list_name is None or dataset.makes_list:
        return source
    return published_source(OutputLayout(resolve_parent(Path(job.out))), source, dataset.list_name)
