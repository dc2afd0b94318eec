"""Job: what to do, as a value. Its identity is the part that decides the rows; ``job.json`` keeps both for a retry."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec
import orjson

from datafetch.datasets import find_dataset
from datafetch.errors import ConfigurationError
from datafetch.fetch import MAX_BYTES, FetchPolicy
from datafetch.model.dataset import Dataset
from datafetch.model.fields import check_types, invalid, require_in_range
from datafetch.model.kinds import Payload
from datafetch.model.location import is_remote, is_url, refuse_as_output, without_secrets
from datafetch.model.manifest import Manifest
from datafetch.model.options import DatasetOptions, Effect, Option, OptionGroup, option, options_of, row_options
from datafetch.model.regular_file import open_regular
from datafetch.model.untrusted import is_utf8
from datafetch.monitor.outputs_below import no_output
from datafetch.output.formats import FORMATS
from datafetch.output.merge import DEFAULT_MAX_SAMPLE_BYTES
from datafetch.output.reshard.plan import Plan
from datafetch.output.reshard.ranks import DEFAULT_WORLD_SIZE, GROUP_OF, SHUFFLE_OF, Ranks
from datafetch.store.job_file import FORMAT, Identity, JobFile, not_a_job, read_job_file
from datafetch.store.layout import OutputLayout
from datafetch.store.lock import NO_LOCK
from datafetch.transcode import DEFAULT_MAX_PIXELS, MAX_PROCESSES, RESIZER, Encoding, ImageSpec, Resize

GIB = 1024**3
_OPTIONS_KEY = "choices"  # in job.json, under the name that it has had from the beginning
_MAX_LIMIT = 2**63 - 1
_MAX_SAMPLE_BYTES = 2 * GIB  # a row has less than 4 GiB: these as base64, and its text

_LEAST_PIXELS, _RESIZER = "least_pixels", "resizer"
PIXEL_FIELDS = frozenset({*row_options(ImageSpec()), _LEAST_PIXELS, _RESIZER})
"""The parts of an identity that decide what an image becomes."""

MAX_WORKERS = 255
"""The number of a worker has 8 bits where it is remembered which of them has a result."""

_NoRowEffect = partial(Option, effect=Effect.NONE)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Job:
    """What to do. Validated when created, and picklable.

    Attributes:
        dataset: The name of the dataset.
        source: The folder with the published manifest.
        out: The folder for what the trainer reads, or its place in a bucket, ``s3://BUCKET/FOLDER``. The state folder
            is created next to it.
        ids: A file with the ids of the samples to fetch; None selects those that the dataset selects by itself.
        mirror: The URL of a server that is asked for the source, its archives and the id list instead of those on which
            they are published; empty asks these.
        limit: The number of samples, from the first of the manifest, to fetch; None for all.
        image: What an image becomes; None for the dataset's own specification.
        payload: How a row holds its images.
        fetch: How images are fetched.
        processes: The number of codec processes; None for one per CPU.
        workers: The number of processes that fetch, which share the limits that are set for a run; with 1 it is the
            caller's. None chooses by the number of CPUs.
        memory_bytes: The budget for bodies that wait for the codec.
        max_sample_bytes: The maximum size of all images of a sample together, as they are written; an image that
            exceeds it fails as ``too_large``.
        scratch: The folder for shards in progress; None for the state folder.
        world_size: The number of ranks for which the output is resharded at the end, if the dataset's loader counts
            shards. None leaves the shards and the order of rows as in the manifest.
        fresh: Start over instead of resuming.
        reuse: If the output is that of another job, start over, but take from it the images that this job can use.
        finish_by: When the run is to finish, as a local time if it has no time zone: what has not arrived by then is
            recorded as ``timeout``, and a retry fetches it. None lets the run take as long as it takes. This holds for
            one run, and is not stored.
        no_lock: The operator knows that no other run works on the output. This holds for one run, and is not stored.
        options: The options of the dataset, an instance of its own class; None sets none.
        stored_at: Where the output is, if ``out`` is a working copy of what is in a bucket; set by datafetch itself.
    """

    dataset: str
    source: str
    out: str
    ids: str | None = option(
        None,
        Option(
            help="List of the samples to fetch, plain or gzipped.",
            metavar="FILE",
            unset="none",
            effect=Effect.MANIFEST,
            is_file=True,
        ),
    )
    mirror: str = option(
        "",
        _NoRowEffect(
            help="Ask BASE/HOST/PATH for what is published at https://HOST/PATH, except for images by URL.",
            metavar="BASE",
            unset="none",
        ),
    )
    limit: int | None = option(None, Option(help="Only the first N samples.", metavar="N", unset="all"))
    image: ImageSpec | None = None
    payload: Payload = option(
        Payload.BASE64,
        Option(help="Images in pickle rows: base64 text, or raw bytes.", group=OptionGroup.OUTPUT),
    )
    fetch: FetchPolicy = field(default_factory=FetchPolicy)
    processes: int | None = option(
        None, _NoRowEffect(help="Number of codec processes.", group=OptionGroup.IMAGES, metavar="N", unset="CPU count")
    )
    workers: int | None = option(
        None,
        _NoRowEffect(
            help="Number of processes that fetch, each with an event loop of its own, at most one for each codec "
            "process; auto is one for six CPUs, or for two with --check header. Limits of hosts, memory and the rate "
            "hold for all of them together.",
            group=OptionGroup.NETWORK,
            metavar="N|auto",
            none_word="auto",
        ),
    )
    memory_bytes: int = option(
        GIB,
        _NoRowEffect(
            name="memory",
            help="Budget for bodies that wait for the codec; reading pauses above it.",
            group=OptionGroup.NETWORK,
            is_bytes=True,
        ),
    )
    max_sample_bytes: int = option(
        DEFAULT_MAX_SAMPLE_BYTES,
        Option(
            name="max_sample",
            help="Limit for all images of one sample together; an image that exceeds it fails as too_large.",
            group=OptionGroup.IMAGES,
            effect=Effect.PERMITS,
            is_bytes=True,
        ),
    )
    scratch: str | None = option(
        None,
        _NoRowEffect(
            help="Folder for shards in progress.",
            group=OptionGroup.OUTPUT,
            metavar="DIR",
            unset="in the state folder",
            is_file=True,
        ),
    )
    world_size: int | None = option(
        DEFAULT_WORLD_SIZE,
        _NoRowEffect(
            help="Number of ranks to reshard for.",
            group=OptionGroup.OUTPUT,
            metavar="N",
            unset="none",
            none_flag="--no-reshard",
        ),
    )
    fresh: bool = option(
        False, _NoRowEffect(help="Start over instead of resuming.", group=OptionGroup.BEHAVIOUR, is_of_one_run=True)
    )
    reuse: bool = option(
        False,
        _NoRowEffect(
            help="If settings have changed, start over with the images that are there, and fetch what is missing.",
            group=OptionGroup.BEHAVIOUR,
            is_of_one_run=True,
        ),
    )
    finish_by: datetime | None = option(
        None,
        _NoRowEffect(
            help="Record what has not arrived by then as timeout: HH:MM, 2030-12-31T07:00, or 6h, 90m, 90s from now.",
            group=OptionGroup.BEHAVIOUR,
            metavar="TIME",
            is_time=True,
            is_of_one_run=True,
        ),
    )
    no_lock: bool = option(False, NO_LOCK)
    options: DatasetOptions | None = None
    stored_at: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse invalid values before anything is read."""
        check_types(self)
        require_in_range(self, "limit", 1, _MAX_LIMIT)
        require_in_range(self, "processes", 1, MAX_PROCESSES)
        require_in_range(self, "workers", 1, MAX_WORKERS)
        require_in_range(self, "memory_bytes", 1, MAX_BYTES)
        require_in_range(self, "max_sample_bytes", 1, _MAX_SAMPLE_BYTES)
        if self.world_size is not None:
            Ranks(self.world_size)
        if self.fresh and self.reuse:
            raise invalid(self, "{fresh} fetches everything again, and {reuse} what is missing; give one of them")
        for field_name in ("ids", "scratch"):
            if getattr(self, field_name) == "":  # as of a shell's variable that is not set
                raise invalid(self, f"{{{field_name}}} is empty; give a path, or leave it out")
        if self.mirror and not is_url(self.mirror):
            raise invalid(self, "{mirror} takes a URL that begins with http:// or https://")
        refuse_as_output(self.out)
        for path in (self.source, self.out, self.ids or "", self.scratch or ""):
            if not is_utf8(path):
                raise ConfigurationError(f"paths must be valid UTF-8 (and so the locale), not {path!a}")


