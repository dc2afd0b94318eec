"""body → Encoded or Failure. Pillow lives here, and in the demo that paints pictures, and nowhere else."""

from datafetch.transcode.pool.pool import MAX_PROCESSES, Transcoder
from datafetch.transcode.spec import DEFAULT_MAX_PIXELS, Encoding, ImageSpec, Pixels, Resize

__all__ = ["DEFAULT_MAX_PIXELS", "MAX_PROCESSES", "Encoding", "ImageSpec", "Pixels", "Resize", "Transcoder"]
