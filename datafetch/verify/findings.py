"""What verification finds: problems with their locations, images that remain to be decoded, and counts.

Rules: every problem is counted, and the first thousand are kept. What a problem quotes comes from untrusted files, so
it is shortened, and characters that could break its line are replaced.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from datafetch.model.untrusted import to_printable

MAX_KEPT_PROBLEMS = 1000  # more would not be read, and all of six million rows may be wrong
_MAX_CHARS = 300
_MAX_KEY_CHARS = 80
PROBLEM_BYTES = 1024  # what a problem takes until it is counted
# What a sample takes apart from its images, roughly, so that one bound fits many small samples and a few large ones.
SAMPLE_BYTES = 16 * 1024
BATCH_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A location in an output. Locations sort like file names, and a file as a whole comes before its rows.

    Attributes:
        file: The file's name; empty for the output as a whole.
        row: 0-based; -1 for the file as a whole.
        image: 0-based, in a row that may have several images; -1 otherwise.
        key: The dataset's own ID of the row, if it has one.
    """

    file: str = ""
    row: int = -1
    image: int = -1
    key: str = ""

    def __str__(self) -> str:
        if not self.file:
            return ""
        row = f" row {self.row}" if self.row >= 0 else ""
        key = f" ({clean(self.key, _MAX_KEY_CHARS)})" if self.key else ""
        image = f" image {self.image}" if self.image >= 0 else ""
        return f"{clean(self.file)}{row}{key}{image}: "


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something on which the trainer would fail."""

    location: Location
    message: str

    def __str__(self) -> str:
        return f"{self.location}{clean(self.message)}"

    def shortened(self) -> Problem:
        """Return the problem without the parts that are never shown: the key of a row may have megabytes."""
        location = replace(self.location, key=clean(self.location.key, _MAX_KEY_CHARS))
        return Problem(location, clean(self.message))


@dataclass(frozen=True, slots=True)
class ImageToDecode:
    """An encoded image whose decoding is still to be checked.

    Attributes:
        location: Where it is.
        body: The image.
        size_px: The width and height that are said of it; None if nothing is.
    """

    location: Location
    body: bytes = field(repr=False)
    size_px: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Examination:
    """The result of examining a sample, or a file.

    Attributes:
        samples: How many samples were examined.
        problems: What is wrong, apart from images that can't be decoded.
        images: The images that remain to be decoded.
        read_bytes: How many bytes were read for it.
    """

    samples: int = 0
    problems: tuple[Problem, ...] = ()
    images: tuple[ImageToDecode, ...] = ()
    read_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyProgress:
    """A snapshot of the progress of a verification.

    Attributes:
        samples: Samples examined.
        images: Images that were decoded, or could not be.
        found_images: These, and those that were read and remain to be decoded.
        problems: Problems found.
        read_bytes: Bytes read of the files that hold the samples.
        total_bytes: The size of these files; 0 if it is not known.
        elapsed_s: Time since the start.
    """

    samples: int
    images: int
    found_images: int
    problems: int
    read_bytes: int
    total_bytes: int
    elapsed_s: float

    @property
    def share(self) -> float | None:
        """About how much is done, from 0 to 1; None if that is not known.

        Reading is ahead of decoding, in a small output by all of it.
        """
        if not self.total_bytes:
            return None
        decoded = self.images / self.found_images if self.found_images else 1.0
        return self.read_bytes / self.total_bytes * decoded


class Findings:
    """Collects the problems and counts of a verification.

    Args:
        total_bytes: The size of the files that will be read.
    """

    def __init__(self, total_bytes: int = 0) -> None:
        self.samples = 0
        self.images = 0
        self._found_images = 0
        self.problems = 0
        self._kept_problems: list[Problem] = []
        self._read_bytes = 0
        self._total_bytes = total_bytes
        self._started_s = time.monotonic()

    def add(self, examination: Examination) -> None:
        """Add the result of an examination; its images are counted when they are decoded."""
        self.samples += examination.samples
        self._found_images += len(examination.images)
        self._read_bytes += examination.read_bytes
        for problem in examination.problems:
            self.add_problem(problem)

    def add_problem(self, problem: Problem) -> None:
        """Count a problem, and keep it if it is among the first thousand."""
        self.problems += 1
        if len(self._kept_problems) < MAX_KEPT_PROBLEMS:
            self._kept_problems.append(problem.shortened())

    @property
    def kept_problems(self) -> tuple[str, ...]:
        """The problems that were kept, as lines in the order of their locations."""
        return tuple(map(str, sorted(self._kept_problems)))

    def progress(self) -> VerifyProgress:
        """Return a snapshot of the progress."""
        elapsed_s = time.monotonic() - self._started_s
        return VerifyProgress(
            samples=self.samples,
            images=self.images,
            found_images=self._found_images,
            problems=self.problems,
            read_bytes=self._read_bytes,
            total_bytes=self._total_bytes,
            elapsed_s=elapsed_s,
        )


def batched(examinations: Iterable[Examination]) -> Iterator[list[Examination]]:
    """Group examinations into batches of a few megabytes, because handing over each alone costs as much as ten."""
    batch: list[Examination] = []
    batch_bytes = 0
    for examination in examinations:
        batch.append(examination)
        image_bytes = sum(len(image.body) for image in examination.images)
        batch_bytes += SAMPLE_BYTES + image_bytes + PROBLEM_BYTES * len(examination.problems)
        if batch_bytes >= BATCH_BYTES:
            yield batch
            batch, batch_bytes = [], 0
    yield batch


def clean(text: str, max_chars: int = _MAX_CHARS) -> str:
    """Make untrusted text safe to show in a line: printable, valid UTF-8, and at most this long."""
    return to_printable(text[:max_chars]) + ("…" if len(text) > max_chars else "")
