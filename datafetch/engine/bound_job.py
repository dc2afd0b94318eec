"""A job with its manifest open: what every step of it needs to know before anything is written."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from datafetch.datasets import find_dataset
from datafetch.engine.disk_estimate import DiskEstimate
from datafetch.engine.feed import MAX_OPEN_SAMPLES, MAX_OPEN_SHARDS
from datafetch.engine.job import Job, dataset_of, hash_of, identify, own_spec, reshard_plan, settings_of
from datafetch.engine.ownership import Identity, take_for_job
from datafetch.model.interfaces import Dataset, Manifest
from datafetch.output.merge import Output
from datafetch.output.training_list import keep_published, published_source
from datafetch.store.layout import OutputLayout, resolve_parent
from datafetch.transcode import ImageSpec


@dataclass(frozen=True, slots=True)
class BoundJob:
    """A job, its dataset's manifest, and its output.

    Attributes:
        job: What to do.
        dataset: Its dataset.
        manifest: The dataset bound to the job's source.
        spec: What an image becomes.
        identity: What decides the rows.
        layout: Where everything of the output lies.
    """

    job: Job
    dataset: Dataset
    manifest: Manifest
    spec: ImageSpec
    identity: Identity
    layout: OutputLayout

    @property
    def shards(self) -> list[str]:
        """Names of all shards, in order."""
        return [shard.name for shard in self.manifest.shards()]

    @property
    def output(self) -> Output:
        """How records become rows, and where they go."""
        return Output(self.dataset, self.layout, self.job.payload, max_sample_bytes=self.job.max_sample_bytes)

    def take_output(self, shards: Collection[str]) -> None:
        """Make the output that of this job, or make sure that it is; its lock is held.

        Args:
            shards: Names of the shards that are to be fetched.

        Raises:
            ConfigurationError: It is that of another job, or holds files that are not datafetch's.
        """
        take_for_job(self.layout, self.identity, settings_of(self.job, self.spec), shards, fresh=self.job.fresh)

    def keep_published_list(self) -> None:
        """Keep a copy of the published list, of which the trainer's is made at the end, where there is one."""
        if self.dataset.list_name is not None:
            keep_published(self.layout, self.manifest.shards()[0].source)

    def disk_estimate(self) -> DiskEstimate:
        """What all of the output will take."""
        samples = self.manifest.max_samples()
        if self.job.limit is not None:
            samples = min(samples, self.job.limit)
        plan = reshard_plan(self.job, self.dataset)
        return DiskEstimate(
            samples=samples,
            spec=self.spec,
            payload=self.job.payload,
            is_resharded=plan is not None and samples >= plan.ranks.min_rows,
            open_samples=max(
                samples * MAX_OPEN_SHARDS // max(1, len(self.manifest.shards())), min(samples, MAX_OPEN_SAMPLES)
            ),
        )


def bind(job: Job) -> BoundJob:
    """Open a job's manifest, without writing anything.

    Raises:
        DatafetchError: The job or its manifest is wrong.
    """
    dataset = dataset_of(job)
    manifest = dataset.bind(_source_of(job, dataset), Path(job.ids) if job.ids else None)
    spec = job.image or own_spec(dataset)
    identity = identify(job, manifest, spec)
    return BoundJob(job, dataset, manifest, spec, identity, layout_of(Path(job.out), job, identity))


def layout_of(out: Path, job: Job, identity: Identity) -> OutputLayout:
    """Where everything of an output lies, also when the folder that a command stands in is moved under its feet."""
    return OutputLayout(
        resolve_parent(out),
        resolve_parent(Path(job.scratch)) if job.scratch else None,
        hash_of(identity),
        find_dataset(job.dataset).output_format,
    )


def _source_of(job: Job, dataset: Dataset) -> Path:
    source = Path(job.source)
    if dataset.list_name is None:
        return source
    return published_source(OutputLayout(resolve_parent(Path(job.out))), source, dataset.list_name)