def identify(job: Job, manifest: Manifest, spec: ImageSpec) -> Identity:
    """The identity of a job: everything that decides the rows, as JSON values.

    Where the source lies is not part of it, nor is how images are fetched. Nor are permissions: they can add rows, but
    replace none, and the ledger records for each image which ones it needed.
    """
    identity = {
        "format": FORMAT,
        "dataset": job.dataset,
        "shards": {shard.name: [shard.source.name, shard.size, shard.fingerprint] for shard in manifest.shards()},
        "ids": _sha256(Path(job.ids)) if job.ids else None,
        **identify_settings(job, spec),
        **manifest.identity_fields(),
    }
    if spec.min_pixels > 1:
        identity[_LEAST_PIXELS] = spec.min_pixels
    return identity


def identify_settings(job: Job, spec: ImageSpec) -> Identity:
    """The part of a job's identity that follows from options alone, and is known before its manifest is read."""
    unset = {one.name for one in options_of(ImageSpec) if one.option.omitted_if_default and one.is_default_of(spec)}
    of_images = {name: value for name, value in row_options(spec).items() if name not in unset}
    return {**row_options(job), **of_images, **_resizing(spec), **_set_row_options(job.options)}


def _set_row_options(options: DatasetOptions | None) -> dict[str, object]:
    """The options of a dataset that decide the rows and are set, so that new ones don't change older identities."""
    if options is None:
        return {}
    unset = {one.name for one in options_of(type(options)) if one.is_default_of(options)}
    return {name: value for name, value in row_options(options).items() if name not in unset}


