"""Datasets whose images are saved as files under names of their own: what they have in common."""

from __future__ import annotations

from pathlib import Path

from datafetch.errors import ManifestError
from datafetch.model.outcome import Encoded
from datafetch.model.sample import Record, Row

SAMPLES_PER_SHARD = 2000
"""What is committed at once: some 200 MB of images. A shard that lacks a file is fetched again as a whole."""


def image_file_row(record: Record) -> Row | None:
    """The file of a sample with one image: its name, its content, whose it is; None where it did not arrive.

    The sample's row has the name as ``image``.
    """
    match record.outcomes:
        case (Encoded(jpeg=content),):
            return {"name": record.sample.row["image"], "content": content, "sample": record.sample.position}
    return None


def slice_name(number: int) -> str:
    """The name of a slice of a list."""
    return f"part-{number:05d}"


def find_file(source: Path, published: str) -> Path:
    """The file itself, or that of the published name in a folder.

    Raises:
        ManifestError: There is none.
    """
    path = source / published if source.is_dir() else source
    if not path.is_file():
        raise ManifestError(f"there is no file {path}; --source takes {published}, or the folder that holds it")
    return path
