"""Colour JPEGs decoded by simplejpeg, which has libjpeg-turbo write pixels where they stay; Pillow clears and copies.

Rules: simplejpeg is optional, and used only for those kinds of JPEG for which it was found to give Pillow's pixels in
this very environment. What it refuses, or what libjpeg warns of, is left to Pillow, which decides whether the image
fails, and why. Pixels and scans are bounded, so that decoding an image twice fits into the time that one may take.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from io import BytesIO

from PIL import Image, ImageFile

from datafetch.transcode.image.size_claims import jpeg_segments

_MAX_PIXELS = 1 << 24
# Each scan may concern all pixels, so thousands of scans take any time. Ordinary progressive JPEGs have about ten.
_MAX_SCANS = 64
_START_OF_SCAN = b"\xff\xda"
_COMPONENTS_OFFSET = 4  # from the marker to the number of the scan's components
# Markers of frames: baseline, extended and progressive ones, not those that are arithmetic or lossless.
_FRAMES, _SEQUENTIAL, _PROGRESSIVE = 0xC0, frozenset({0xC0, 0xC1}), 0xC2
_NO_FRAMES = frozenset({0xC4, 0xC8, 0xCC})  # other markers from 0xC0 to 0xCF
_SUBSAMPLINGS = frozenset({"444", "422", "420"})
_PROBE_SIZES_PX = ((16, 16), (37, 21), (1, 9))
_PROBE_QUALITIES = (30, 92, 75)


def decode_colour_jpeg(source: ImageFile.ImageFile, body: bytes) -> Image.Image | None:
    """Decode the pixels of an opened JPEG.

    Args:
        source: Opened but not loaded, and to be decoded at full size.
        body: The file.

    Returns:
        The pixels in mode RGBX, which Pillow writes as it writes RGB, with the information of ``source``; None if
        Pillow must decode it.

    Raises:
        MemoryError: There is not enough memory for the pixels.
    """
    width_px, height_px = source.size
    if source.format != "JPEG" or source.mode != "RGB" or width_px * height_px > _MAX_PIXELS:
        return None
    if not gives_pillows_pixels() or not _is_ordinary(body):
        return None
    return _decode(source, body)


@functools.cache
def gives_pillows_pixels() -> bool:
    """Return whether simplejpeg is installed and decodes a set of small JPEGs as the installed Pillow does.

    Their libjpegs may differ: a Pillow from a distribution, or Pillow-SIMD, has that of the system. A simplejpeg that
    can't be loaded, or does not work with the installed numpy, is as none: nothing depends on it.
    """
    try:
        import simplejpeg  # noqa: F401, PLC0415 - optional, and it loads numpy

        return all(_decodes_alike(jpeg) for jpeg in _probes())
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - whatever is wrong with it
        return False


def _is_ordinary(jpeg: bytes) -> bool:
    """Return whether a JPEG is of a kind that any libjpeg decodes, and that is compared, and has few scans."""
    segments = list(jpeg_segments(jpeg))
    frames = {marker for marker, _, _ in segments if marker & 0xF0 == _FRAMES} - _NO_FRAMES
    if frames == {_PROGRESSIVE}:
        return jpeg.count(_START_OF_SCAN) <= _MAX_SCANS
    # Behind a scan of all components, libjpeg accepts no other. Counting would take a hundredth of the decoding time.
    _, _, end = segments[-1]  # Pillow opens no JPEG without a frame
    components = jpeg.find(_START_OF_SCAN, end) + _COMPONENTS_OFFSET
    return frames <= _SEQUENTIAL and jpeg[components : components + 1] == b"\3"


def _decode(source: ImageFile.ImageFile, body: bytes) -> Image.Image | None:
    import numpy as np  # noqa: PLC0415 - as in gives_pillows_pixels()
    import simplejpeg  # noqa: PLC0415

    width_px, height_px = source.size
    try:
        # The size that libjpeg finds decides how much it writes, and a crafted file may show Pillow another one.
        header = simplejpeg.decode_jpeg_header(body)
        if header[:3] != (height_px, width_px, "YCbCr") or header[3] not in _SUBSAMPLINGS:
            return None
        pixels = np.empty(width_px * height_px * 4, np.uint8)
        simplejpeg.decode_jpeg(body, colorspace="RGBX", buffer=pixels)
    except (ValueError, LookupError, RuntimeError):  # damaged, warned of, or of a kind that TurboJPEG has no name for
        return None
    image = Image.frombuffer("RGBX", source.size, pixels, "raw", "RGBX", 0, 1)
    image.info = source.info
    return image


def _decodes_alike(jpeg: bytes) -> bool:
    with Image.open(BytesIO(jpeg), formats=["JPEG"]) as source:
        decoded = _decode(source, jpeg)
        pillows = source.convert("RGB")
    return (
        decoded is not None
        and decoded.convert("RGB").tobytes() == pillows.tobytes()
        and _saved(decoded) == _saved(pillows)
    )


def _probes() -> Iterator[bytes]:
    """Yield JPEGs of every kind that is decoded here: subsampling, progressive, restart markers, missing scans."""
    for size_px, quality in zip(_PROBE_SIZES_PX, _PROBE_QUALITIES, strict=True):
        picture = _picture(size_px)
        for subsampling, progressive, restart_rows in itertools.product((0, 1, 2), (False, True), (0, 1)):
            jpeg = _saved(
                picture,
                quality=quality,
                subsampling=subsampling,
                progressive=progressive,
                restart_marker_rows=restart_rows,
            )
            yield jpeg
            if progressive and not restart_rows:
                # Without its last scan; libjpeg smooths what lacks detail, in its own way in each version.
                yield jpeg[: jpeg.rindex(b"\xff\xc4")] + b"\xff\xd9"


def _picture(size_px: tuple[int, int]) -> Image.Image:
    """Paint saturated colours that change smoothly and abruptly."""
    shapes = (Image.linear_gradient("L"), Image.radial_gradient("L"), Image.linear_gradient("L").rotate(90))
    factors = (3, 7, 31)
    return Image.merge(
        "RGB",
        [
            shape.resize(size_px).point([value * factor % 256 for value in range(256)])
            for shape, factor in zip(shapes, factors, strict=True)
        ],
    )


def _saved(image: Image.Image, **options: int) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()
