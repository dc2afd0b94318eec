"""Which job an output belongs to, and what a job does with what is there.

An output is in one of six states, which its state folder shows:

* unused: it has no ``job.json``. A run may claim it if its folder is empty, or its format allows files of others there.
  If a run with ``reuse`` was killed before it had claimed what it had set aside, only a run of that earlier job may, or
  one that takes images from it, or that starts over.
* of a job: ``job.json`` holds the job's identity, that is, everything that decides the rows. Only a run with the same
  identity may claim it; any other is refused, with the difference named. The settings recorded next to the identity may
  differ from run to run.
* of a job that starts over (``fresh``): everything that datafetch has written is deleted, ``job.json`` last, so that an
  interrupted deletion is continued by the next such run, and then the output is unused.
* of a job that takes files that are there, and now wants other images: its state is deleted as if it started over, and
  the files of its output stay, to be taken.
* of another job whose images this one takes (``reuse``): it is set aside (``set_aside``), and then the output is
  unused.
* of ``datafetch reshard``: it has an ``equal.json`` without a ``job.json``. No run may claim it.

Rules: nothing is deleted or created before it is certain that datafetch made the output. The output's lock is held, so
that no other run works on it (``ownership``).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path

from datafetch.engine.differences import describe_differences, parts_of
from datafetch.engine.disk_estimate import MAX_COUNTED_SHARDS, count_published
from datafetch.engine.earlier_images import may_be_reused
from datafetch.engine.own_files import in_own_format, refuse_other_names, removable_files, shard_files
from datafetch.engine.set_aside import delete_earlier, earlier_outputs, set_aside
from datafetch.errors import ConfigurationError
from datafetch.model.wording import counted
from datafetch.output.formats import format_of
from datafetch.output.reshard.record import ReshardRecord, read_reshard_record
from datafetch.output.stored import can_read_images
from datafetch.store.job_file import Identity, JobFile, read_job_file, write_job_file
from datafetch.store.layout import OutputLayout, folders_of_spools

_log = logging.getLogger(__name__)


class Reuse(Enum):
    """Whether a job takes images from the output of another one that is in its place."""

    IMPOSSIBLE = auto()
    """Its images are not fetched by URL, or those of this output can't be read."""
    POSSIBLE = auto()
    """It could, but was not told to."""
    WANTED = auto()
    """It was told to."""


class Claim(Enum):
    """What a job that claims an output does with what is there."""

    NEW = auto()
    """There is nothing."""
    GOES_ON = auto()
    """The output is the job's already."""
    STARTS_OVER = auto()
    """It is deleted."""
    TAKES_FILES = auto()
    """Its files are taken; its state is deleted."""
    REUSES = auto()
    """It is set aside, and images are taken from it."""


@dataclass(frozen=True, slots=True)
class StartingOver:
    """What a job may do with the output of another one that is in its place.

    Attributes:
        fresh: It deletes what the earlier run has written.
        takes_files: It takes files that are there. So if it only wants other images than the job before, it starts over
            without deleting their files.
        reuse: Whether it takes images from the output, which is then set aside.
    """

    fresh: bool
    takes_files: bool
    reuse: Reuse


def claim_for_job(
    layout: OutputLayout,
    identity: Identity,
    settings: Mapping[str, object],
    shards: Collection[str],
    starting_over: StartingOver,
) -> None:
    """Claim an unused output for a job, or check that it is the job's already. Its lock is held.

    Args:
        layout: The paths of the output.
        identity: The job's identity.
        settings: The job as JSON (``job.settings_of``).
        shards: Names of the shards that are to be fetched.
        starting_over: Whether the job takes the place of another one, and what becomes of what that has left.

    Raises:
        ConfigurationError: The output belongs to another job, or holds files that datafetch has not written.
    """
    claim = judge_claim(layout, identity, settings, shards, starting_over)
    before = read_job_file(layout)
    if starting_over.fresh:
        _start_over(layout)
    elif claim is Claim.TAKES_FILES:
        _log.info("%s: other images are wanted than before; those that are there are taken", layout.out)
        _start_over(layout, keeps_files=True)
    elif claim is Claim.REUSES and before is not None:
        set_aside(layout, before)
    write_job_file(layout, identity, settings)


