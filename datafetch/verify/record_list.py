"""A JSON list of records and a folder of images, as the trainer's loader sees them.

Rules: the paths in records are untrusted. They never lead out of the image root, but through links if the operator says
so, and only regular files are opened. An image that several records share is examined once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from datafetch.datasets.readers import RecordReader
from datafetch.errors import ConfigurationError, ManifestError, raise_if_exhausted
from datafetch.model.kinds import Loader
from datafetch.store.atomic import leads_out
from datafetch.verify.findings import Examination, ImageToDecode, Location, Problem, clean
from datafetch.verify.rows import row_key

_MAX_IMAGE_BYTES = 256 << 20
_MAX_SHOWN_CHARS = 100
_MAX_CONVERSATION_PROBLEMS = 100
_SPEAKERS = ("human", "gpt")
_IMAGE_PLACEHOLDER = "<image>"


class RecordList:
    """The records of a JSON list, and the images that they refer to.

    Args:
        path: The JSON file.
        image_root: The folder to which the paths in it are relative.
        follow_links: Whether links may lead out of that folder.

    Raises:
        ConfigurationError: The file is empty, or the image root is not a folder.
    """

    def __init__(self, path: Path, image_root: Path, *, follow_links: bool = False) -> None:
        self.loader = Loader.TORCH
        self.total_bytes = path.stat().st_size
        if not self.total_bytes:
            raise ConfigurationError(f"{path} is empty; give a JSON list of records")
        if not image_root.is_dir():
            raise ConfigurationError(f"the image root {image_root} is not a folder; give another --image-root")
        self._path = path
        self._image_root = image_root
        self._real_root = None if follow_links else os.path.realpath(image_root)
        # Hashes of paths, which take the same memory however long the paths are.
        self._seen: set[int] = set()

    def examine(self) -> Iterator[Examination]:
        """Examine the records in order, each with the images that no earlier record had."""
        reader = RecordReader(self._path)
        file, number = self._path.name, 0
        problem = ""
        try:
            for record in reader:
                yield from self._examine_record(Location(file, number), record, reader.pop_read_bytes())
                number += 1
        except ManifestError as error:
            problem = f"{error}; {number:,} records could be read"
        except OSError as error:
            raise_if_exhausted(error)
            problem = f"can't be read: {error.strerror or error}"
        if problem or not number:
            yield Examination(problems=(Problem(Location(file), problem or "has no records"),))

    def _examine_record(self, location: Location, record: object, read_bytes: int) -> Iterator[Examination]:
        """Yield the examination of a record, and then its images one by one, because it may have any number of them."""
        if not isinstance(record, dict):
            problem = Problem(location, f"is of type {type(record).__name__}, not a dict")
            yield Examination(1, (problem,), read_bytes=read_bytes)
            return
        location = Location(location.file, location.row, key=row_key(record))
        problems = []
        try:
            names = _image_names(record)
        except ValueError as error:
            problems.append(Problem(location, str(error)))
            names = []
        images = len(names) or None
        messages = _conversation_problems(record.get("conversations"), images)
        problems += [Problem(location, message) for message in islice(messages, _MAX_CONVERSATION_PROBLEMS)]
        yield Examination(1, tuple(problems), read_bytes=read_bytes)
        for name in names:
            try:
                yield Examination(images=self._new_image(location, name))
            except (OSError, ValueError) as error:
                raise_if_exhausted(error)
                reason = error.strerror if isinstance(error, OSError) else error
                message = f"image {clean(name, _MAX_SHOWN_CHARS)!r}: {reason}"
                yield Examination(problems=(Problem(location, message),))

    def _new_image(self, location: Location, name: str) -> tuple[ImageToDecode, ...]:
        """Read the image at this path, unless it was read before.

        Raises:
            ValueError: The path is not that of a regular file under the root, or the file is too large.
            OSError: The file can't be read.
        """
        relative_path = os.path.normpath(name)
        if hash(relative_path) in self._seen:
            return ()
        self._seen.add(hash(relative_path))
        if Path(relative_path).is_absolute() or relative_path.split(os.sep, 1)[0] == os.pardir:
            raise ValueError("leads out of the image root")
        return (ImageToDecode(location, read_image(self._image_root / relative_path, self._real_root)),)


def read_image(path: Path, real_root: str | None = None) -> bytes:
    """Read an image file.

    Args:
        path: The file.
        real_root: The folder that must contain it, with all links resolved; None if links may lead anywhere.

    Raises:
        ValueError: It is not a regular file, is too large, or lies outside the folder because of a link.
        OSError: It can't be read.
    """
    if real_root is not None and leads_out(path, real_root):
        raise ValueError("is a link that leads out of its folder")
    if path.exists() and not path.is_file():
        raise ValueError("is not a regular file")
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > _MAX_IMAGE_BYTES:
            raise ValueError(f"has more than {_MAX_IMAGE_BYTES:,} bytes")
        return file.read(_MAX_IMAGE_BYTES)


def _image_names(record: dict[str, object]) -> list[str]:
    """Return the paths that ``image`` gives: none, one or several.

    Raises:
        ValueError: It is neither a path nor a list of paths.
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


def _conversation_problems(turns: object, images: int | None) -> Iterator[str]:
    """What the trainer can't use of a conversation.

    Args:
        turns: What the record has as its conversation.
        images: The number of its images; None if it has none, or their number is not known.
    """
    if not isinstance(turns, list) or not turns:
        yield "conversations is not a list with at least one turn"
        return
    problems = 0
    for number, turn in enumerate(turns):
        if problem := _turn_problem(number, turn):
            problems += 1
            yield problem
    if problems:
        return
    if len(turns) % 2:
        yield f"there is an odd number of turns, {len(turns)}: the last has no answer"
    placeholders = sum(turn["value"].count(_IMAGE_PLACEHOLDER) for turn in turns)
    if images is not None and placeholders != images:
        yield f"the number of its images is {images}, and that of {_IMAGE_PLACEHOLDER} in its turns {placeholders}"


def _turn_problem(number: int, turn: object) -> str:
    if not isinstance(turn, dict):
        return f"turn {number} is not a dict"
    if not isinstance(turn.get("value"), str):
        return f"turn {number} has a value that is not a str"
    speaker, expected = turn.get("from"), _SPEAKERS[number % 2]
    if speaker not in _SPEAKERS:
        return f"turn {number} is from neither {' nor '.join(_SPEAKERS)}"
    return "" if speaker == expected else f"turn {number} is from {speaker}, and should be from {expected}"
