"""A codec that dies of one body, as a decoder may of a hostile one."""

from __future__ import annotations

import os

from datafetch.model.outcome import Outcome
from datafetch.transcode import ImageSpec
from datafetch.transcode.codec import transcode

POISON = b"kills the process that works on it"
_STATUS = 66


def transcode_or_die(body: bytes, spec: ImageSpec) -> Outcome:
    """Do the same as ``transcode``, except that poison ends this process at once."""
    if body == POISON:
        os._exit(_STATUS)
    return transcode(body, spec)