def dataset_of(job: Job) -> Dataset:
    """The dataset of a job, with its options.

    Raises:
        ConfigurationError: There is no such dataset, it does not support what the job requests, or an extra that the
            job needs is not installed.
    """
    dataset = find_dataset(job.dataset, job.options)
    if job.image is not None and job.image.shrinks_fast:
        from datafetch.transcode import load_resizer  # noqa: PLC0415 - it loads Pillow

        load_resizer(job.image)
    if job.ids is not None and dataset.id_list is None:
        raise invalid(job, f"{dataset.name} does not take {{ids}}")
    if job.payload not in dataset.payloads:
        raise invalid(job, f"{dataset.name} does not take {{payload:{job.payload}}}; leave it out")
    return dataset


def own_spec(dataset: Dataset) -> ImageSpec:
    """What an image of a dataset becomes unless the job specifies otherwise."""
    return ImageSpec(
        short_side_px=dataset.short_side_px,
        encode=_own_encoding(dataset),
        min_pixels=dataset.min_pixels,
    )


def _own_encoding(dataset: Dataset) -> Encoding:
    if dataset.keeps_bodies:
        return Encoding.RECEIVED
    return Encoding.ORIGINAL if dataset.keeps_originals else Encoding.RECIPE


def inputs_of(job: Job) -> tuple[str, ...]:
    """The places of the files that a job reads, in order."""
    return (job.source,) if job.options is None else job.options.inputs(job.source)


def _resizing(spec: ImageSpec) -> Identity:
    """How images are resized: None if none are; by what, if that is not Pillow."""
    if not spec.resizes:
        return {"resize": None}
    return {"resize": spec.resize, **({_RESIZER: RESIZER} if spec.shrinks_fast else {})}


