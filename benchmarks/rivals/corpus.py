"""The corpus: pictures as a crawl of the web has them, cut from photographs.

The photographs are those that scikit-image and scikit-learn ship. Each picture is a crop of one, resized to a width
that is drawn from a log-normal distribution, and saved in a format that is drawn with the shares of the web. A picture
depends on its number alone, so a smaller corpus is the beginning of a larger one.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, partial
from pathlib import Path

from PIL import Image

from benchmarks.rivals.environments import PHOTOGRAPHS, unpack_packages

_VERSION = 1  # of the recipe below; another one makes another folder
_SKIMAGE = "skimage/data"
_SKLEARN = "sklearn/datasets/images"
_COLOUR = (
    *(f"{_SKIMAGE}/{name}" for name in ("astronaut.png", "chelsea.png", "coffee.png", "ihc.png", "rocket.jpg")),
    *(f"{_SKIMAGE}/{name}" for name in ("motorcycle_left.png", "motorcycle_right.png", "retina.jpg")),
    f"{_SKIMAGE}/hubble_deep_field.jpg",
    *(f"{_SKLEARN}/{name}" for name in ("china.jpg", "flower.jpg")),
)
_GREY = tuple(f"{_SKIMAGE}/{name}" for name in ("camera.png", "brick.png", "grass.png", "gravel.png", "moon.png"))

_MEDIAN_WIDTH_PX = 620
_WIDTH_SIGMA = 0.6
_WIDTHS_PX = range(64, 3001)
_ASPECTS = (4 / 3, 3 / 2, 1.0, 3 / 4, 16 / 9, 2 / 3)
_MIN_CROP = 0.5  # of each side of the photograph
_QUALITIES = (80, 85, 90, 90, 95, 95)
_PROGRESSIVE_SHARE = 0.25
_FULL_COLOUR_SHARE = 0.15  # of JPEGs, without chroma subsampling
_TRUE_COLOUR_SHARE = 0.3  # of PNGs; the others have a palette
_COLOURS = 64


class Form(StrEnum):
    """The format of a picture, by its file name's suffix; grey JPEGs are a form of their own."""

    JPEG = ".jpg"
    GREY = ".grey.jpg"
    PNG = ".png"
    WEBP = ".webp"
    GIF = ".gif"


SHARES: Mapping[Form, int] = {Form.JPEG: 82, Form.PNG: 8, Form.WEBP: 6, Form.GIF: 2, Form.GREY: 2}
"""How many of a hundred pictures have a format; each hundred has exactly these, shuffled."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """The pictures.

    Attributes:
        folder: Their folder; their names sort in the order of their numbers.
        names: Their names.
        mean_bytes: The mean size of a file.
    """

    folder: Path
    names: Sequence[str]
    mean_bytes: float


def make_corpus(cache_folder: Path, count: int) -> Corpus:
    """Make the corpus, unless it is in the cache.

    Raises:
        subprocess.CalledProcessError: The packages with the photographs can't be installed.
    """
    folder = cache_folder / f"corpus-{_VERSION}-{count}"
    if not folder.is_dir():
        photographs = unpack_packages(cache_folder / "photographs", PHOTOGRAPHS)
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
            pool.map(partial(_make_picture, photographs, unfinished), range(count), chunksize=16)
        unfinished.rename(folder)
    names = sorted(path.name for path in folder.iterdir())
    return Corpus(folder, names, sum((folder / name).stat().st_size for name in names) / len(names))


def form_of(number: int) -> Form:
    """The format of the picture with this number."""
    hundred, place = divmod(number, 100)
    return _forms(hundred)[place]


@cache
def _forms(hundred: int) -> Sequence[Form]:
    forms = [form for form, share in SHARES.items() for _ in range(share)]
    random.Random(f"forms {hundred}").shuffle(forms)
    return forms


@cache
def _photograph(path: Path, mode: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert(mode)


def _make_picture(photographs: Path, folder: Path, number: int) -> None:
    chance = random.Random(f"picture {number}")
    form = form_of(number)
    name, mode = (chance.choice(_GREY), "L") if form is Form.GREY else (chance.choice(_COLOUR), "RGB")
    picture = _cut(_photograph(photographs / name, mode), chance)
    path = folder / f"{number:06d}{form}"
    match form:
        case Form.JPEG | Form.GREY:
            picture.save(
                path,
                quality=chance.choice(_QUALITIES),
                progressive=chance.random() < _PROGRESSIVE_SHARE,
                subsampling="4:4:4" if chance.random() < _FULL_COLOUR_SHARE else "4:2:0",
            )
        case Form.PNG if chance.random() < _TRUE_COLOUR_SHARE:
            picture.save(path)
        case Form.PNG | Form.GIF:
            picture.quantize(_COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path)
        case Form.WEBP:
            picture.save(path, quality=chance.choice(_QUALITIES), method=2)


def _cut(photograph: Image.Image, chance: random.Random) -> Image.Image:
    """Crop a photograph and resize it, to a width and an aspect ratio that are drawn, and mirror every other one."""
    width_px = round(chance.lognormvariate(math.log(_MEDIAN_WIDTH_PX), _WIDTH_SIGMA))
    width_px = min(max(width_px, _WIDTHS_PX.start), _WIDTHS_PX.stop - 1)
    aspect = chance.choice(_ASPECTS)
    share = chance.uniform(_MIN_CROP, 1.0)
    crop_width = share * min(photograph.width, photograph.height * aspect)
    crop_height = crop_width / aspect
    left = chance.uniform(0, photograph.width - crop_width)
    top = chance.uniform(0, photograph.height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    picture = photograph.resize((width_px, max(1, round(width_px / aspect))), Image.Resampling.LANCZOS, box=box)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if chance.random() < 0.5 else picture
