"""The work that is given to every contestant, and the forms in which they read it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.preparation import LinesSource, write_documents
from datafetch.demo.manifest import CoyoSource, write_coyo_source

SHORT_SIDE_PX = 336
QUALITY = 75


class Way(StrEnum):
    """What becomes of an image."""

    FETCH = "fetch"
    """Its body is received; nothing is decoded or written."""
    RECIPE = "recipe"
    """It is decoded and encoded again as JPEG, at its own size."""
    SHRINK = "336"
    """The same, shrunk so that its shorter side has at most 336 pixels."""
    ORIGINAL = "original"
    """A JPEG is decoded, and kept as received; anything else is encoded as JPEG."""
    RECEIVED = "received"
    """Its body is kept as received; it is not decoded."""


@dataclass(frozen=True, slots=True)
class Work:
    """What to do.

    Attributes:
        way: What becomes of each image.
        urls: The URLs, of one image each.
        folder: Holds the URLs in each contestant's form.
        shards: The number of files, and of shards to write.
        processes: The number of processes that decode.
        timeout_s: The deadline of an attempt, for those that have one.
        retries: Further attempts after a failure.
        bundle: The file of the authorities to trust; None for those of the system.
        is_fresh: Whether each URL gets a connection of its own.
    """

    way: Way
    urls: Sequence[str]
    folder: Path
    shards: int
    processes: int
    timeout_s: int
    retries: int
    bundle: Path | None
    is_fresh: bool = True

    @property
    def url_folder(self) -> Path:
        """Parquet files with a column ``url``."""
        return self.folder / "urls"

    @property
    def urls_per_shard(self) -> int:
        """The number of URLs in each file but the last."""
        return math.ceil(len(self.urls) / self.shards)

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment of every contestant."""
        return {"SSL_CERT_FILE": str(self.bundle)} if self.bundle else {}

    def coyo_source(self) -> CoyoSource:
        """The URLs as COYO's parquet files and a list of all ids."""
        return CoyoSource(self.folder / "coyo" / "data", self.folder / "coyo" / "ids.txt", {}, 0, 0)

    def document_source(self) -> LinesSource:
        """The URLs as documents of five images each."""
        return LinesSource("mmc4-core", self.folder / "documents")

    def write(self) -> None:
        """Write the URLs in all forms."""
        self.url_folder.mkdir(parents=True)
        for shard in range(self.shards):
            first = shard * self.urls_per_shard
            urls = self.urls[first : first + self.urls_per_shard]
            pq.write_table(pa.table({"url": urls}), self.url_folder / f"{shard:03d}.parquet")
        write_coyo_source(self.folder / "coyo", self.urls, files=self.shards)
        documents = self.folder / "documents"
        documents.mkdir()
        write_documents(documents / "docs_shard_0_v3.jsonl", self.urls)