def shrinks_otherwise(identity: Identity) -> bool:
    """Whether ``--resize fast`` gave other pixels in the version of datafetch that has this identity."""
    return identity.get("resize") == Resize.FAST and identity.get(_RESIZER) != RESIZER


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(identity: Identity) -> str:
    """A hash that distinguishes the spools of one job from those of another."""
    # --max-pixels was part of the identity once; its default is included so that spools of such runs are found.
    hashed = {**identity, "max_pixels": DEFAULT_MAX_PIXELS}
    return hashlib.sha256(orjson.dumps(hashed, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def reshard_plan(job: Job, dataset: Dataset) -> Plan | None:
    """How the output is to be resharded; None if it is not."""
    loader, output_format = dataset.loader, FORMATS[dataset.output_format]
    if job.world_size is None or loader is None or loader not in GROUP_OF or not output_format.can_be_resharded:
        return None
    return Plan(Ranks(job.world_size, group=GROUP_OF[loader]), SHUFFLE_OF[loader])


def settings_of(job: Job, spec: ImageSpec) -> dict[str, Any]:
    """The job as JSON values, for ``retry`` to use; paths are made absolute.

    Args:
        job: The job.
        spec: What an image becomes, also if the job leaves that to the dataset.
    """
    paths = {
        name: None if path is None else _location(path)
        for name, path in (("source", job.source), ("ids", job.ids), ("scratch", job.scratch))
    }
    of_one_run: dict[str, Any] = {one.field: one.default for one in options_of(Job) if one.option.is_of_one_run}
    values = {**asdict(replace(job, image=spec, **of_one_run)), **paths}
    values["mirror"] = without_secrets(job.mirror)
    values["out"] = values.pop("stored_at") or job.out
    options = values.pop("options") or {}
    if isinstance(archive := options.get("archive"), str):
        options["archive"] = _location(archive)
    if inputs := options.get("more_inputs"):
        options["more_inputs"] = [_location(place) for place in inputs]
    return {**values, _OPTIONS_KEY: options}


def _location(location: str) -> str:
    """A location as a file may have it and another working directory reads it: without secrets, or absolute."""
    return without_secrets(location) if is_remote(location) else str(Path(location).absolute())


def read_job(layout: OutputLayout) -> tuple[Job, Identity]:
    """The last job on an output, and its identity.

    Raises:
        ConfigurationError: There is no job, or its file is not of this version.
    """
    file = read_job_file(layout)
    if file is None:
        raise no_output(layout)
    try:
        return job_in(file), file.identity
    except ValueError as error:
        if file.settings is None:
            raise not_a_job(layout) from error
        raise ConfigurationError(
            f"{layout.job} is not a job of this version of datafetch; run the command that started it again"
        ) from error


def job_in(file: JobFile) -> Job:
    """The job with all settings of the last run, as its file has them.

    Raises:
        ValueError: The file is of an earlier version without settings, or some are not of the type of their field.
        ConfigurationError: Some are not allowed.
    """
    if file.settings is None:
        raise ValueError("no settings")
    settings = {**file.settings}
    options = settings.pop(_OPTIONS_KEY, {})
    try:
        image = {**settings["image"]}
        if image.get("resize") is None:  # as earlier versions stored the default
            image.pop("resize", None)
        values = {
            **settings,
            "image": _from_json(ImageSpec, image),
            "fetch": _from_json(FetchPolicy, _without_former_default(settings["fetch"])),
        }
        job = _from_json(Job, values)
        hash_of(file.identity)  # which a value that is nested too deeply does not have
        return replace(job, options=_read_options(job.dataset, options))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error


def _without_former_default(fetch: Mapping[str, object]) -> Mapping[str, object]:
    """The settings of fetching. Earlier versions wrote out how long a server may be silent by default."""
    return {name: value for name, value in fetch.items() if (name, value) != ("stall_timeout_s", 20.0)}


def _read_options(dataset: str, values: Mapping[str, object]) -> DatasetOptions:
    """The options of a dataset. Earlier versions wrote those of all datasets: the unset ones of others are ignored.

    Raises:
        KeyError: An option that the dataset does not have is set.
        ValueError: A value is not of its option's type.
    """
    cls = type(find_dataset(dataset).options)
    own = {one.field for one in options_of(cls)}
    return _from_json(cls, {name: value for name, value in values.items() if name in own or value not in (None, False)})


def _from_json(cls: type[_T], values: Mapping[str, object]) -> _T:
    """An instance of a dataclass. A field that it lacks is refused, unlike by msgspec alone: it may decide rows.

    Raises:
        KeyError: There is such a field.
        ValueError: A value is not of its field's type.
    """
    types = get_type_hints(cls)
    return cls(**{name: msgspec.convert(value, types[name]) for name, value in values.items()})
