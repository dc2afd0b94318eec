"""Reads which images training lists name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from datafetch.datasets.filenames import why_refused
from datafetch.datasets.readers import RecordReader
from datafetch.errors import ManifestError, unreadable


def read_referenced(
    paths: Sequence[Path], folder: PurePosixPath, name_of: Callable[[str], str | None] | None = None
) -> frozenset[str]:
    """Read the names of all images in a folder, and in the folders below it, that JSON training lists name.

    Args:
        paths: The lists.
        folder: The folder, relative to the image root.
        name_of: Takes a path of a list, and returns its name relative to the folder, or None if it is not in that; by
            default it is in it if it begins with it.

    Returns:
        Their names, relative to the folder.

    Raises:
        ManifestError: A list can't be read, or none names an image of the folder.
    """

    def below_folder(name: str) -> str | None:
        image = PurePosixPath(name)
        return str(image.relative_to(folder)) if image.is_relative_to(folder) and image != folder else None

    names = frozenset(name for path in paths for name in _names(path, name_of or below_folder))
    if not names:
        listed = " and ".join(map(str, paths))
        raise ManifestError(f"{listed} names no image in {folder}; --only-referenced takes a JSON training list")
    return names


def read_image_names(path: Path, place: Callable[[str], str] = str) -> frozenset[str]:
    """Read the paths of all images that a training list names, of the records that the trainer can use.

    Args:
        path: The list.
        place: Returns where an image is, given the path that the list has.

    Raises:
        ManifestError: The list can't be read, or names no image.
    """
    names: set[str] = set()
    for record in _records(path, "--source takes the published list"):
        with suppress(ValueError):
            names.update(image_names(record, place))
    if not names:
        raise ManifestError(f"{path} names no image; --source takes the published list")
    return frozenset(names)


def image_names(record: object, place: Callable[[str], str] = str) -> list[str]:
    """The paths of the images that a record of a training list names; none if it is text only.

    Args:
        record: The record.
        place: Returns where an image is, given the path that the record has.

    Raises:
        ValueError: The trainer can't use the record.
    """
    if not isinstance(record, dict):
        raise ValueError("the record is not an object")  # noqa: TRY004 - of the record, not of an argument
    if "image" not in record:
        return []
    named = record["image"]
    names = named if isinstance(named, list) else [named]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("its image is neither a path nor a list of paths")
    places = list(map(place, names))
    for one in places:
        if reason := why_refused(one):
            raise ValueError(reason)
    return places


def _names(path: Path, name_of: Callable[[str], str | None]) -> Iterator[str]:
    for record in _records(path, "--only-referenced takes a JSON training list"):
        named = record.get("image") if isinstance(record, dict) else None
        for path_of_image in named if isinstance(named, list) else [named]:
            if isinstance(path_of_image, str) and (name := name_of(path_of_image)) is not None:
                yield name


def _records(path: Path, advice: str) -> Iterator[object]:
    try:
        yield from RecordReader(path)
    except ManifestError as error:
        raise ManifestError(f"{path} {error}; {advice}") from error
    except OSError as error:
        raise unreadable(path, error) from error
