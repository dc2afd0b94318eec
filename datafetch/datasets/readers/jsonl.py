"""Reads files of lines, plain or compressed (``compression``), in constant memory.

A compressed file can expand a few bytes to an endless line or to any number of lines. So lines are read with a limit on
their length, and their number is limited in proportion to the file's size.

Nothing is decompressed when a file is opened, except for the directory of a zip: a folder may hold tens of thousands
of files. A fingerprint of size, beginning and end identifies the content, which is reliable for files that are
downloaded or compressed as a whole, but misses a change in the middle of a plain file that leaves its size the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datafetch.datasets.readers.compression import COMPRESSED_SUFFIXES, READ_ERRORS, check_zip, open_plain, opener_of
from datafetch.datasets.readers.file_kind import describe_non_data, describe_text
from datafetch.datasets.readers.limits import max_rows
from datafetch.errors import ManifestError, unreadable
from datafetch.model.regular_file import open_regular

MAX_LINE_BYTES = 64 * 1024 * 1024
"""The maximum length of a line; published ones have a few kilobytes. Reading one takes twice its length in memory."""

_BOM = b"\xef\xbb\xbf"
_EDGE_BYTES = 4096  # read from a file's beginning and from its end
_SUFFIXES = (*COMPRESSED_SUFFIXES, ".jsonl", ".json")
_ADVICE = "download it again, or move it away"


class LineFile:
    """One file of lines, plain or compressed.

    Args:
        path: The file.

    Attributes:
        path: The file.
        size_bytes: Its size on disk.
        fingerprint: A hash of its size, its beginning and its end.

    Raises:
        ManifestError: The file can't be read, or is a web page or a pointer of Git LFS; or it is empty, although its
            name is that of a compressed file; or it is a zip that does not have exactly one file that can be unpacked
            here, not counting folders and what macOS adds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _reading(path), open_regular(path) as file:
            self.size_bytes = os.fstat(file.fileno()).st_size
            start = file.read(_EDGE_BYTES)
            file.seek(max(0, self.size_bytes - _EDGE_BYTES))
            identifying = b"%d " % self.size_bytes + start + file.read(_EDGE_BYTES)
            self._open = opener_of(start)
            self._start = start
            self._check_start()
            check_zip(path, self._open)
        self.fingerprint = hashlib.sha256(identifying).hexdigest()[:16]

    @property
    def is_compressed(self) -> bool:
        """Whether its content is larger than its size on disk."""
        return self._open is not open_plain

    def explain_bad_line(self) -> str:
        """Explain a line that is not a record by the whole file, if that is not compressed as its name says.

        Returns:
            What the file is; an empty string if its name is right, so that the fault is in the line alone.
        """
        if self.is_compressed or not self.path.name.endswith(COMPRESSED_SUFFIXES):
            return ""
        return f"{self.path} is not compressed as its name says: {describe_text(self._start)}; {_ADVICE}"

    def _check_start(self) -> None:
        """Check the first bytes for something other than data. An empty file is accepted if it need not be compressed.

        Raises:
            ManifestError: The file is not data.
        """
        description = describe_non_data(self._start)
        if description and (self._start or self.path.name.endswith(COMPRESSED_SUFFIXES)):
            raise ManifestError(f"{self.path} has no JSON lines: {description}; {_ADVICE}")

    def lines(self) -> Iterator[bytes]:
        """All lines in order, without line ends. Blank lines are included, so that line numbers are right.

        Raises:
            ManifestError: The file can't be read, is cut short or damaged, has a line longer than ``MAX_LINE_BYTES``,
                or has more lines than a file of its size may have.
        """
        max_lines = max_rows(self.size_bytes)
        with _reading(self.path), self._open(self.path) as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + len(b"\r\n")):
                number += 1
                if number > max_lines:
                    raise ManifestError(
                        f"{self.path} has more than {max_lines:,} lines in {self.size_bytes:,} bytes, the limit for a "
                        "file of its size; --source takes JSON lines"
                    )
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                if len(line) > MAX_LINE_BYTES:
                    raise ManifestError(
                        f"{self.path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes; --source takes JSON lines"
                    )
                yield line.removeprefix(_BOM) if number == 1 else line


def stem_of(path: Path) -> str:
    """A file's name without the suffixes of its format and compression."""
    name = path.name
    while suffix := next((suffix for suffix in _SUFFIXES if name.endswith(suffix) and name != suffix), ""):
        name = name.removesuffix(suffix)
    return name


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except READ_ERRORS as error:
        raise unreadable(path, error) from error
