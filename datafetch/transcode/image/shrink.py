"""Shrinking: by what an image is shrunk, and from which of its pixels."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageFile

from datafetch.transcode.image.fast_resize import fast_resizer
from datafetch.transcode.image.resize import Box, Size, reduce_decoding, shrunk_size_px
from datafetch.transcode.spec import ImageSpec


@dataclass(frozen=True, slots=True)
class Shrinking:
    """How one image is shrunk.

    Attributes:
        size_px: The target size.
        is_fast: Whether the fast resizer shrinks it, and not Pillow.
        box: The part of the decoded pixels that holds the picture; None for all.
    """

    size_px: Size
    is_fast: bool = False
    box: Box | None = None

    def apply(self, image: Image.Image) -> Image.Image:
        """Shrink decoded pixels with a bicubic filter, Pillow's default and the recipe's.

        Args:
            image: In mode L, RGB or CMYK. If it has the target size already, it is returned itself.
        """
        if image.size == self.size_px:
            return image
        if self.is_fast:
            return fast_resizer().shrink(image, self.size_px, self.box)
        return image.resize(self.size_px, box=self.box)


def prepare_shrinking(source: ImageFile.ImageFile, spec: ImageSpec) -> Shrinking:
    """Determine how an image is shrunk; where the spec says fast, a large JPEG will be decoded at a reduced size.

    Args:
        source: Opened but not loaded.
        spec: What the image becomes.
    """
    size_px = shrunk_size_px(source.size, spec.short_side_px)
    box = reduce_decoding(source, size_px) if spec.shrinks_fast else None
    return Shrinking(size_px, spec.shrinks_fast, box)


def load_resizer(spec: ImageSpec) -> None:
    """Load what shrinks images by a spec, so that its absence is noticed before the first image.

    Raises:
        ConfigurationError: It is not installed, or does not work as it should.
    """
    if spec.shrinks_fast:
        fast_resizer()
