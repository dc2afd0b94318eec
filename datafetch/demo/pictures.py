"""Pictures that compress like photographs, painted from noise; the same seed gives the same pictures."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

# Grid cells per side, and contrast. As in a photograph, brightness varies from coarse shapes to fine grain, and colour
# only in coarse shapes.
_LIGHT = ((3, 80.0), (9, 60.0), (30, 35.0), (90, 22.0), (250, 14.0))
_COLOUR = ((2, 45.0), (7, 35.0))
_SIZES_PX = ((640, 480), (480, 640), (800, 600), (1024, 683), (336, 336), (300, 200), (500, 375), (720, 1080))


@dataclass(frozen=True, slots=True)
class Kind:
    """A file format and pixel mode that occur on the web."""

    suffix: str
    format: str
    mode: str
    quality: int = 85


# In the proportions of a web crawl, in which four of five images are JPEGs.
KINDS = (
    *(Kind(".jpg", "JPEG", "RGB"),) * 15,
    Kind(".jpg", "JPEG", "L"),
    Kind(".jpg", "JPEG", "CMYK"),
    Kind(".png", "PNG", "RGB"),
    Kind(".png", "PNG", "RGBA"),
    Kind(".png", "PNG", "P"),
    Kind(".webp", "WEBP", "RGB"),
    Kind(".gif", "GIF", "P"),
)


def write_pictures(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Paint pictures into a folder, and return their file names.

    Args:
        folder: Created if it is missing.
        count: How many pictures; kinds and sizes alternate.
        seed: Another seed gives other pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        name = f"{number:05d}{kind.suffix}"
        size_px = _SIZES_PX[number % len(_SIZES_PX)]
        (folder / name).write_bytes(encode(paint(size_px, seed * 1_000_003 + number), kind))
        names.append(name)
    return names


def paint(size_px: tuple[int, int], seed: int) -> Image.Image:
    """Paint an RGB picture of this width and height: noise of several scales, strong if coarse and weak if fine."""
    rng = np.random.default_rng(seed)
    canvas: npt.NDArray[np.float32] = np.full((size_px[1], size_px[0], 3), 128, np.float32)
    for channels, octaves in ((1, _LIGHT), (3, _COLOUR)):
        for cells, contrast in octaves:
            coarse = rng.integers(0, 256, (cells, cells, channels), np.uint8)
            layer = Image.fromarray(coarse.squeeze()).resize(size_px, Image.Resampling.BICUBIC)
            pixels = np.asarray(layer, np.float32).reshape(size_px[1], size_px[0], channels)
            canvas += (pixels - 128) * (contrast / 128)
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))


def encode(picture: Image.Image, kind: Kind) -> bytes:
    """Encode a picture as a file of this kind; if the mode has transparency, it varies from left to right."""
    if kind.mode == "RGBA":
        picture = picture.copy()
        picture.putalpha(Image.linear_gradient("L").rotate(90).resize(picture.size))
    else:
        picture = picture.convert(kind.mode)
    file = BytesIO()
    picture.save(file, format=kind.format, quality=kind.quality)
    return file.getvalue()
