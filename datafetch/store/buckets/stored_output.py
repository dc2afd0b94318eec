"""StoredOutput: an output in a bucket, as the run that holds its lease describes it to the nodes that fetch its shards.

Rules: it has no secrets. The job is read from the bucket, with the login of whoever reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from datafetch.model.checksum import crc32
from datafetch.store.buckets.bucket import Bucket
from datafetch.store.buckets.commit_log import LoggedFile
from datafetch.store.buckets.place import Place
from datafetch.store.layout import OutputLayout


@dataclass(frozen=True, slots=True)
class StoredOutput:
    """An output whose lease is held.

    Attributes:
        location: Its place in the bucket.
        job: What holds the job.
        token: The fencing token of the lease.
        suffixes: The suffixes of a shard's files, in the order in which they are published.
        is_staged: Whether the manifest's shards are no final files, because they are to be resharded.
        scratch: The folder for shards in progress on a node; None is the user's cache folder.
    """

    location: str
    job: LoggedFile
    token: int
    suffixes: tuple[str, ...]
    is_staged: bool
    scratch: str | None

    @property
    def place(self) -> Place:
        """Its place."""
        return Place.of(self.location)


def read_stored_job(stored: StoredOutput, bucket: Bucket) -> bytes | None:
    """The content of ``job.json``; None if the bucket that is found under this name is another one.

    Args:
        stored: The output.
        bucket: The bucket that is found.

    Raises:
        ConfigurationError: The store refuses it, or there is no login.
        ResourceError: The store can't be reached.
    """
    found = bucket.get(stored.job.key)
    return None if found is None or crc32(found.body) != stored.job.crc32 else found.body


def node_name(token: int, number: int) -> str:
    """The name of a node, which no other one ever has: the fencing token, and its number."""
    return f"{token}-{number}"


def spool_name(job_hash: str, shard: str) -> str:
    """The name of a shard's spools."""
    layout = replace(OutputLayout(Path("out")), job_hash=job_hash)
    return layout.spool(shard).relative_to(layout.all_spools).as_posix()
