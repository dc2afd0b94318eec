"""body → Encoded or Failure: the codec, and the pool of processes that it runs in.

Apart from the demo, which paints pictures, no other package imports Pillow.
"""

from datafetch.transcode.image.fast_resize import RESIZER
from datafetch.transcode.image.shrink import load_resizer
from datafetch.transcode.pool.pool import MAX_PROCESSES, Transcoder
from datafetch.transcode.spec import DEFAULT_MAX_PIXELS, Encoding, ImageSpec, Pixels, Resize

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "MAX_PROCESSES",
    "RESIZER",
    "Encoding",
    "ImageSpec",
    "Pixels",
    "Resize",
    "Transcoder",
    "load_resizer",
]
