"""A JSON list of records and a folder of images, as the trainer's loader sees them.

Rules: the paths in records are untrusted. They never lead out of the image root, and only regular files are opened. An
image that several records share is examined once.
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

    Raises:
        ConfigurationError: The file is empty, or the image root is not a folder.
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
        messages = _conversation_problems(record.get("conversations"), has_image="image" in record)
        problems = [Problem(location, message) for message in islice(messages, _MAX_CONVERSATION_PROBLEMS)]
        try:
            names = _image_names(record)
        except ValueError as error:
            problems.append(Problem(location, str(error)))
            names = []
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


def read_image(path: Path, real_root: str) -> bytes:
    """Read an image file.

    Args:
        path: The file.
        real_root: The folder that must contain it, with all links resolved.

    Raises:
        ValueError: It is not a regular file, is too large, or lies outside the folder because of a link.
        OSError: It can't be read.
    """
    if leads_out(path, real_root):
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


def _conversation_problems(turns: object, *, has_image: bool) -> Iterator[str]:
    if not isinstance(turns, list) or not turns:
        yield "conversations is not a list with at least one turn"
        return
    has_placeholder = False
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            yield f"turn {number} is not a dict"
            continue
        if turn.get("from") not in _SPEAKERS:
            yield f"turn {number} is from neither {' nor '.join(_SPEAKERS)}"
        value = turn.get("value")
        if isinstance(value, str):
            has_placeholder = has_placeholder or _IMAGE_PLACEHOLDER in value
        else:
            yield f"turn {number} has a value that is not a str"
    if has_image and not has_placeholder:
        yield f"has an image, but {_IMAGE_PLACEHOLDER} in none of its turns"
