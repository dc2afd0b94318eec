"""The state folder: what a run knows, beside what it leaves.

Rules: it is the sibling ``<out>.datafetch`` of the output, because the trainer counts the files of the output folder.
Paths are made here and nowhere else.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".datafetch"


@dataclass(frozen=True, slots=True)
class State:
    """Where everything of one output lies.

    Attributes:
        out: What the trainer reads, and nothing else.
        scratch: Where spools lie; None puts them into the state folder.
        job_hash: Of what decides the rows. A spool of another job is never taken for one of ours.
    """

    out: Path
    scratch: Path | None = None
    job_hash: str = ""

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
        """Held by the run that works on this output."""
        return self.folder / "lock"

    @property
    def unpublished(self) -> Path:
        """Where files are written before they are published; on the same filesystem as the output."""
        return self.folder / "unpublished"

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

    def spool(self, shard: str) -> Path:
        """The spool of a shard in progress."""
        return self.all_spools / self.job_hash / f"{shard}.spool"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step, on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(content)
    publish(unfinished, path)


def publish(unfinished: Path, final: Path) -> None:
    """Move a complete file to its place in one step; file and name are on disk when this returns."""
    _sync(unfinished)
    unfinished.replace(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
