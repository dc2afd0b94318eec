"""body → Encoded or Failure: the codec, and the pool of processes that it runs in.

Apart from the demo, which paints pictures, no other package imports Pillow; and this one only where images are decoded,
so not in the process that fetches them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from datafetch.transcode.pool.pool import MAX_PROCESSES, Transcoder
from datafetch.transcode.spec import (
    DEFAULT_MAX_PIXELS,
    RESIZER,
    BodyCheck,
    Encoding,
    ImageFormat,
    ImageSpec,
    Pixels,
    Resize,
    ResizeMode,
)

if TYPE_CHECKING:
    from datafetch.transcode.image.resize import load_resizer

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "MAX_PROCESSES",
    "RESIZER",
    "BodyCheck",
    "Encoding",
    "ImageFormat",
    "ImageSpec",
    "Pixels",
    "Resize",
    "ResizeMode",
    "Transcoder",
    "load_resizer",
]


# Lazy, because it loads Pillow, which the process that fetches does without.
def __getattr__(name: str) -> object:
    if name != "load_resizer":
        raise AttributeError(f"module 'datafetch.transcode' has no attribute {name!r}")
    return getattr(import_module("datafetch.transcode.image.resize"), name)
