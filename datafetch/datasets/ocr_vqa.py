"""OCR-VQA: book covers, saved as files with the names that the trainer's lists give them.

The published file is a JSON object that maps ids to objects with ``imageURL``, questions, answers and more. Every image
is saved as ``<id>.jpg`` with the bytes that were received, although many are GIFs. For a cover that is gone, the server
sends an image of 1 × 1 pixels.

Source: ocr-vqa.github.io, ``dataset.json``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath

from datafetch.datasets.dataset_defaults import DatasetDefaults
from datafetch.datasets.filenames import DuplicateNames, why_refused
from datafetch.datasets.named_images import SAMPLES_PER_SHARD, find_file, image_file_row, slice_name
from datafetch.datasets.readers import LineFile, ObjectReader
from datafetch.datasets.referenced import read_referenced
from datafetch.datasets.url_length import bounded_url, is_too_long
from datafetch.errors import ManifestError, unreadable
from datafetch.model.kinds import Loader, Payload
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.manifest import Manifest, Samples
from datafetch.model.options import DatasetOptions, Effect, Option, option
from datafetch.model.sample import MAX_URL_CHARS, REFUSED, IdListResult, Record, Row, Sample, Shard

_FILE = "dataset.json"
_FOLDER = PurePosixPath("ocr_vqa/images")


@dataclass(frozen=True, slots=True, kw_only=True)
class OcrVqaOptions(DatasetOptions):
    """The options of ``ocr-vqa``.

    Attributes:
        only_referenced: The path of a JSON training list; only the covers that it names are fetched. None fetches all.
    """

    only_referenced: str | None = option(
        None,
        Option(
            help="Fetch only the images that this JSON training list names.",
            metavar="FILE",
            unset="all",
            effect=Effect.MANIFEST,
            is_file=True,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OcrVqa(DatasetDefaults):
    """The dataset ``ocr-vqa``."""

    name: str = "ocr-vqa"
    summary: str = "OCR-VQA's book covers: 207,572, images as files."
    path: str = str(_FOLDER)
    loader: Loader = Loader.TORCH
    output_format: str = "image_files"
    keeps_bodies: bool = True
    min_pixels: int = 2
    options: OcrVqaOptions = field(default_factory=OcrVqaOptions)

    def bind(self, source: Path, ids: Path | None) -> OcrVqaManifest:  # noqa: ARG002 - it takes no id list
        """Open ``dataset.json``, given as a file or as the folder that holds it, and read all of it once.

        Raises:
            ManifestError: There is no such file, it is not of the published form, or the training list can't be read.
        """
        path = find_file(source, _FILE)
        referenced = self.options.only_referenced
        return OcrVqaManifest(path, None if referenced is None else _ids_in(Path(referenced)))

    def options_for_lists(self, lists: Sequence[str]) -> OcrVqaOptions:
        """The options with which only covers are fetched that a list names; the recipe has one such list."""
        return replace(self.options, only_referenced=lists[0] if lists else None)

    def to_row(self, record: Record, payload: Payload) -> Row | None:  # noqa: ARG002 - files hold bytes
        """The file of one cover; None if it did not arrive."""
        return image_file_row(record)


@dataclass(frozen=True, slots=True)
class _Cover:
    """A cover as published; its URL is empty if it has none."""

    id_: str
    url: str


class OcrVqaManifest(Manifest):
    """The selected covers, in shards of ``SAMPLES_PER_SHARD``.

    The file is read once when it is opened, to find names that collide and where each shard begins. Memory holds 8
    bytes for each cover, and the ids that were selected.

    Args:
        path: The published file.
        selected: The ids of the covers to fetch; None selects all.

    Raises:
        ManifestError: The file is not of the published form, or has none of the selected covers.
    """

    def __init__(self, path: Path, selected: frozenset[str] | None) -> None:
        self._path = path
        self._fingerprint = LineFile(path).fingerprint
        self._selected = selected
        self._offsets: list[int] = []
        self._covers = 0
        self._found: set[str] = set()  # those of the selected ids that the file has
        self._has_url = False
        self._duplicates = DuplicateNames(self._names())
        if not self._has_url:
            raise ManifestError(f"{path}: no cover has an imageURL; --source takes the published {_FILE}")
        if not self._covers:
            raise ManifestError(
                f"{path} has none of the covers that --only-referenced names; give another list, or none"
            )

    def shards(self) -> list[Shard]:
        """Slices of the selected covers."""
        return [
            Shard(slice_name(number), self._path, self._size(number), self._fingerprint)
            for number in range(len(self._offsets))
        ]

    def expected_samples(self) -> int | None:
        """The number of selected covers."""
        return self._covers

    def identity_fields(self) -> Mapping[str, object]:
        """A hash of the selected ids."""
        return {} if self._selected is None else {"only_referenced": _digest(self._selected)}

    def samples(self, shard: Shard) -> _Slice:
        """The samples of one slice."""
        return _Slice(self, int(shard.name.rpartition("-")[2]), shard.size)

    def id_list_result(self, keys: Iterable[str], counts: Mapping[str, ShardCounts]) -> IdListResult | None:  # noqa: ARG002 - the protocol's
        """How many of the ids in the training list are published; None without such a list."""
        if self._selected is None:
            return None
        return IdListResult(len(self._selected), 0, len(self._selected) - len(self._found))

    def read(self, number: int) -> Iterator[Sample]:
        """Read the samples of one slice.

        A cover that can't be saved becomes a sample without URLs, with the reason in its metadata.
        """
        first = number * SAMPLES_PER_SHARD
        covers = self._covers_of(ObjectReader(self._path, start_bytes=self._offsets[number]))
        for position, cover in enumerate(islice(covers, self._size(number))):
            name = f"{cover.id_}.jpg"
            refusal = _why_refused(cover) or self._duplicates.why_refused(first + position, name)
            if refusal:
                yield Sample(position, cover.id_, (), {REFUSED: refusal})
            else:
                yield Sample(position, cover.id_, (cover.url,), {"image": name})

    def _size(self, number: int) -> int:
        return min(SAMPLES_PER_SHARD, self._covers - number * SAMPLES_PER_SHARD)

    def _names(self) -> Iterator[str | None]:
        """Read the file names of all covers, None for those that can't be saved, and store where shards begin."""
        reader = ObjectReader(self._path)
        covers = self._covers_of(reader)
        offset = 0
        while chunk := list(islice(covers, SAMPLES_PER_SHARD)):
            self._offsets.append(offset)
            self._covers += len(chunk)
            offset = reader.offset_bytes()
            for cover in chunk:
                yield None if _why_refused(cover) else f"{cover.id_}.jpg"

    def _covers_of(self, reader: ObjectReader) -> Iterator[_Cover]:
        """The selected covers of a reader.

        Raises:
            ManifestError: The file can't be read, or is not of the published form.
        """
        try:
            for member in reader:
                url = member.value.get("imageURL") if isinstance(member.value, dict) else None
                self._has_url = self._has_url or bool(url and isinstance(url, str))
                if self._selected is None or member.name in self._selected:
                    if self._selected is not None:
                        self._found.add(member.name)
                    yield _Cover(member.name, bounded_url(url))
        except ManifestError as error:
            raise ManifestError(f"{self._path} {error}; --source takes the published {_FILE}") from error
        except OSError as error:
            raise unreadable(self._path, error) from error


@dataclass(frozen=True, slots=True)
class _Slice(Samples):
    manifest: OcrVqaManifest
    number: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Sample]:
        return self.manifest.read(self.number)


def _why_refused(cover: _Cover) -> str:
    """Return why a cover is not requested; an empty string if it is."""
    if not cover.url or is_too_long(cover.url):
        return f"there is no imageURL, or it is longer than {MAX_URL_CHARS:,} characters"
    if not cover.id_ or "/" in cover.id_:
        return "its id can't be the name of a file"
    return why_refused(f"{cover.id_}.jpg")


def _ids_in(path: Path) -> frozenset[str]:
    """The ids of all covers that a JSON training list names."""
    return frozenset(PurePosixPath(name).stem for name in read_referenced([path], _FOLDER) if "/" not in name)


def _digest(ids: frozenset[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode("utf-8", "surrogatepass")).hexdigest()
