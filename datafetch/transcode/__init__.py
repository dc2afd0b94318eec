"""body → Encoded or Failure: the codec, and the pool of processes that it runs in.

Apart from the demo, which paints pictures, no other package imports Pillow.
"""

from datafetch.transcode.pool.pool import MAX_PROCESSES, Transcoder
from datafetch.transcode.spec import DEFAULT_MAX_PIXELS, Encoding, ImageSpec, Pixels, Resize

__all__ = ["DEFAULT_MAX_PIXELS", "MAX_PROCESSES", "Encoding", "ImageSpec", "Pixels", "Resize", "Transcoder"]
