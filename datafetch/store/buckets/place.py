"""Where an output in a bucket lies: the prefixes of its keys, and its working copies on this machine.

Rules: keys are named like the files of a local output: those of the trainer's files begin with the output's location,
and all others with that and ``.datafetch``, next to it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from datafetch.errors import ConfigurationError
from datafetch.model.location import is_bucket, without_secrets
from datafetch.store.downloads import cache_folder
from datafetch.store.layout import SUFFIX

_UNSAFE = re.compile(r"[^\w.-]+", re.ASCII)
_MAX_NAME_CHARS = 80
_OWN_KEY = re.compile(r"(?:.*/)?(\d+)-\d+(?:-\d+)?/[^/]+")  # below the prefix of the state folder
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class Place:
    """An output in a bucket.

    Attributes:
        bucket: The name of the bucket.
        path: The output's own part of the location, without slashes at its ends.
    """

    bucket: str
    path: str

    @classmethod
    def of(cls, location: str) -> Place:
        """The place of an output, for its location or that of its state folder.

        Raises:
            ConfigurationError: It is no such location.
        """
        if not is_bucket(location):
            raise ConfigurationError(f"{without_secrets(location)} is no place in a bucket; give s3://BUCKET/FOLDER")
        bucket, _, path = location.partition("://")[2].partition("/")
        if "@" in bucket:
            raise ConfigurationError(
                "an output takes no credentials in its location; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "AWS_PROFILE, or give this machine a role"
            )
        parts = path.strip("/").split("/")
        if not _BUCKET.fullmatch(bucket) or not all(parts) or {".", ".."} & set(parts) or "?" in path or "#" in path:
            raise ConfigurationError(
                f"{without_secrets(location)} is no place for an output; give s3://BUCKET/FOLDER, with the name of a "
                "bucket (three characters or more) and plain names of folders"
            )
        return cls(bucket, "/".join(parts).removesuffix(SUFFIX))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.path}"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def out_prefix(self) -> str:
        """What the keys of the trainer's files begin with."""
        return f"{self.path}/"

    @property
    def state_prefix(self) -> str:
        """What all other keys begin with."""
        return f"{self.path}{SUFFIX}/"

    @property
    def lease(self) -> str:
        """The key of the lease."""
        return f"{self.state_prefix}lock"

    @property
    def log_prefix(self) -> str:
        """What the keys of the commit log begin with."""
        return f"{self.state_prefix}log/"

    @property
    def spool_prefix(self) -> str:
        """What the keys of segments of spools begin with."""
        return f"{self.state_prefix}spool/"

    def final_key(self, name: str) -> str:
        """The key of one of the trainer's files, by the name that it has in the commit log."""
        return self.out_prefix + name.removeprefix("out/")

    def own_key(self, name: str, writer: str) -> str:
        """A key that nobody else writes to, for a file of the state folder or a shard that is no final file.

        Args:
            name: The file's name in the commit log.
            writer: What is never given to another file: the fencing token of the run, and numbers.
        """
        kind, _, path = name.partition("/")
        folder, _, file = path.rpartition("/")
        if kind == "out":
            folder = f"shards/{folder}".rstrip("/")
        return f"{self.state_prefix}{folder + '/' if folder else ''}{writer}/{file}"

    def writer_token(self, key: str) -> int | None:
        """The fencing token in such a key; None if it is another one."""
        match = _OWN_KEY.fullmatch(key.removeprefix(self.state_prefix)) if key.startswith(self.state_prefix) else None
        return int(match[1]) if match else None

    def working_folder(self, scratch: Path | None) -> Path:
        """The folder of its working copy."""
        return (scratch or cache_folder() / "outputs") / self._folder_name

    def view_folder(self) -> Path:
        """The folder for looking at it."""
        return cache_folder() / "views" / self._folder_name

    @property
    def _folder_name(self) -> str:
        digest = hashlib.sha256(str(self).encode()).hexdigest()[:12]
        return f"{_UNSAFE.sub('_', self.path)[-_MAX_NAME_CHARS:]}-{digest}"
