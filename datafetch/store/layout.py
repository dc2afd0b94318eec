"""The state folder: what a run knows, beside what it leaves.

Rules: it is the sibling ``<out>.datafetch`` of the output, because the trainer counts the files of the output folder.
Paths are made here and nowhere else.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from datafetch.errors import ConfigurationError

SUFFIX = ".datafetch"


@dataclass(frozen=True, slots=True)
class OutputLayout:
    """Where everything of one output lies.

    Attributes:
        out: What the trainer reads, and nothing else.
        scratch: Where spools lie; None puts them into the state folder.
        job_hash: Of what decides the rows. A spool of another job is never taken for one of this job.
        output_format: The name of the format of what lies in ``out``.
    """

    out: Path
    scratch: Path | None = None
    job_hash: str = ""
    output_format: str = "pickle"

    @property
    def folder(self) -> Path:
        """The state folder."""
        return self.out.with_name(self.out.name + SUFFIX)

    @property
    def job(self) -> Path:
        """What the run is."""
        return self.folder / "job.json"

    @property
    def report(self) -> Path:
        """What the last run did."""
        return self.folder / "report.json"

    @property
    def lock(self) -> Path:
        """Held by the run that works on this output, or by all processes that fetch shards of it."""
        return self.folder / "lock"

    @property
    def shard_locks(self) -> Path:
        """Says which process fetches which shards, where several do."""
        return self.folder / "shards.lock"

    @property
    def real_lock(self) -> Path | None:
        """Held by a run that names the folder which this output is a link to; None where it is none."""
        real = self.out.resolve()
        return OutputLayout(real).lock if real.name and real != self.out else None

    @property
    def progress(self) -> Path:
        """How the run that is at work stands; seconds old while it is."""
        return self.folder / "progress.json"

    @property
    def shard_progress_folder(self) -> Path:
        """The folder of ``shard_progress``; there from when shards are fetched apart to the next run."""
        return self.folder / "progress"

    def shard_progress(self, first_shard: str) -> Path:
        """How a process that fetches some of the shards stands, named by the first of them."""
        return self.shard_progress_folder / f"{first_shard}.json"

    @property
    def retry(self) -> Path:
        """What the retry that is under way tries again; there until it is complete."""
        return self.folder / "retry.json"

    @property
    def unpublished(self) -> Path:
        """Where files are written before they are published. What lies here counts for nothing."""
        return self.folder / "unpublished"

    @property
    def ready(self) -> Path:
        """Where a shard's files lie once they are complete, until each is in its place: a folder a shard."""
        return self.folder / "ready"

    def failed(self, shard: str) -> Path:
        """Samples of a published shard with a failed image, and their other images, for ``retry``; a spool."""
        return self.folder / "failed" / f"{shard}.spool"

    @property
    def saved_folder(self) -> Path:
        """The folder of ``saved``; there if and only if the output holds files."""
        return self.folder / "saved"

    def saved(self, shard: str) -> Path:
        """Which files of the output are those of a published shard, where the output holds files."""
        return self.saved_folder / f"{shard}.files"

    @property
    def published_list(self) -> Path:
        """Where the published JSON list is kept, under its own name, of which the trainer's list is a part."""
        return self.folder / "published"

    @property
    def dropped(self) -> Path:
        """Which records of the published list are not in the trainer's, and why; a line of JSON each."""
        return self.folder / "dropped.jsonl"

    @property
    def added(self) -> Path:
        """Where rows that a retry brought wait to be made part of the equal shards."""
        return self.folder / "added"

    @property
    def resharding(self) -> Path:
        """Where equal shards are being made."""
        return self.folder / "resharding"

    @property
    def resharded(self) -> Path:
        """Where equal shards lie once they are complete, until they are the output."""
        return self.folder / "resharded"

    @property
    def replaced(self) -> Path:
        """Where an output lies that equal shards take the place of, until they have."""
        return self.folder / "replaced"

    @property
    def equal(self) -> Path:
        """What the equal shards in the output are made of, and how; there if and only if they are."""
        return self.folder / "equal.json"

    @property
    def quarantine(self) -> Path:
        """Where bodies that ended a codec process are kept for a look."""
        return self.folder / "quarantine"

    @property
    def ledgers(self) -> Path:
        """The folder of the ledgers."""
        return self.folder / "ledger"

    def ledger(self, shard: str) -> Path:
        """The ledger of a published shard."""
        return self.ledgers / f"{shard}.parquet"

    @property
    def all_spools(self) -> Path:
        """The folder of all jobs' spools; under a shared scratch its name tells outputs of the same name apart."""
        if self.scratch is None:
            return self.folder / "spool"
        whose = hashlib.sha256(os.fsencode(self.out.absolute())).hexdigest()[:12]
        return self.scratch / f"{self.folder.name}-{whose}"

    def forget_spools(self) -> None:
        """Leave no empty folders where spools lay; those of other jobs stay."""
        for folder in (self.spool("").parent, self.all_spools):
            with suppress(OSError):  # there is something in it, or it is not there
                folder.rmdir()

    def spool(self, shard: str) -> Path:
        """The spool of a shard in progress."""
        return self.all_spools / self.job_hash / f"{shard}.spool"


def resolve_parent(path: Path) -> Path:
    """The same place by a path that holds wherever one stands, even in a folder that is moved.

    A link at its end stays one: the state lies beside it, and not beside what it leads to.
    """
    path = path.absolute()
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def output_of(path: Path) -> Path:
    """The output folder that a path names, be it by its state folder, as an absolute path.

    Raises:
        ConfigurationError: It has no name.
    """
    out = resolve_parent(path)
    if not out.name:
        raise ConfigurationError(f"there is no run in {out}; give the folder that a run writes to")
    if out.name.endswith(SUFFIX) and out.name != SUFFIX and not OutputLayout(out).folder.exists():
        return out.with_name(out.name.removesuffix(SUFFIX))
    return out