def judge_claim(
    layout: OutputLayout,
    identity: Identity,
    settings: Mapping[str, object],
    shards: Collection[str],
    starting_over: StartingOver,
) -> Claim:
    """What a claim does with what is in the output; nothing is written. The arguments are those of ``claim_for_job``.

    Raises:
        ConfigurationError: The output belongs to another job, or holds files that datafetch has not written.
    """
    if layout.reshard_record.exists() and not layout.job.exists():
        raise ConfigurationError(
            f"{layout.state_folder} belongs to shards made by 'datafetch reshard'; choose another folder, "
            "or move it away"
        )
    before, reuse = read_job_file(layout), starting_over.reuse
    if before is not None and not can_read_images(in_own_format(layout, before)):
        reuse = Reuse.IMPOSSIBLE
    if before is not None and starting_over.fresh:
        return _judge_removal(layout, before, Claim.STARTS_OVER)
    claim = Claim.NEW if before is None else Claim.GOES_ON
    if before is not None and starting_over.takes_files and _wants_other_images(before.identity, identity):
        claim = Claim.TAKES_FILES
    elif before is not None:  # checked first, or shards of a missing manifest file would be taken for foreign files
        if reuse is Reuse.WANTED and must_start_over(layout, before, identity, settings):
            return _judge_removal(layout, before, Claim.REUSES)
        refuse_other_job(layout, before, identity, settings, reuse)
        for one in (layout, layout.for_repair()):
            refuse_left_spools(one, before.scratch, shards, otherwise="start over with --fresh")
    elif not starting_over.fresh:
        _refuse_other_than_earlier(layout, identity, settings, reuse)
    refuse_foreign_files(layout, identity)
    record = read_reshard_record(layout)
    if record is not None:
        record.refuse_missing_ledgers(layout)
        record.refuse_all_lost(layout)
        _refuse_other_ranks(layout, record, settings["world_size"])
    return claim


def _refuse_other_than_earlier(
    layout: OutputLayout, identity: Identity, settings: Mapping[str, object], reuse: Reuse
) -> None:
    """Check that this run may delete, once it is complete, what a killed one with ``reuse`` had set aside.

    Raises:
        ConfigurationError: The job of what was set aside is another one, and this run takes no images from it.
    """
    latest = next(iter(earlier_outputs(layout)), None)
    if latest is None:
        return
    takes_its_images = reuse is Reuse.WANTED and must_start_over(layout, latest.job, identity, settings)
    if not takes_its_images:
        refuse_other_job(layout, latest.job, identity, settings, reuse)


def _refuse_other_ranks(layout: OutputLayout, record: ReshardRecord, world_size: object) -> None:
    if world_size is None:
        raise ConfigurationError(
            f"{layout.out} is resharded, and --no-reshard can't bring back the shards of the manifest; "
            "leave out --no-reshard, or start over with --reuse or --fresh"
        )
    made_for = record.plan.ranks
    if isinstance(world_size, int) and record.rows < replace(made_for, world_size=world_size).min_rows:
        raise ConfigurationError(
            f"{layout.out} is resharded for {counted(made_for.world_size, 'rank')}, and has too few rows for "
            f"{world_size:,} ({record.rows:,}); give --world-size {made_for.world_size}"
        )


def _judge_removal(layout: OutputLayout, before: JobFile, claim: Claim) -> Claim:
    """Check that nothing but files of datafetch would be deleted or moved.

    Raises:
        ConfigurationError: There are other files too, or files behind a link, which may belong to others.
    """
    _refuse_no_folder(layout)
    removable_files(in_own_format(layout, before), before.identity)
    return claim


def refuse_left_spools(layout: OutputLayout, scratch: Path | None, shards: Collection[str], *, otherwise: str) -> None:
    """Check that no images would be fetched again because this run has another scratch folder than the one before.

    Args:
        layout: The paths for this run.
        scratch: The scratch folder of the earlier run.
        shards: Names of the shards that this run fetches.
        otherwise: What the operator can do instead of giving the same scratch folder again.

    Raises:
        ConfigurationError: The earlier run left spools of these shards in another folder.
    """
    before = replace(layout, scratch=scratch)
    if before.all_spools.resolve() == layout.all_spools.resolve():
        return
    names = {before.spool(shard).name for shard in shards}
    folders = [folder for folder in folders_of_spools(before.spool_folder) if folder.is_dir()]
    if not any(path.name in names for folder in folders for path in folder.iterdir()):
        return
    again = "leave out --scratch" if scratch is None else f"give --scratch {scratch} again"
    raise ConfigurationError(f"images fetched for {layout.out} lie in {before.all_spools}; {again}, or {otherwise}")


