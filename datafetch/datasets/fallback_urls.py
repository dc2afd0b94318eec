"""FallbackUrls: URLs of images by their names, for those that an archive lacks or has damaged."""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path

import numpy as np

from datafetch.datasets.readers import LineFile, RecordReader
from datafetch.datasets.url_length import bounded_url
from datafetch.errors import ManifestError, unreadable


class FallbackUrls:
    """The URLs in a JSON list whose records have an ``image`` and a ``url``.

    Memory holds the URLs themselves and 24 bytes for each, and while they are read as much again.

    Args:
        path: The list.

    Attributes:
        fingerprint: Identifies the content of the list.

    Raises:
        ManifestError: It can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.fingerprint = LineFile(path).fingerprint
        self._urls = bytearray()
        digests, starts = array("q"), array("q")
        try:
            for record in RecordReader(path):
                image, url = (record.get("image"), record.get("url")) if isinstance(record, dict) else (None, None)
                if isinstance(image, str) and isinstance(url, str) and url:
                    digests.append(_digest(image))
                    starts.append(len(self._urls))
                    self._urls += bounded_url(url).encode("utf-8", "replace")
        except ManifestError as error:
            raise ManifestError(f"{path} {error}; move it away, or fetch it again") from error
        except OSError as error:
            raise unreadable(path, error) from error
        starts.append(len(self._urls))
        self._starts = np.array(starts, np.int64)
        unordered = np.array(digests, np.int64)
        self._order = np.argsort(unordered, kind="stable")
        self._digests = unordered[self._order]

    def find(self, name: str) -> str:
        """The URL of an image; empty if there is none."""
        digest = _digest(name)
        index = int(np.searchsorted(self._digests, digest))
        if index == len(self._digests) or int(self._digests[index]) != digest:
            return ""
        number = int(self._order[index])
        return self._urls[int(self._starts[number]) : int(self._starts[number + 1])].decode()


def _digest(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
