"""OCR-VQA: covers of books, one request each, saved under the name that the trainer's lists give them.

Source: ocr-vqa.github.io, ``dataset.json``: an object of id → imageURL, questions, answers and more. All files are
called ``<id>.jpg`` and hold what was received; many are GIFs. A cover that is gone comes as an image of 1 × 1 pixels.
The file is read cover by cover; memory holds 8 bytes for each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath

from datafetch.datasets.dataset_defaults import DatasetDefaults
from datafetch.datasets.filenames import DuplicateNames, why_refused
from datafetch.datasets.named_images import SAMPLES_PER_SHARD, find_file, image_file_row, slice_name
from datafetch.datasets.readers import LineFile, MemberReader, RecordReader
from datafetch.datasets.url_length import bounded_url, is_too_long
from datafetch.errors import ManifestError, raise_if_exhausted
from datafetch.model.interfaces import Manifest, Samples
from datafetch.model.kinds import Loader, Payload
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.options import DatasetOptions, Effect, Option, option
from datafetch.model.sample import MAX_URL_CHARS, IdListResult, Record, Row, Sample, Shard

_FILE = "dataset.json"
_FOLDER = PurePosixPath("ocr_vqa/images")


@dataclass(frozen=True, slots=True, kw_only=True)
class OcrVqaOptions(DatasetOptions):
    """What may be set for ``ocr-vqa``.

    Attributes:
        only_referenced: JSON list of a training; only the covers that it names are fetched.
    """

    only_referenced: str | None = option(
        None,
        Option(
            help="Only images that this JSON list of a training names.",
            metavar="FILE",
            unset="all",
            effect=Effect.MANIFEST,
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

    def bind(self, source: Path, ids: Path | None) -> OcrVqaManifest:  # noqa: ARG002 - it takes none
        """Open ``dataset.json``, by itself or in a folder.

        Raises:
            ManifestError: There is none, it is not what was published, or the list of the training can't be read.
        """
        path = find_file(source, _FILE)
        referenced = self.options.only_referenced
        return OcrVqaManifest(path, None if referenced is None else _read_referenced(Path(referenced)))

    def to_row(self, record: Record, payload: Payload) -> Row | None:  # noqa: ARG002 - files hold bytes
        """The file of one cover, or None where it did not arrive."""
        return image_file_row(record)


@dataclass(frozen=True, slots=True)
class _Cover:
    """A cover as published; without a URL where there is none."""

    id_: str
    url: str


class OcrVqaManifest(Manifest):
    """The covers, in shards of so many.

    Args:
        path: The published file.
        wanted: Ids that a training names; None is all.

    Raises:
        ManifestError: It is not what was published, or has none of the covers that are wanted.
    """

    def __init__(self, path: Path, wanted: frozenset[str] | None) -> None:
        self._path = path
        self._fingerprint = LineFile(path).fingerprint
        self._wanted = wanted
        self._offsets: list[int] = []
        self._covers = 0
        self._found: set[str] = set()  # of the wanted ones
        self._has_url = False
        self._duplicates = DuplicateNames(self._names())
        if not self._has_url:
            raise ManifestError(f"{path}: no cover has an imageURL; --source takes the published {_FILE}")
        if not self._covers:
            raise ManifestError(f"none of the covers in {path} is wanted; give another --only-referenced, or none")

    def shards(self) -> list[Shard]:
        """Slices of the covers that are wanted."""
        return [
            Shard(slice_name(number), self._path, self._size(number), self._fingerprint)
            for number in range(len(self._offsets))
        ]

    def expected_samples(self) -> int | None:
        """All that are wanted."""
        return self._covers

    def identity_fields(self) -> Mapping[str, object]:
        """How many are wanted of which list is told by the shards."""
        return {} if self._wanted is None else {"only_referenced": _digest(self._wanted)}

    def samples(self, shard: Shard) -> _Slice:
        """One slice."""
        return _Slice(self, int(shard.name.rpartition("-")[2]), shard.size)

    def id_list_result(self, keys: Iterable[str], counts: Mapping[str, ShardCounts]) -> IdListResult | None:  # noqa: ARG002 - the protocol's
        """Which covers the training names that are not published."""
        if self._wanted is None:
            return None
        return IdListResult(len(self._wanted), 0, len(self._wanted) - len(self._found))

    def read(self, number: int) -> Iterator[Sample]:
        """The samples of one slice; a cover that can't be saved has no URL, and a reason in its row."""
        first = number * SAMPLES_PER_SHARD
        covers = self._covers_of(MemberReader(self._path, start_bytes=self._offsets[number]))
        for position, cover in enumerate(islice(covers, self._size(number))):
            refusal = _why_refused(cover) or self._duplicates.why_refused(first + position)
            if refusal:
                yield Sample(position, cover.id_, (), {"refused": refusal})
            else:
                yield Sample(position, cover.id_, (cover.url,), {"image": f"{cover.id_}.jpg"})

    def _size(self, number: int) -> int:
        return min(SAMPLES_PER_SHARD, self._covers - number * SAMPLES_PER_SHARD)

    def _names(self) -> Iterator[str | None]:
        """The names of all files, None where there can't be one; notes where the shards begin."""
        reader = MemberReader(self._path)
        covers = self._covers_of(reader)
        offset = 0
        while chunk := list(islice(covers, SAMPLES_PER_SHARD)):
            self._offsets.append(offset)
            self._covers += len(chunk)
            offset = reader.offset_bytes()
            for cover in chunk:
                yield None if _why_refused(cover) else f"{cover.id_}.jpg"

    def _covers_of(self, reader: MemberReader) -> Iterator[_Cover]:
        """Those that are wanted.

        Raises:
            ManifestError: The file is not what was published.
        """
        try:
            for member in reader:
                url = member.value.get("imageURL") if isinstance(member.value, dict) else None
                self._has_url = self._has_url or bool(url and isinstance(url, str))
                if self._wanted is None or member.name in self._wanted:
                    if self._wanted is not None:
                        self._found.add(member.name)
                    yield _Cover(member.name, bounded_url(url))
        except ManifestError as error:
            raise ManifestError(f"{self._path} {error}; --source takes the published {_FILE}") from error
        except OSError as error:
            raise_if_exhausted(error)
            raise ManifestError(f"cannot read {self._path}: {error.strerror or error}") from error


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
    """Why a cover is not asked for; nothing where it is."""
    if not cover.url or is_too_long(cover.url):
        return f"there is no imageURL, or it is longer than {MAX_URL_CHARS:,} characters"
    if not cover.id_ or "/" in cover.id_:
        return "its id can't be the name of a file"
    return why_refused(f"{cover.id_}.jpg")


def _read_referenced(path: Path) -> frozenset[str]:
    """The ids of all covers that a JSON list of a training names.

    Raises:
        ManifestError: It can't be read, or names none.
    """
    ids = set()
    try:
        for record in RecordReader(path):
            named = record.get("image") if isinstance(record, dict) else None
            for name in named if isinstance(named, list) else [named]:
                if isinstance(name, str) and (place := PurePosixPath(name)).parent == _FOLDER:
                    ids.add(place.stem)
    except ManifestError as error:
        raise ManifestError(f"{path} {error}; --only-referenced takes a JSON list of the training") from error
    except OSError as error:
        raise_if_exhausted(error)
        raise ManifestError(f"cannot read {path}: {error.strerror or error}") from error
    if not ids:
        raise ManifestError(f"{path} names no image in {_FOLDER}; --only-referenced takes a JSON list of the training")
    return frozenset(ids)


def _digest(ids: frozenset[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode("utf-8", "surrogatepass")).hexdigest()
