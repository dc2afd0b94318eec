"""The files of a sample: its images, its metadata and its caption, whether they become members of a tar or files."""

from __future__ import annotations

from collections.abc import Iterator

from datafetch.model.outcome import OK
from datafetch.output.formats.image_suffix import image_suffix
from datafetch.output.formats.sample_columns import (
    SampleValues,
    caption_text,
    has_several,
    image_name,
    metadata_json,
    require_plain_key,
)
from datafetch.output.row import OutputRow

TEXT_SUFFIXES = (".json", ".txt")
"""Of the files that are no images."""


def named_files(row: OutputRow, values: SampleValues) -> Iterator[tuple[str, bytes]]:
    """The names and contents of a sample's files, none if no image arrived; images are loaded one at a time.

    Args:
        row: The sample.
        values: Its columns.
    """
    key, are_several = require_plain_key(values), has_several(row)
    has_image = False
    for number, image in enumerate(row.images):
        if image.line.outcome == OK:
            content = image.load().jpeg
            yield image_name(key, number if are_several else None, image_suffix(content)), content
            has_image = True
    if has_image:
        yield f"{key}.json", metadata_json(values)
        caption = caption_text(values)
        if caption is not None:
            yield f"{key}.txt", caption
