"""The paths of an output and of its state folder.

Rules: the state folder is ``<out>.datafetch``, next to the output and not inside it, because the trainer counts the
files of the output folder. Everything that lies directly in the state folder is named here. Files of shards are named
by their format, and what lies within a folder that a single module reads and writes, such as the journal of a reshard,
is named by that module.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from datafetch.errors import ConfigurationError

SUFFIX = ".datafetch"
_LIST_SUFFIX = ".json"
_WORKER_PREFIX = "worker-"


@dataclass(frozen=True, slots=True)
class OutputLayout:
    """The paths of one output.

    Attributes:
        out: The output folder, which holds what the trainer reads and nothing else.
        scratch: The folder for spools; None puts them into the state folder.
        job_hash: Hash of everything that decides the rows, so that a spool of a different job is never used for this
            one.
        output_format: Name of the format of the files in ``out`` (``datafetch.output.formats``).
    """

    out: Path
    scratch: Path | None = None
    job_hash: str = ""
    output_format: str = "pickle"

    @property
    def state_folder(self) -> Path:
        """The state folder."""
        return self.out.with_name(self.out.name + SUFFIX)

    @property
    def job(self) -> Path:
        """The settings of the run."""
        return self.state_folder / "job.json"

    @property
    def report(self) -> Path:
        """The report of the last run that did something."""
        return self.state_folder / "report.json"

    @property
    def reports(self) -> Path:
        """The folder of the reports before it, named by time."""
        return self.state_folder / "reports"

    @property
    def lock(self) -> Path:
        """Held by the run that works on this output, or by all processes that fetch shards of it."""
        return self.state_folder / "lock"

    @property
    def shard_locks(self) -> Path:
        """The lock file by which several processes that fetch shards of this output keep off each other's."""
        return self.state_folder / "shards.lock"

    @property
    def real_lock(self) -> Path | None:
        """The lock of a run that uses the folder that this output is a link to; None if it is not a link."""
        real = self.out.resolve()
        return OutputLayout(real).lock if real.name and real != self.out else None

    @property
    def progress(self) -> Path:
        """The progress of the current run, which updates it every few seconds."""
        return self.state_folder / "progress.json"

    @property
    def shard_progress_folder(self) -> Path:
        """The folder of ``shard_progress``, created by processes that fetch some of the shards; a run deletes it."""
        return self.state_folder / "progress"

    def shard_progress(self, first_shard: str) -> Path:
        """The progress of a process that fetches only some of the shards, of which this is the first."""
        return self.shard_progress_folder / f"{first_shard}.json"

    @property
    def cluster(self) -> Path:
        """The nodes of a cluster that fetch shards of this output, as the run that steers them sees them."""
        return self.state_folder / "cluster.json"

    @property
    def retry(self) -> Path:
        """The settings of the retry in progress; the file exists until the retry is complete."""
        return self.state_folder / "retry.json"

    @property
    def unpublished(self) -> Path:
        """The folder for files that are being written. Its content is discarded after an interruption."""
        return self.state_folder / "unpublished"

    @property
    def last_stop(self) -> Path:
        """Why the last run or retry stopped; deleted when the next one begins."""
        return self.state_folder / "stopped.json"

    @property
    def ready(self) -> Path:
        """The folder for the complete files of committed shards, a folder for each, until they are published."""
        return self.state_folder / "ready"

    def kept_for_retry(self, shard: str) -> Path:
        """A spool of a published shard's samples with a failed image, and of their other images, for a retry."""
        return self.state_folder / "failed" / f"{shard}.spool"

    @property
    def image_index_folder(self) -> Path:
        """The folder of ``image_index``; it exists if and only if the output holds images as files."""
        return self.state_folder / "saved"

    def image_index(self, shard: str) -> Path:
        """The list of a published shard's image files, if the output holds images as files."""
        return self.image_index_folder / f"{shard}.files"

    @property
    def published_list(self) -> Path:
        """The folder for a copy of the dataset's published JSON list, from which the trainer's list is made."""
        return self.state_folder / "published"

    @property
    def archives(self) -> Path:
        """The folder for copies of the directories of the archives that the images are members of."""
        return self.state_folder / "archives"

    @property
    def scans(self) -> Path:
        """The folder for what was found in manifest files that are read on a server, until the run is complete."""
        return self.state_folder / "scans"

    @property
    def dropped(self) -> Path:
        """JSON lines: the records of the published list that the trainer's list lacks, each with the reason."""
        return self.state_folder / "dropped.jsonl"

    @property
    def added(self) -> Path:
        """The folder for shards of rows that a retry added, until the output is resharded again to contain them."""
        return self.state_folder / "added"

    @property
    def damaged(self) -> Path:
        """The folder for resharded files that a repair has replaced although something was there."""
        return self.state_folder / "damaged"

    @property
    def before_repair(self) -> Path:
        """The folder for what an unfinished repair replaces, a folder for each shard."""
        return self.state_folder / "before-repair"

    @property
    def resharding(self) -> Path:
        """The folder in which the shards of an unfinished reshard are written."""
        return self.state_folder / "resharding"

    @property
    def resharded(self) -> Path:
        """The folder for complete resharded files, until they have become the output."""
        return self.state_folder / "resharded"

    @property
    def replaced(self) -> Path:
        """The old output while resharded files replace it."""
        return self.state_folder / "replaced"

    @property
    def previous(self) -> Path:
        """The folder of earlier outputs, one in each folder, until a run that takes images from them is complete."""
        return self.state_folder / "previous"

    @property
    def reshard_record(self) -> Path:
        """How the output was resharded and from what; exists if and only if it was."""
        return self.state_folder / "equal.json"

    @property
    def quarantine(self) -> Path:
        """The folder for response bodies that crashed a codec process, kept for inspection."""
        return self.state_folder / "quarantine"

    @property
    def ledgers(self) -> Path:
        """The folder of the ledgers."""
        return self.state_folder / "ledger"

    def ledger(self, shard: str) -> Path:
        """The ledger of a published shard."""
        return self.ledgers / f"{shard}.parquet"

    @property
    def all_spools(self) -> Path:
        """The folder for the spools of all jobs; in a shared scratch folder its name is unique to the output."""
        if self.scratch is None:
            return self.state_folder / "spool"
        path_hash = hashlib.sha256(os.fsencode(self.out.absolute())).hexdigest()[:12]
        return self.scratch / f"{self.state_folder.name}-{path_hash}"

    @property
    def spool_folder(self) -> Path:
        """The folder for the spools of this job."""
        return self.all_spools / self.job_hash

    def remove_empty_spool_folders(self) -> None:
        """Remove the spool folders if they are empty; the spools of other jobs stay."""
        for folder in (*reversed(folders_of_spools(self.spool_folder)), self.all_spools):
            with suppress(OSError):  # it is not empty, or does not exist
                folder.rmdir()

    def spool(self, shard: str) -> Path:
        """The spool of a shard in progress, to which the process writes that has its manifest."""
        return self.spool_folder / f"{shard}.spool"

    def worker_spool(self, shard: str, worker: int) -> Path:
        """The spool of a shard in progress to which a worker process writes, by the worker's number."""
        return self.spool_folder / f"{_WORKER_PREFIX}{worker}" / f"{shard}.spool"

    def spools(self, shard: str) -> list[Path]:
        """All spools of a shard that exist; together they have its results."""
        paths = (folder / self.spool(shard).name for folder in folders_of_spools(self.spool_folder))
        return [path for path in paths if path.exists()]

    def delete_spools(self, shard: str) -> None:
        """Delete all spools of a shard."""
        for path in self.spools(shard):
            path.unlink(missing_ok=True)

    def for_retry(self, number: int, token: str) -> OutputLayout:
        """The paths of the same output, with spools that belong to one retry alone."""
        return replace(self, job_hash=f"{self.job_hash}-retry-{number}-{token}")

    def for_repair(self) -> OutputLayout:
        """The paths of the same output, with spools for its lost rows."""
        return replace(self, job_hash=f"{self.job_hash}-repair")

    @property
    def repair_token(self) -> Path:
        """What makes the spools of a repair its own; random bytes."""
        return self.spool_folder / "token"

    def retry_spools(self) -> list[Path]:
        """The folders with spools of retries, of this one or of earlier ones."""
        return list(self.all_spools.glob(f"{self.job_hash}-retry-*"))


def folders_of_spools(folder: Path) -> list[Path]:
    """The folders in which the spools of one job may lie: its own, and those of worker processes in it."""
    return [folder, *sorted(folder.glob(f"{_WORKER_PREFIX}*/"))]


def resolve_parent(path: Path) -> Path:
    """The absolute path of an output, with all links resolved but one at its end.

    A final link is kept because the state folder is next to the link, and not next to its target.
    """
    path = path.absolute()
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def output_of(path: Path) -> Path:
    """The output folder, as an absolute path, for the path of an output folder or of its state folder.

    A training list whose images are elsewhere has a state folder and no output folder, and may be given itself.

    Raises:
        ConfigurationError: The path has no final component, such as ``/``.
    """
    out = resolve_parent(path)
    if not out.name:
        raise ConfigurationError(f"there is no run in {out}; give the folder that a run writes to")
    if out.name.endswith(SUFFIX) and out.name != SUFFIX and not OutputLayout(out).state_folder.exists():
        return out.with_name(out.name.removesuffix(SUFFIX))
    if out.suffix == _LIST_SUFFIX and OutputLayout(out.with_suffix("")).job.exists():  # of a list without a folder
        return out.with_suffix("")
    return out
