"""Reads which images training lists name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from datafetch.datasets.readers import RecordReader
from datafetch.errors import ManifestError, raise_if_exhausted


def read_referenced(paths: Sequence[Path], folder: PurePosixPath) -> frozenset[str]:
    """Read the names of all images in a folder, and in the folders below it, that JSON training lists name.

    Args:
        paths: The lists.
        folder: The folder, relative to the image root.

    Returns:
        Their names, relative to the folder.

    Raises:
        ManifestError: A list can't be read, or none names an image of the folder.
    """
    names = frozenset(name for path in paths for name in _names(path, folder))
    if not names:
        listed = " and ".join(map(str, paths))
        raise ManifestError(f"{listed} names no image in {folder}; --only-referenced takes a JSON training list")
    return names


def image_names(record: object) -> list[str]:
    """The paths of the images that a record of a training list names."""
    named = record.get("image") if isinstance(record, dict) else None
    return [name for name in (named if isinstance(named, list) else [named]) if isinstance(name, str)]


def _names(path: Path, folder: PurePosixPath) -> Iterator[str]:
    try:
        for record in RecordReader(path):
            for name in image_names(record):
                image = PurePosixPath(name)
                if image.is_relative_to(folder) and image != folder:
                    yield str(image.relative_to(folder))
    except ManifestError as error:
        raise ManifestError(f"{path} {error}; --only-referenced takes a JSON training list") from error
    except OSError as error:
        raise_if_exhausted(error)
        raise ManifestError(f"cannot read {path}: {error.strerror or error}") from error
