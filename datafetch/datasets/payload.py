"""How rows hold images: the bytes of the file themselves, or base64 of them, for every dataset alike."""

from __future__ import annotations

from collections.abc import Mapping

import pybase64

from datafetch.model.kinds import Payload
from datafetch.model.outcome import Encoded
from datafetch.model.sample import Record, Row

IMAGE_FIELDS: Mapping[Payload, str] = {Payload.BASE64: "image", Payload.BYTES: "rawbytes"}
"""Where a pair has its image, as VILA's loader reads it: the first of the two that is there."""


def pack(jpeg: bytes, payload: Payload) -> str | bytes:
    """The value that stands for an image in a row; under which name is for the dataset to say."""
    # 3 µs for 60 KB where the standard library takes 90, and the same text.
    return pybase64.b64encode_as_string(jpeg) if payload == Payload.BASE64 else jpeg


def pair_row(record: Record, payload: Payload) -> Row | None:
    """The row of a pair: its metadata with the image, whatever stood there; None where the image did not arrive."""
    match record.outcomes:
        case (Encoded(jpeg=jpeg),):
            metadata = {key: value for key, value in record.sample.row.items() if key not in IMAGE_FIELDS.values()}
            return {**metadata, IMAGE_FIELDS[payload]: pack(jpeg, payload)}
    return None
