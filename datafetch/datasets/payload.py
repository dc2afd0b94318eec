"""Puts images into rows, either as the bytes of the file or as their base64 text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pybase64

from datafetch.model.kinds import Loader, Payload
from datafetch.model.outcome import Encoded
from datafetch.model.sample import Record, Row

IMAGE_FIELDS: Mapping[Payload, str] = {Payload.BASE64: "image", Payload.BYTES: "rawbytes"}
"""The field of a pair that holds its image. VILA's loader takes ``rawbytes`` only if there is no ``image``."""

IMAGES_FIELD, BASE64_FIELD = "image_info", "image_base64"
"""The field of a document that lists its images, and the field of an image that holds it."""


def pack(jpeg: bytes, payload: Payload) -> str | bytes:
    """Make the value of an image's field in a row."""
    # 3 µs for 60 KB, where the standard library takes 90 µs for the same text.
    return pybase64.b64encode_as_string(jpeg) if payload == Payload.BASE64 else jpeg


def unpack_image(row: Mapping[str, Any], number: int, loader: Loader | None) -> bytes:
    """Take an image out of a row.

    Args:
        row: The row.
        number: Which of its images, counted from 0.
        loader: Which of the trainer's loaders reads it: that of pairs, or that of documents.

    Raises:
        LookupError: The row has no such image.
        ValueError: It is not base64.
        TypeError: The row is of another form.
    """
    if loader is Loader.MMC4:
        text = row[IMAGES_FIELD][number][BASE64_FIELD]
    elif IMAGE_FIELDS[Payload.BASE64] in row:
        text = row[IMAGE_FIELDS[Payload.BASE64]]
    else:
        return bytes(row[IMAGE_FIELDS[Payload.BYTES]])
    return pybase64.b64decode(text, validate=True)


def pair_row(record: Record, payload: Payload) -> Row | None:
    """Build the row of a pair: its metadata and its image, which replaces any field of that name.

    Returns:
        The row, or None if the image did not arrive.
    """
    match record.outcomes:
        case (Encoded(jpeg=jpeg),):
            metadata = {key: value for key, value in record.sample.row.items() if key not in IMAGE_FIELDS.values()}
            return {**metadata, IMAGE_FIELDS[payload]: pack(jpeg, payload)}
    return None
