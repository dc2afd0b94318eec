"""Which JPEGs can be kept byte for byte, instead of being encoded again."""

from __future__ import annotations

from PIL import ImageFile

from datafetch.transcode.image.fitting import Fitting, fit
from datafetch.transcode.image.jpeg_markers import END_OF_IMAGE, START_OF_SCAN, find_markers
from datafetch.transcode.image.viewer_pixels import is_correct
from datafetch.transcode.spec import Encoding, ImageFormat, ImageSpec, Pixels

_MAX_REDUCTION = 8  # libjpeg can decode an eighth of the pixels per side, but no less


def can_pass_through(source: ImageFile.ImageFile, spec: ImageSpec) -> bool:
    """Return whether, by its header, an opened image is a JPEG that is kept if it is intact.

    It must be grey or RGB: readers disagree on whether a JPEG with four components (CMYK) is stored inverted. Pillow
    opens only JPEGs of 8 bits. Unless all images are kept as received, it must have the requested size and pixels.
    """
    if source.format != "JPEG" or source.mode not in {"L", "RGB"}:
        return False
    return spec.encode is Encoding.RECEIVED or (
        spec.encode is Encoding.ORIGINAL
        and spec.image_format is ImageFormat.JPG
        and fit(source.size, spec) == Fitting(source.size, source.size)
        and (spec.pixels is Pixels.RECIPE or is_correct(source))
    )


def is_intact(source: ImageFile.ImageFile, body: bytes) -> bool:
    """Return whether an opened JPEG can be read to its end. It can't be used for anything else afterwards.

    All entropy-coded data is decoded, but into an eighth of the pixels per side, which saves most of the arithmetic.
    Data behind the end of the image, such as the video of a motion photo, is not examined.

    Args:
        source: The JPEG, opened but not loaded.
        body: The file.
    """
    # Pillow accepts some files that are cut off right before their end marker.
    if not _has_end_marker(body):
        return False
    width_px, height_px = source.size
    source.draft(None, (max(1, width_px // _MAX_REDUCTION), max(1, height_px // _MAX_REDUCTION)))
    try:
        source.load()
    except OSError:  # truncated or corrupt; the caller decodes it in full, which decides and words the failure
        return False
    return True


def _has_end_marker(jpeg: bytes) -> bool:
    """Return whether there is an end marker behind a scan."""
    has_scan = False
    for marker, _ in find_markers(jpeg):
        if marker == END_OF_IMAGE:
            return has_scan
        has_scan |= marker == START_OF_SCAN
    return False
