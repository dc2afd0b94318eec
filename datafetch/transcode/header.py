"""check_header(): judge one body by its header and its end, without decoding it, in microseconds."""

from __future__ import annotations

import hashlib

from datafetch.model.outcome import Encoded, Failure, Outcome
from datafetch.transcode.image.file_header import read_header
from datafetch.transcode.image.fitting import Refusal, permissions_for, refuse_size
from datafetch.transcode.spec import ImageSpec


def check_header(body: bytes, spec: ImageSpec) -> Outcome:
    """Keep a body whose format is on the allow-list, whose size is within the limits, and that is not cut off.

    Args:
        body: The response body as received.
        spec: Which sizes an image may have.

    Returns:
        ``Encoded`` with the body itself, or ``Failure`` of kind NOT_AN_IMAGE, TRUNCATED, CORRUPT, TOO_MANY_PIXELS,
        PLACEHOLDER, TOO_SMALL, AREA_TOO_LARGE or ASPECT_RATIO_TOO_LARGE. Both carry the body's sha256. Never raises for
        a bad body.
    """
    sha256 = hashlib.sha256(body).hexdigest()
    header = read_header(body)
    refusal = header if isinstance(header, Refusal) else refuse_size(header.size_px, spec)
    if isinstance(header, Refusal) or refusal is not None:
        assert refusal is not None, "it is the header, or that of its size"
        return Failure(refusal.kind, refusal.detail, sha256=sha256)
    width_px, height_px = header.size_px
    permitted = permissions_for(width_px * height_px, spec)
    return Encoded(body, width_px, height_px, header.file_format, sha256, is_original=True, permitted=permitted)
