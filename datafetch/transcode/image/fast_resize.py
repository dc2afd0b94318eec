"""Shrinks images with cykooz-resizer, several times faster than Pillow: what ``--resize fast`` does.

Theory of operation. The library computes what Pillow-SIMD computes, with 16-bit weights, but the height first, and
values are clipped between the two directions. So the width is done by a first call and the height by a second one, as
in Pillow-SIMD and, nearly always, in Pillow. The result then equals that of Pillow-SIMD 12.1.1 byte for byte, and
differs from Pillow's by rounding.

Rules: the bytes are the same on every machine and with every version of the library and of Pillow. A known image is
shrunk before the first one of a process, and another result than the known one is refused. The library reads Pillow's
images in memory, whose layout is not public, so only versions of Pillow are accepted whose layout it knows.
"""

from __future__ import annotations

import functools
import platform
import zlib
from importlib.metadata import version
from importlib.util import find_spec

from PIL import Image

from datafetch.errors import ConfigurationError
from datafetch.transcode.image.fitting import Size
from datafetch.transcode.image.reduced_decoding import Box

_LIBRARY = "cykooz_resizer"
_MAX_PILLOW_MAJOR = 13
_KNOWN_SIZE, _KNOWN_TARGET, _KNOWN_BOX = (61, 47), (23, 17), (0.0, 0.0, 60.5, 46.25)
_KNOWN_CHECKSUMS = {"L": (1, 3286927013), "RGB": (3, 1629950094), "CMYK": (4, 3219417163)}
"""Of the known image shrunk: the number of channels and the CRC-32 of the pixels, by mode."""


class FastResizer:
    """Shrinks images of mode L, RGB and CMYK by a bicubic filter.

    Raises:
        ConfigurationError: The library is not installed, or gives other pixels than it should.
    """

    def __init__(self) -> None:
        self._require_versions()
        import cykooz_resizer  # noqa: PLC0415 - an extra, needed only for --resize fast

        self._crop_box, self._options = cykooz_resizer.CropBox, cykooz_resizer.ResizeOptions
        self._filter = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.catmull_rom)
        self._resizer = cykooz_resizer.Resizer()
        if platform.machine() != "x86_64":  # on x86-64 it was tested that its SSE4.1, AVX2 and plain code agree
            self._resizer.cpu_extensions = cykooz_resizer.CpuExtensions.none
        self._check_known_pixels()

    def shrink(self, image: Image.Image, size_px: Size, box: Box | None = None) -> Image.Image:
        """Shrink an image. As with ``Image.resize``, the result has the metadata of the image.

        Args:
            image: In mode L, RGB or CMYK.
            size_px: The target size, at least one pixel per side.
            box: The part of ``image`` that is shrunk; None for all.
        """
        left, top, right, bottom = box or (0, 0, *image.size)
        narrow = Image.new(image.mode, (size_px[0], image.height))
        self._resize(image, narrow, (left, 0, right, image.height))
        small = Image.new(image.mode, size_px)
        self._resize(narrow, small, (0, top, size_px[0], bottom))
        small.info = image.info.copy()
        return small

    def _resize(self, source: Image.Image, target: Image.Image, box: Box) -> None:
        left, top, right, bottom = box
        crop_box = self._crop_box(left, top, right - left, bottom - top)
        self._resizer.resize_pil(source, target, self._options(self._filter, crop_box=crop_box))

    @staticmethod
    def _require_versions() -> None:
        if find_spec(_LIBRARY) is None:
            raise ConfigurationError(
                "--resize fast needs the library cykooz-resizer; install it with: pip install 'vlm-datafetch[fast]'"
            )
        pillow = version("pillow")
        if int(pillow.partition(".")[0]) > _MAX_PILLOW_MAJOR:
            raise ConfigurationError(
                f"--resize fast works with Pillow up to version {_MAX_PILLOW_MAJOR}, and not with {pillow}; install "
                "one with: pip install 'vlm-datafetch[fast]', or use --resize exact"
            )

    def _check_known_pixels(self) -> None:
        for mode, (channels, checksum) in _KNOWN_CHECKSUMS.items():
            small = self.shrink(_known_image(mode, channels), _KNOWN_TARGET, _KNOWN_BOX)
            if zlib.crc32(small.tobytes()) != checksum:
                raise ConfigurationError(
                    f"cykooz-resizer {version(_LIBRARY)} with Pillow {version('pillow')} gives other pixels than "
                    "--resize fast promises; install versions that fit with: pip install 'vlm-datafetch[fast]', or use "
                    "--resize exact"
                )


def _known_image(mode: str, channels: int) -> Image.Image:
    """Make an image of noise; its pixels follow from integer arithmetic alone."""
    samples = range(_KNOWN_SIZE[0] * _KNOWN_SIZE[1] * channels)
    return Image.frombytes(mode, _KNOWN_SIZE, bytes((number * number * 2654435761 >> 16) & 255 for number in samples))


@functools.cache
def fast_resizer() -> FastResizer:
    """Return the resizer of this process, loaded and checked at the first call.

    Raises:
        ConfigurationError: It can't be used here.
    """
    return FastResizer()
