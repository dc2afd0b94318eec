"""body → Encoded or Failure. Pillow lives here, and in the demo that paints pictures, and nowhere else."""

from datafetch.transcode.pool import Transcoder
from datafetch.transcode.spec import Encoding, ImageSpec, Pixels, Resize

__all__ = ["Encoding", "ImageSpec", "Pixels", "Resize", "Transcoder"]
