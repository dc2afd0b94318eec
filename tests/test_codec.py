"""One image in, one outcome out."""

import base64
import hashlib
import random
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datafetch.demo.pictures import paint
from datafetch.errors import ConfigurationError
from datafetch.model import Encoded, Failure, FailureKind
from datafetch.transcode.codec import supported_formats, transcode
from datafetch.transcode.spec import ImageSpec

VILA = ImageSpec(short_side_px=336)
SIZES_PX = [(1, 1), (1, 700), (337, 336), (336, 336), (337, 337), (401, 1203), (1000, 353), (640, 480)]
MODES = {
    "JPEG": ["RGB", "L", "CMYK"],
    "PNG": ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["P", "L"],
    "BMP": ["RGB", "L", "P", "1"],
    "TIFF": ["RGB", "RGBA", "L", "CMYK", "1"],
    "AVIF": ["RGB"],
}
CASES = [
    (name, mode, size)
    for name, modes in MODES.items()
    if name in supported_formats()
    for mode in modes
    for size in SIZES_PX
]


def encoded(picture: Image.Image, name: str, **options: object) -> bytes:
    """The picture as a file."""
    file = BytesIO()
    picture.save(file, format=name, **options)
    return file.getvalue()


def recipe(body: bytes, size_limit: int | None) -> bytes:
    """The recipe's snippet: VILA's for a size limit of 336, the Japanese sets' without."""
    img = Image.open(BytesIO(body)).convert("RGB")
    if size_limit is not None and min(img.size) > size_limit:
        w, h = img.size
        if h < w:
            new_h, new_w = size_limit, int(size_limit * w / h)
        else:
            new_w, new_h = size_limit, int(size_limit * h / w)
        img = img.resize((new_w, new_h))
    buffered = BytesIO()
    img.save(buffered, format="JPEG")
    return buffered.getvalue()


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("size_limit", [None, 336])
@pytest.mark.parametrize(("name", "mode", "size_px"), CASES)
def test_the_recipe_byte_for_byte(name: str, mode: str, size_px: tuple[int, int], size_limit: int | None) -> None:
    """For every format, mode and size the JPEG is the one that the recipe's snippet gives with the same Pillow."""
    body = encoded(paint(size_px, seed=3).convert(mode if mode != "I;16" else "I").convert(mode), name)
    outcome = transcode(body, ImageSpec(short_side_px=size_limit))
    assert isinstance(outcome, Encoded)
    assert outcome.jpeg == recipe(body, size_limit)
    assert outcome.source_format == name
    assert outcome.sha256 == hashlib.sha256(body).hexdigest()
    with Image.open(BytesIO(outcome.jpeg)) as written:
        assert written.size == (outcome.width_px, outcome.height_px)


def test_the_recipe_byte_for_byte_on_photographs(pictures: tuple[Path, list[str]]) -> None:
    """Photograph-like pictures in the mix of the web, EXIF-free, come out as the snippet gives them."""
    folder, names = pictures
    for name in names:
        body = (folder / name).read_bytes()
        outcome = transcode(body, VILA)
        assert isinstance(outcome, Encoded)
        assert outcome.jpeg == recipe(body, 336), name


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame(name: str) -> None:
    """Only the first frame counts, as ``Image.open`` shows it."""
    first, second = paint((60, 50), 1), paint((60, 50), 2)
    body = encoded(first, name, save_all=True, append_images=[second])
    outcome = transcode(body, VILA)
    assert isinstance(outcome, Encoded)
    assert outcome.jpeg == recipe(body, 336)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<!doctype html><title>404</title>",
        b'{"error": "gone"}',
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"%PDF-1.7",
        b"SIMPLE  =                    T / FITS",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        encoded(paint((20, 20), 1), "PPM"),
        encoded(paint((20, 20), 1), "ICO"),
        encoded(paint((20, 20), 1), "TGA"),
    ],
)
def test_what_is_not_on_the_list_is_not_an_image(body: bytes) -> None:
    """Formats off the allow-list are not even tried, whatever Pillow could make of them."""
    outcome = transcode(body, VILA)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.NOT_AN_IMAGE
    assert "0x" not in outcome.detail


@pytest.mark.parametrize("tenths", range(1, 10))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_half_an_image_is_truncated(name: str, tenths: int) -> None:
    """An image that ends early is a failure, not a picture with a grey half."""
    body = encoded(paint((320, 240), 5), name)
    outcome = transcode(body[: len(body) * tenths // 10], VILA)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.TRUNCATED


def test_too_many_pixels_are_refused_from_the_header() -> None:
    """A bomb is refused before its pixels are allocated: its size alone decides."""
    bomb = encoded(Image.new("1", (30_000, 30_000)), "PNG")
    assert len(bomb) < 200_000
    outcome = transcode(bomb, VILA)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.TOO_MANY_PIXELS


@pytest.mark.parametrize(("max_pixels", "arrives"), [(300, True), (299, False)])
def test_the_pixel_limit_is_the_specs(max_pixels: int, arrives: bool) -> None:
    """As many pixels as allowed are allowed, one more is not."""
    outcome = transcode(encoded(paint((20, 15), 1), "PNG"), ImageSpec(max_pixels=max_pixels))
    assert isinstance(outcome, Encoded) == arrives


def test_an_image_that_no_jpeg_can_hold_is_a_failure() -> None:
    """A JPEG has at most 65,500 pixels a side."""
    outcome = transcode(encoded(Image.new("L", (1, 65_501)), "PNG"), VILA)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.TOO_MANY_PIXELS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_mutated_bytes_never_raise(name: str) -> None:
    """Whatever strangers send, there is an outcome."""
    rng = random.Random(name)
    body = encoded(paint((48, 40), 9), name)
    for _ in range(200):
        mutated = bytearray(body)
        for _ in range(rng.randint(1, 12)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        assert isinstance(transcode(bytes(mutated), ImageSpec(max_pixels=10_000_000)), Encoded | Failure)


def test_quality_is_the_specs() -> None:
    """Less quality makes a smaller file, and 75 is Pillow's default."""
    body = encoded(paint((320, 240), 5), "PNG")
    sizes = [len(base64.b64encode(_jpeg(body, quality))) for quality in (40, 75, 90)]
    assert sizes == sorted(set(sizes))
    assert _jpeg(body, 75) == recipe(body, None)


def _jpeg(body: bytes, quality: int) -> bytes:
    outcome = transcode(body, ImageSpec(quality=quality))
    assert isinstance(outcome, Encoded)
    return outcome.jpeg


@pytest.mark.parametrize(
    "wrong",
    [
        {"short_side_px": 0},
        {"quality": 0},
        {"quality": 96},
        {"max_pixels": 0},
        {"decode_timeout_s": 0},
        {"decode_timeout_s": float("nan")},
        {"max_pixels": 10**20},
    ],
)
def test_a_spec_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    """The operator hears of it before anything is fetched."""
    with pytest.raises(ConfigurationError):
        ImageSpec(**wrong)
