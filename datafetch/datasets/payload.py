"""Puts images into rows, either as the bytes of the file or as their base64 text."""

from __future__ import annotations

from collections.abc import Mapping

import pybase64

from datafetch.model.kinds import Payload
from datafetch.model.outcome import Encoded
from datafetch.model.sample import Record, Row

IMAGE_FIELDS: Mapping[Payload, str] = {Payload.BASE64: "image", Payload.BYTES: "rawbytes"}
"""The field of a pair that holds its image. VILA's loader takes ``rawbytes`` only if there is no ``image``."""


def pack(jpeg: bytes, payload: Payload) -> str | bytes:
    """Make the value of an image's field in a row."""
    # 3 µs for 60 KB, where the standard library takes 90 µs for the same text.
    return pybase64.b64encode_as_string(jpeg) if payload == Payload.BASE64 else jpeg


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
