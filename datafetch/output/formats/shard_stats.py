"""The statistics of a shard as img2dataset writes them: ``<shard>_stats.json``.

They are the only file of an output whose bytes differ from run to run, since they say when the shard was written.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

from datafetch.errors import ResourceError
from datafetch.model.checksum import crc32
from datafetch.output.formats.sample_columns import ERROR_MESSAGE, STATUS, SampleValues, Status

STATS_SUFFIX = "_stats.json"
_INDENT = 4


class ShardStats:
    """Counts the images of a shard, and writes the counts to a file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start_time_s = time.time()
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._content = b""

    def add(self, row: SampleValues) -> None:
        """Count the images of a row."""
        for status, reason in statuses(row):
            self._counts[status] += 1
            self._reasons[status if reason is None else reason] += 1

    def finish(self) -> None:
        """Write the file."""
        end_time_s = time.time()
        stats = {
            "count": self._counts.total(),
            "successes": self._counts[Status.SUCCESS],
            "failed_to_download": self._counts[Status.FAILED_TO_DOWNLOAD],
            "failed_to_resize": self._counts[Status.FAILED_TO_RESIZE],
            "duration": end_time_s - self._start_time_s,
            "start_time": self._start_time_s,
            "end_time": end_time_s,
            "status_dict": dict(self._reasons),
        }
        self._content = json.dumps(stats, indent=_INDENT).encode()
        self.path.write_bytes(self._content)

    def check(self) -> None:
        """Read the file back.

        Raises:
            ResourceError: It does not have what was written.
        """
        if self.path.read_bytes() != self._content:
            raise ResourceError(f"{self.path.name} does not have the bytes that were written; check the disk")

    @property
    def written_bytes(self) -> int:
        """The size of the file."""
        return len(self._content)

    def checksums(self) -> dict[str, int]:
        """The CRC-32 of the file, by its name."""
        return {self.path.name: crc32(self._content)}


def statuses(row: SampleValues) -> list[tuple[str, str | None]]:
    """The status of each image of a row, with the reason of a failure."""
    status, reason = row[STATUS], row[ERROR_MESSAGE]
    if isinstance(status, list) and isinstance(reason, list):
        return list(zip(status, reason, strict=True))
    return [(str(status), None if reason is None else str(reason))]
