"""One sample of a list in a shard: do its row, its images, its caption and its metadata agree?

Rules: pure functions of what was read, which is untrusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from datafetch.datasets.readers.limits import max_parsed_bytes
from datafetch.model import exact_json
from datafetch.output.formats.image_suffix import IMAGE_SUFFIXES
from datafetch.output.formats.sample_columns import (
    CAPTION,
    IMAGE,
    OWN_COLUMNS,
    STATUS,
    URL,
    Status,
    is_list,
    with_lists,
    without_lists,
)
from datafetch.output.formats.sample_files import TEXT_SUFFIXES
from datafetch.output.formats.shard_stats import statuses
from datafetch.store.ledger_format import escaped
from datafetch.verify.findings import Examination, ImageToDecode, Location, Problem

MAX_PART_BYTES = 256 << 20
"""The size of an image, a caption, or the metadata of a sample; what is larger is a problem, and not read."""
MAX_PARSED_BYTES = 1 << 30
"""What the metadata of a sample, or statistics, may take in memory when they are parsed."""
_COMPARED = tuple(sorted(OWN_COLUMNS - {IMAGE}))
_MAX_NUMBER_DIGITS = 5  # of an image in its sample


@dataclass(frozen=True, slots=True)
class SampleRow:
    """A row of the parquet of a shard.

    Attributes:
        location: Where it is.
        values: Its columns.
    """

    location: Location
    values: Mapping[str, Any]

    @property
    def statuses(self) -> list[tuple[str, str | None]]:
        """The status of each image, with the reason of a failure."""
        return statuses(dict(self.values))

    @property
    def has_image(self) -> bool:
        """Whether an image arrived."""
        return any(status == Status.SUCCESS for status, _ in self.statuses)

    def compare_images(self, found: AbstractSet[int]) -> Iterator[Examination]:
        """Compare which images there are, by their positions among the URLs, with the statuses."""
        expected = {number for number, (status, _) in enumerate(self.statuses) if status == Status.SUCCESS}
        for number in sorted(expected - found):
            yield problem(self.location_of(number), "the status is success, and there is no image")
        for number in sorted(found - expected):
            yield problem(self.location_of(number), "there is an image, and the status is not success")

    def size_px(self, number: int) -> tuple[int, int] | None:
        """Width and height that an image must have; None if the row does not say it."""
        width, height = (self._of_image(name, number) for name in ("width", "height"))
        return (width, height) if isinstance(width, int) and isinstance(height, int) else None

    def location_of(self, number: int) -> Location:
        """Where an image of the row is."""
        return replace(self.location, image=number if isinstance(self.values.get(STATUS), list) else -1)

    def _of_image(self, name: str, number: int) -> object:
        value = self.values.get(name)
        if isinstance(value, list):
            return value[number] if number < len(value) else None
        return value


class SampleParts:
    """A sample whose images, caption and metadata are members or files.

    Args:
        location: Where it is.
        row: Its row of the parquet; None if that is not known.
    """

    def __init__(self, location: Location, row: SampleRow | None) -> None:
        self._location = location
        self._row = row
        self._images: set[int] = set()
        self._texts: dict[str, bytes] = {}

    def add(self, name: str, content: bytes | None) -> Iterator[Examination]:
        """Add a member or a file; an image is yielded, to be decoded.

        Args:
            name: Its name.
            content: Its content; None if it is too large.
        """
        suffix = name[name.rindex(".") :].lower()
        if content is None:
            yield problem(self._location, f"{suffix[1:]} has more than {MAX_PART_BYTES:,} bytes")
        elif suffix in TEXT_SUFFIXES:
            self._texts[suffix] = content
        elif suffix in IMAGE_SUFFIXES:
            number = _number_of(name)
            self._images.add(number or 0)
            location = replace(self._location, image=-1 if number is None else number)
            size_px = None if self._row is None else self._row.size_px(number or 0)
            yield Examination(images=(ImageToDecode(location, content, size_px),), read_bytes=len(content))
        else:
            yield problem(self._location, f"has a member {suffix!r}, which no reader expects")

    def examine(self) -> Iterator[Examination]:
        """Compare all that is said of the sample."""
        problems = tuple(Problem(self._location, message) for message in self._differences())
        if self._row is not None:
            yield from self._row.compare_images(self._images)
        yield Examination(1, problems)

    def _differences(self) -> Iterator[str]:
        metadata = self._texts.get(".json")
        if metadata is None:
            yield "has no metadata (.json), or one that was not read"
            return
        if max_parsed_bytes(metadata) > MAX_PARSED_BYTES:
            yield f"its metadata has more values than fit into {MAX_PARSED_BYTES:,} bytes, and is not read"
            return
        row = {} if self._row is None else self._row.values
        try:
            found = _in_form_of(row, exact_json.parse(metadata))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            yield "its metadata is not a JSON object"
            return
        caption = self._texts.get(".txt")
        if CAPTION in found and caption is None:
            yield "has no caption (.txt), or one that was not read"
        elif CAPTION in found and caption != str(escaped("" if found[CAPTION] is None else found[CAPTION])).encode():
            yield "its caption (.txt) is not that of its metadata (.json)"
        different = [name for name in _COMPARED if name in row and _plain(found.get(name)) != row[name]]
        if different:
            yield f"its metadata (.json) and the parquet differ in {', '.join(different)}"


def _in_form_of(row: Mapping[str, Any], found: object) -> object:
    """The metadata of a sample as the row has it: in a shard, the URLs of all rows are lists or those of none are."""
    if not isinstance(found, dict) or URL not in found or URL not in row:
        return found
    return with_lists(found) if is_list(row[URL]) else without_lists(found)


def _plain(value: object) -> object:
    return [escaped(element) for element in value] if isinstance(value, list) else escaped(value)


def _number_of(name: str) -> int | None:
    """The number of an image in the name of its file, ``<key>.<number>.<suffix>``; None if it has none."""
    _, dot, number = name[: name.rindex(".")].rpartition(".")
    is_number = dot and number.isascii() and number.isdecimal() and len(number) <= _MAX_NUMBER_DIGITS
    return int(number) if is_number else None


def problem(location: Location, message: str) -> Examination:
    """The examination that has found one problem."""
    return Examination(problems=(Problem(location, message),))
