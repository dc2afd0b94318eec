"""The codec as a child process of ``instructions``: it encodes each of the files that the command line names, once.

Rules: it imports as little as it can, because everything takes fifty times as long under valgrind.
"""

from __future__ import annotations

import sys
from pathlib import Path

from datafetch.model.outcome import Encoded
from datafetch.transcode.codec import transcode
from datafetch.transcode.spec import ImageSpec


def main() -> None:
    """Encode the files; the command line has the short side in pixels, or 0, and their paths."""
    spec = ImageSpec(short_side_px=int(sys.argv[1]) or None)
    for path in map(Path, sys.argv[2:]):
        if not isinstance(transcode(path.read_bytes(), spec), Encoded):
            raise SystemExit(f"{path} was not encoded")