def _wants_other_images(before: Identity, now: Identity) -> bool:
    """Whether two jobs differ in nothing but which images of the same archives are wanted."""
    names = {name for name in now | before if before.get(name) != now.get(name)}
    if "images" not in names or names - {"images", "shards"}:
        return False
    contents = [{(part.source, part.fingerprint) for part in parts_of(one).values()} for one in (before, now)]
    return contents[0] == contents[1]


def must_start_over(layout: OutputLayout, before: JobFile, now: Identity, settings: Mapping[str, object]) -> bool:
    """Whether the output of a job that has images for this one can't become its output."""
    if before.dataset != now["dataset"] or not may_be_reused(before.identity, now):
        return False
    needs_manifests_shards = settings["world_size"] is None and layout.reshard_record.exists()
    return needs_manifests_shards or bool(describe_differences(before.identity, now, {}, {}))


def refuse_other_job(
    layout: OutputLayout, before: JobFile, now: Identity, settings: Mapping[str, object], reuse: Reuse
) -> None:
    """Check that two jobs on an output make the same rows.

    Args:
        layout: The paths of the output.
        before: The job that it has.
        now: The identity of the job that is to go on with it.
        settings: The settings of that job.
        reuse: Whether that job could take images from the output.

    Raises:
        ConfigurationError: They differ; the message names the differences.
    """
    differences = describe_differences(before.identity, now, before.settings or {}, settings)
    if not differences:
        return
    again = f"--fresh, which fetches {_images_of(layout, before)} again"
    if before.dataset != now["dataset"]:
        start_over = f"start over with {again}"
    elif reuse is Reuse.IMPOSSIBLE:
        start_over = f"start over with {again} (of such an output nothing can be reused)"
    elif may_be_reused(before.identity, now):
        start_over = f"start over: with --reuse, which takes from it what it can and fetches the rest, or with {again}"
    else:
        start_over = f"start over with {again} (nothing can be reused: its images were encoded by other settings)"
    raise ConfigurationError(
        f"{layout.out} was started with different settings ({differences}); use the same settings, choose another "
        f"folder, or {start_over}"
    )


def _images_of(layout: OutputLayout, job: JobFile) -> str:
    """How many images an output has outcomes of, in words."""
    images = count_published(layout, list(job.shards)).images
    if not images:
        return "all images"
    return f"about {images:,} images" if len(job.shards) > MAX_COUNTED_SHARDS else f"all {images:,} images"


def refuse_foreign_files(layout: OutputLayout, identity: Identity) -> None:
    """Check that a folder of shards holds only files of this job, because the trainer counts every file in it.

    Raises:
        ConfigurationError: It holds another file, or is not a folder.
    """
    _refuse_no_folder(layout)
    if format_of(layout).allows_other_files:
        return
    own_names = {path.name for path in shard_files(layout, identity)} if layout.job.exists() else set()
    refuse_other_names(layout.out, own_names)


def _refuse_no_folder(layout: OutputLayout) -> None:
    if layout.out.exists() and not layout.out.is_dir():
        raise ConfigurationError(f"{layout.out} is not a folder; choose another one")
    if layout.out.is_symlink() and not layout.out.exists():
        raise ConfigurationError(f"{layout.out} is a broken link; create the folder that it points to")


def _start_over(layout: OutputLayout, *, keeps_files: bool = False) -> None:
    """Delete what earlier runs have written; without a job file, nothing is known to be datafetch's.

    Args:
        layout: The paths of the output.
        keeps_files: Whether the files of the output stay, and the directories of the archives that they came from.
    """
    job = read_job_file(layout)
    if job is None:
        delete_earlier(layout)
        return
    files = [] if keeps_files else removable_files(in_own_format(layout, job), job.identity)
    delete_earlier(layout)
    for path in files:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in files} - {layout.out}:
        with suppress(OSError):  # it has other files
            folder.rmdir()
    for folder in (
        layout.ledgers,
        layout.all_spools,
        replace(layout, scratch=job.scratch).all_spools,
        layout.unpublished,
        layout.ready,
        layout.kept_for_retry("").parent,
        layout.image_index_folder,
        *(() if keeps_files else (layout.archives,)),
        layout.scans,
        layout.added,
        layout.before_repair,
        layout.damaged,
        layout.resharding,
        layout.resharded,
        layout.replaced,
        layout.quarantine,
        layout.shard_progress_folder,
        layout.reports,
    ):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (
        layout.retry,
        layout.progress,
        layout.last_stop,
        layout.report,
        layout.reshard_record,
        layout.dropped,
        layout.job,
    ):
        if file.is_dir():
            shutil.rmtree(file)
        file.unlink(missing_ok=True)
