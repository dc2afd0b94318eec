"""A JSON list of records and a folder of images, as the trainer's loader sees them.

Rules: a path in a record is somebody else's: it never leads out of the image root, and what it names is opened only if
it is an ordinary file. An image that many records share is looked at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from datafetch.datasets.readers import RecordReader
from datafetch.errors import ConfigurationError, ManifestError, raise_want
from datafetch.model.kinds import Loader
from datafetch.store.atomic import leads_out
from datafetch.verify.findings import Examined, FoundImage, Place, Problem, clean
from datafetch.verify.rows import key_of

_MOST_IMAGE_BYTES = 256 << 20
_MOST_SHOWN_CHARS = 100
_MOST_FAULTS = 100  # of one conversation
_SPEAKERS = ("human", "gpt")
_IMAGE_MARK = "<image>"


class RecordList:
    """What a JSON list and the files that it names hold.

    Args:
        path: The JSON file.
        image_root: What the paths in it start from.

    Raises:
        ConfigurationError: The file is empty, or can't be looked into.
    """

    def __init__(self, path: Path, image_root: Path) -> None:
        self.loader = Loader.TORCH
        self.total_bytes = path.stat().st_size
        if not self.total_bytes:
            raise ConfigurationError(f"{path} is empty; give a JSON list of records")
        if not image_root.is_dir():
            raise ConfigurationError(f"the image root {image_root} is not a folder; give another --image-root")
        self._path = path
        self._image_root = image_root
        self._real_root = os.path.realpath(image_root)
        # Their hashes, which take the same memory however long the names are.
        self._seen: set[int] = set()

    def examine(self) -> Iterator[Examined]:
        """Examine the records in order, each with the images that none before it had."""
        reader = RecordReader(self._path)
        file, number = self._path.name, 0
        fault = ""
        try:
            for record in reader:
                yield from self._examine_record(Place(file, number), record, reader.take_bytes())
                number += 1
        except ManifestError as error:
            fault = f"{error}; {number:,} records could be read"
        except OSError as error:
            raise_want(error)
            fault = f"can't be read: {error.strerror or error}"
        if fault or not number:
            yield Examined(problems=(Problem(Place(file), fault or "has no records"),))

    def _examine_record(self, place: Place, record: object, read_bytes: int) -> Iterator[Examined]:
        """What a record comes to, and then its images one by one, for it may name any number of them."""
        if not isinstance(record, dict):
            problem = Problem(place, f"is a {type(record).__name__}, not a dict")
            yield Examined(1, (problem,), read_bytes=read_bytes)
            return
        place = Place(place.file, place.row, key=key_of(record))
        faults = _conversation_faults(record.get("conversations"), has_image="image" in record)
        problems = [Problem(place, fault) for fault in islice(faults, _MOST_FAULTS)]
        try:
            names = _image_names(record)
        except ValueError as error:
            problems.append(Problem(place, str(error)))
            names = []
        yield Examined(1, tuple(problems), read_bytes=read_bytes)
        for name in names:
            try:
                yield Examined(images=self._new_image(place, name))
            except (OSError, ValueError) as error:
                raise_want(error)
                reason = error.strerror if isinstance(error, OSError) else error
                fault = f"image {clean(name, _MOST_SHOWN_CHARS)!r}: {reason}"
                yield Examined(problems=(Problem(place, fault),))

    def _new_image(self, place: Place, name: str) -> tuple[FoundImage, ...]:
        """The image of this name, unless it was looked at before.

        Raises:
            ValueError: It is not a name of an ordinary file under the root, or too large.
            OSError: It can't be read.
        """
        inside = os.path.normpath(name)
        if hash(inside) in self._seen:
            return ()
        self._seen.add(hash(inside))
        if Path(inside).is_absolute() or inside.split(os.sep, 1)[0] == os.pardir:
            raise ValueError("leads out of the image root")
        return (FoundImage(place, read_image(self._image_root / inside, self._real_root)),)


def read_image(path: Path, real_root: str) -> bytes:
    """What an image file holds.

    Args:
        path: Of the file.
        real_root: The folder that it is to lie in, without links.

    Raises:
        ValueError: It is no ordinary file, too large, or by some link in another folder.
        OSError: It can't be read.
    """
    if leads_out(path, real_root):
        raise ValueError("is a link that leads out of its folder")
    if path.exists() and not path.is_file():
        raise ValueError("is not an ordinary file")
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > _MOST_IMAGE_BYTES:
            raise ValueError(f"has more than {_MOST_IMAGE_BYTES:,} bytes")
        return file.read(_MOST_IMAGE_BYTES)


def _image_names(record: dict[str, object]) -> list[str]:
    """What ``image`` names: nothing, a path or several.

    Raises:
        ValueError: It is there, and something else.
    """
    if "image" not in record:
        return []
    match record["image"]:
        case str(name) if name:
            return [name]
        case [*names] if names and all(isinstance(name, str) and name for name in names):
            return [name for name in names if isinstance(name, str)]
        case _:
            raise ValueError("image is neither a path nor a list of paths")


def _conversation_faults(turns: object, *, has_image: bool) -> Iterator[str]:
    if not isinstance(turns, list) or not turns:
        yield "conversations is not a list with at least one turn"
        return
    is_marked = False
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            yield f"turn {number} is not a dict"
            continue
        if turn.get("from") not in _SPEAKERS:
            yield f"turn {number} is from neither {' nor '.join(_SPEAKERS)}"
        value = turn.get("value")
        if isinstance(value, str):
            is_marked = is_marked or _IMAGE_MARK in value
        else:
            yield f"turn {number} has a value that is not a str"
    if has_image and not is_marked:
        yield f"has an image, and {_IMAGE_MARK} in none of its turns"
