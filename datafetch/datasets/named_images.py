"""What datasets have in common whose images become files with names that the dataset gives.

Such a dataset is published as one long list in one file. Its shards are slices of that list.
"""

from __future__ import annotations

from pathlib import Path

from datafetch.errors import ManifestError
from datafetch.model.outcome import Encoded
from datafetch.model.sample import Record, Row

SAMPLES_PER_SHARD = 2000
"""How many samples are committed at once, some 200 MB of images. If a file of a shard is lost, the whole shard is made
again."""


def image_file_row(record: Record) -> Row | None:
    """Build the row of a sample with one image, whose file name the sample's metadata has under ``image``.

    Returns:
        The file's name, its content and the sample's position; None if the image did not arrive.
    """
    match record.outcomes:
        case (Encoded(jpeg=content),):
            return {"name": record.sample.row["image"], "content": content, "sample": record.sample.position}
    return None


def slice_name(number: int) -> str:
    """Make the name of a shard from the number of its slice, counted from 0."""
    return f"part-{number:05d}"


def find_file(source: Path, published: str) -> Path:
    """Find the published file in the source folder; a source that is a file is taken for it.

    Raises:
        ManifestError: There is no such file.
    """
    path = source / published if source.is_dir() else source
    if not path.is_file():
        raise ManifestError(f"there is no file {path}; --source takes {published}, or the folder that holds it")
    return path
