"""Resizing: by what an image is resized, and how it is cut or framed then."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageFile

from datafetch.transcode.image.fast_resize import fast_resizer
from datafetch.transcode.image.fitting import Fitting, Size, fit
from datafetch.transcode.image.reduced_decoding import Box, reduce_decoding
from datafetch.transcode.spec import ImageSpec

_WHITE = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Resizing:
    """How one image is brought to its size.

    Attributes:
        fitting: To which size.
        enlarges: Whether it is enlarged.
        is_fast: Whether the fast resizer shrinks it, and not Pillow.
        box: The part of the decoded pixels that holds the picture; None for all.
    """

    fitting: Fitting
    enlarges: bool = False
    is_fast: bool = False
    box: Box | None = None

    def changes(self, size_px: Size) -> bool:
        """Whether an image of this size is changed at all."""
        return self.fitting != Fitting(size_px, size_px)

    def apply(self, image: Image.Image) -> Image.Image:
        """Resize decoded pixels: to fewer with a bicubic filter, Pillow's default and the recipe's; to more by Lanczos.

        Args:
            image: In mode L, RGB or CMYK. If it has the target size already, it is returned itself.
        """
        size_px = self.fitting.resized_px
        if image.size == size_px:
            return image
        if self.enlarges:
            return image.resize(size_px, Image.Resampling.LANCZOS)
        if self.is_fast:
            return fast_resizer().shrink(image, size_px, self.box)
        return image.resize(size_px, box=self.box)

    def frame(self, image: Image.Image) -> Image.Image:
        """Cut a resized image to a square, or put it into a white one, in the middle of both.

        Where the rest can't be halved, the right or lower part gets one pixel more.

        Args:
            image: In mode RGB, as it is written: an image that is neither cut nor framed is returned itself.
        """
        if self.fitting.written_px == self.fitting.resized_px:
            return image
        width_px, height_px = self.fitting.written_px
        if image.width >= width_px and image.height >= height_px:
            left, top = (image.width - width_px) // 2, (image.height - height_px) // 2
            return image.crop((left, top, left + width_px, top + height_px))
        framed = Image.new("RGB", (width_px, height_px), _WHITE)
        framed.paste(image, ((width_px - image.width) // 2, (height_px - image.height) // 2))
        framed.info = image.info.copy()
        return framed


def prepare_resizing(source: ImageFile.ImageFile, spec: ImageSpec) -> Resizing:
    """Determine how an image is resized; where the spec says fast, a large JPEG will be decoded at a reduced size.

    Args:
        source: Opened but not loaded.
        spec: What the image becomes.
    """
    fitting = fit(source.size, spec)
    enlarges = any(to_px > from_px for to_px, from_px in zip(fitting.resized_px, source.size, strict=True))
    box = reduce_decoding(source, fitting.resized_px) if spec.shrinks_fast and not enlarges else None
    return Resizing(fitting, enlarges, spec.shrinks_fast, box)


def load_resizer(spec: ImageSpec) -> None:
    """Load what shrinks images by a spec, so that its absence is noticed before the first image.

    Raises:
        ConfigurationError: It is not installed, or does not work as it should.
    """
    if spec.shrinks_fast:
        fast_resizer()
