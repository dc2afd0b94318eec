"""OCR-VQA: covers of books, one request each, saved under the name that the trainer's lists give them.

Source: ocr-vqa.github.io, ``dataset.json``: an object of id → imageURL, questions, answers and more. All files are
called ``<id>.jpg`` and hold what was received; many are GIFs. A cover that is gone comes as an image of 1 × 1 pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import orjson

from datafetch.datasets.description import Description
from datafetch.datasets.names import Clashes, why_refused
from datafetch.datasets.saved import SAMPLES_A_SHARD, find_file, saved_row, shard_name
from datafetch.errors import ManifestError
from datafetch.model import Holds, Loader, Payload, Record, Row, Sample, Selection, Shard, Totals
from datafetch.protocols import Samples
from datafetch.readers import LineFile, RecordReader

_FILE = "dataset.json"
_MOST_BYTES = 2**31  # the published file has some 100 MB
_FOLDER = PurePosixPath("ocr_vqa/images")


@dataclass(frozen=True, slots=True, kw_only=True)
class OcrVqa(Description):
    """The dataset ``ocr-vqa``."""

    name: str = "ocr-vqa"
    path: str = str(_FOLDER)
    loader: Loader = Loader.TORCH
    holds: Holds = Holds.FILES
    takes: frozenset[str] = frozenset({"only_referenced"})
    keeps_bodies: bool = True
    least_pixels: int = 2

    def bind(self, source: Path, ids: Path | None) -> OcrVqaManifest:  # noqa: ARG002 - it takes none
        """Open ``dataset.json``, by itself or in a folder.

        Raises:
            ManifestError: There is none, it is not what was published, or the list of the training can't be read.
        """
        path = find_file(source, _FILE)
        covers = _read_covers(path)
        referenced = self.choices.only_referenced
        wanted = None if referenced is None else _read_referenced(Path(referenced))
        return OcrVqaManifest(path, covers, wanted)

    def to_row(self, record: Record, payload: Payload) -> Row | None:  # noqa: ARG002 - files hold bytes
        """The file of one cover, or None where it did not arrive."""
        return saved_row(record)


class OcrVqaManifest:
    """The covers, in shards of so many.

    Args:
        path: The published file.
        covers: Id → URL, as published.
        wanted: Ids that a training names; None is all.
    """

    def __init__(self, path: Path, covers: Mapping[str, str], wanted: frozenset[str] | None) -> None:
        self._path = path
        self._fingerprint = LineFile(path).fingerprint
        self._wanted = wanted
        self._covers = [(id_, url) for id_, url in covers.items() if wanted is None or id_ in wanted]
        if not self._covers:
            raise ManifestError(f"none of the covers in {path} is wanted; give another --only-referenced, or none")
        self._clashes = Clashes(None if _why_refused(id_, url) else f"{id_}.jpg" for id_, url in self._covers)

    def shards(self) -> list[Shard]:
        """Slices of the covers that are wanted."""
        count = -(-len(self._covers) // SAMPLES_A_SHARD)
        return [
            Shard(shard_name(number), self._path, len(self._slice(number)), self._fingerprint)
            for number in range(count)
        ]

    def expected_samples(self) -> int | None:
        """All that are wanted."""
        return len(self._covers)

    def most_samples(self) -> int:
        """All that are wanted."""
        return len(self._covers)

    def facts(self) -> Mapping[str, object]:
        """How many are wanted of which list is told by the shards."""
        return {} if self._wanted is None else {"only_referenced": _digest(self._wanted)}

    def samples(self, shard: Shard) -> _Slice:
        """One slice."""
        number = int(shard.name.rpartition("-")[2])
        return _Slice(tuple(self._read(number)))

    def selection(self, keys: Iterable[str], books: Mapping[str, Totals]) -> Selection | None:  # noqa: ARG002 - the protocol's
        """Which covers the training names that are not published."""
        if self._wanted is None:
            return None
        return Selection(len(self._wanted), 0, len(self._wanted) - len(self._covers))

    def _slice(self, number: int) -> Sequence[tuple[str, str]]:
        return self._covers[number * SAMPLES_A_SHARD : (number + 1) * SAMPLES_A_SHARD]

    def _read(self, number: int) -> Iterator[Sample]:
        first = number * SAMPLES_A_SHARD
        for position, (id_, url) in enumerate(self._slice(number)):
            name = f"{id_}.jpg"
            reason = _why_refused(id_, url) or self._clashes.why_refused(first + position)
            if reason:
                yield Sample(position, id_, (), {"refused": reason})
            else:
                yield Sample(position, id_, (url,), {"image": name})


@dataclass(frozen=True, slots=True)
class _Slice(Samples):
    covers: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.covers)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.covers)


def _read_covers(path: Path) -> dict[str, str]:
    """Id → URL, as published; nothing where there is none.

    Raises:
        ManifestError: It is not what was published.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ManifestError(f"{path} is larger than {_FILE} can be; --source takes the published one")
        published = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ManifestError(f"cannot read {path}: {error.strerror or error}") from error
    except orjson.JSONDecodeError as error:
        raise ManifestError(f"{path} is not JSON ({error}); --source takes the published {_FILE}") from error
    if not isinstance(published, dict) or not published:
        raise ManifestError(f"{path} is not an object of covers; --source takes the published {_FILE}")
    covers = {}
    for id_, cover in published.items():
        url = cover.get("imageURL") if isinstance(cover, dict) else None
        covers[id_] = url if isinstance(url, str) else ""
    if not any(covers.values()):
        raise ManifestError(f"{path}: no cover has an imageURL; --source takes the published {_FILE}")
    return covers


def _why_refused(id_: str, url: str) -> str:
    """Why a cover is not asked for; nothing where it is."""
    if not url:
        return "there is no imageURL"
    return why_refused(f"{id_}.jpg") if id_ and "/" not in id_ else "its id can't be the name of a file"


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
        raise ManifestError(f"cannot read {path}: {error.strerror or error}") from error
    if not ids:
        raise ManifestError(f"{path} names no image in {_FOLDER}; --only-referenced takes a JSON list of the training")
    return frozenset(ids)


def _digest(ids: frozenset[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode("utf-8", "surrogatepass")).hexdigest()
