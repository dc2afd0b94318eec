"""What is found on the way: problems with their places, images that are still to be decoded, and the books.

Rules: every problem is counted, the first thousand are kept. What a problem quotes comes from files of other people,
so it is cut to size and stripped of whatever could break its line.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

MOST_KEPT = 1000  # nobody reads on, and six million rows may all be wrong
_MOST_CHARS = 300
_MOST_KEY_CHARS = 80
PROBLEM_BYTES = 1024  # what one costs until it is counted
# What a sample costs beside its images, roughly, so that one bound holds for many small ones and for a few large ones.
SAMPLE_BYTES = 16 * 1024
BATCH_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where in an output something is. Places sort as files do, and a file as a whole comes before its rows.

    Attributes:
        file: Its name; empty for the output as a whole.
        row: 0-based; -1 is the file as a whole.
        image: 0-based, in a row that may have several; -1 where there is no need to say.
        key: The dataset's own id of the row, where it has one.
    """

    file: str = ""
    row: int = -1
    image: int = -1
    key: str = ""

    def __str__(self) -> str:
        if not self.file:
            return ""
        row = f" row {self.row}" if self.row >= 0 else ""
        key = f" ({clean(self.key, _MOST_KEY_CHARS)})" if self.key else ""
        image = f" image {self.image}" if self.image >= 0 else ""
        return f"{clean(self.file)}{row}{key}{image}: "


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something that the trainer would trip over."""

    place: Place
    what: str

    def __str__(self) -> str:
        return f"{self.place}{clean(self.what)}"

    def shortened(self) -> Problem:
        """The same without what is not shown of it: the key of a row may have megabytes."""
        place = replace(self.place, key=clean(self.place.key, _MOST_KEY_CHARS))
        return Problem(place, clean(self.what))


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image that is to be decoded, as it stands in its file."""

    place: Place
    body: bytes


@dataclass(frozen=True, slots=True)
class Examined:
    """What the examination of a sample, or of a file, came to.

    Attributes:
        samples: How many it was.
        problems: What is wrong with it, its images' pixels aside.
        images: Those that are to be decoded.
        read_bytes: How much was read for it.
    """

    samples: int = 0
    problems: tuple[Problem, ...] = ()
    images: tuple[FoundImage, ...] = ()
    read_bytes: int = 0


@dataclass(frozen=True, slots=True)
class VerifyProgress:
    """How the examination stands.

    Attributes:
        samples: Examined.
        images: Decoded, or found not to decode.
        problems: Found.
        read_bytes: Of the files that hold the samples.
        total_bytes: Of these files.
        elapsed_s: Since it began.
    """

    samples: int
    images: int
    problems: int
    read_bytes: int
    total_bytes: int
    elapsed_s: float


class Findings:
    """The books of an examination.

    Args:
        total_bytes: Of the files that are going to be read.
    """

    def __init__(self, total_bytes: int = 0) -> None:
        self.samples = 0
        self.images = 0
        self.problems = 0
        self._kept: list[Problem] = []
        self._read_bytes = 0
        self._total_bytes = total_bytes
        self._started_s = time.monotonic()

    def add(self, examined: Examined) -> None:
        """Enter what was examined; its images are entered as they are decoded."""
        self.samples += examined.samples
        self._read_bytes += examined.read_bytes
        for problem in examined.problems:
            self.add_problem(problem)

    def add_problem(self, problem: Problem) -> None:
        """Count a problem, and keep it while there is room."""
        self.problems += 1
        if len(self._kept) < MOST_KEPT:
            self._kept.append(problem.shortened())

    @property
    def kept(self) -> tuple[str, ...]:
        """The problems that were kept, in the order of their places."""
        return tuple(map(str, sorted(self._kept)))

    def standing(self) -> VerifyProgress:
        """How it stands now."""
        elapsed_s = time.monotonic() - self._started_s
        return VerifyProgress(self.samples, self.images, self.problems, self._read_bytes, self._total_bytes, elapsed_s)


def batched(examined: Iterable[Examined]) -> Iterator[list[Examined]]:
    """The same, several at a time and a few megabytes at most, for going from thread to thread costs as much as ten."""
    batch: list[Examined] = []
    batch_bytes = 0
    for one in examined:
        batch.append(one)
        batch_bytes += SAMPLE_BYTES + sum(len(image.body) for image in one.images) + PROBLEM_BYTES * len(one.problems)
        if batch_bytes >= BATCH_BYTES:
            yield batch
            batch, batch_bytes = [], 0
    yield batch


def clean(text: str, most_chars: int = _MOST_CHARS) -> str:
    """Text of other people as it can stand in a line: printable, UTF-8, and not too long."""
    cut = text[:most_chars] + ("…" if len(text) > most_chars else "")
    return "".join(character if character.isprintable() else "�" for character in cut)
