"""Shrinking: to the size that is asked for, by exact arithmetic or nearly so."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from bodies import exif, saved, with_segment
from kinds import KINDS
from PIL import Image, ImageDraw, ImageFont

from datafetch.demo.pictures import paint
from datafetch.model.outcome import Encoded
from datafetch.transcode.codec import pixels, transcode
from datafetch.transcode.image.resize import decode_smaller, shrunk_size_px
from datafetch.transcode.spec import ImageSpec, Pixels, Resize

LIMIT_PX = 84
PHOTOGRAPHS = ["astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "retina", "rocket"]
# Widths and heights as multiples of the limit: where the decode becomes a half, a quarter and an eighth, and between.
RATIOS = [(3.22, 3.22), (3.25, 4.3), (3.6, 3.5), (6.3, 4.1), (6.45, 6.45), (7.4, 6.6), (12.9, 13.0), (16.0, 16.1)]

pytestmark = [pytest.mark.simd, pytest.mark.usefixtures("_as_in_the_codecs_processes")]

Picture = Callable[[tuple[int, int]], Image.Image]


def photograph(size_px: tuple[int, int]) -> Image.Image:
    """Noise of several scales, as the demo paints it."""
    return paint(size_px, 5)


def lettering(size_px: tuple[int, int]) -> Image.Image:
    """Lines of text, black and coloured, on white."""
    picture = Image.new("RGB", size_px, "white")
    draw = ImageDraw.Draw(picture)
    for line, top in enumerate(range(0, size_px[1], 14)):
        text = "The quick brown fox jumps over the lazy dog, 0123456789. " * (1 + size_px[0] // 250)
        ink = [(0, 0, 0), (160, 0, 0), (0, 90, 160)][line % 3]
        draw.text((line * 5 % 11, top), text, fill=ink, font=ImageFont.load_default(13))
    return picture


def noise(size_px: tuple[int, int]) -> Image.Image:
    """Every pixel by itself."""
    samples = np.random.default_rng(2).integers(0, 256, (size_px[1], size_px[0], 3), np.uint8)
    return Image.fromarray(samples)


def rings(size_px: tuple[int, int]) -> Image.Image:
    """Rings that become finer outwards, up to one pixel black and one white: every frequency there is."""
    y, x = np.mgrid[: size_px[1], : size_px[0]]
    distance = np.hypot(x - size_px[0] / 2, y - size_px[1] / 2)
    wave = 127.5 + 127.5 * np.cos(np.pi / 2 * distance**2 / distance.max())
    return Image.fromarray(wave.astype(np.uint8)).convert("RGB")


def gradient(size_px: tuple[int, int]) -> Image.Image:
    """Smooth, with a saw's edges in one channel."""
    y, x = np.mgrid[: size_px[1], : size_px[0]]
    channels = [x * 255 // size_px[0], y * 255 // size_px[1], (x + y) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def shown(body: bytes, spec: ImageSpec) -> npt.NDArray[np.float64]:
    """The pixels before they become a JPEG."""
    with Image.open(BytesIO(body)) as source:
        return np.asarray(pixels(source, spec), np.float64)


def psnr_db(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Peak signal-to-noise ratio."""
    squares = float(((one - other) ** 2).mean())
    return float("inf") if squares == 0 else 10 * float(np.log10(255**2 / squares))


@pytest.mark.parametrize("rule", [Pixels.RECIPE, Pixels.CORRECT])
@pytest.mark.parametrize(
    ("picture", "least_db"), [(photograph, 47), (gradient, 45), (lettering, 29), (noise, 31), (rings, 31)]
)
@pytest.mark.parametrize("ratios", RATIOS)
def test_fast_is_close_to_exact(picture: Picture, least_db: float, ratios: tuple[float, float], rule: Pixels) -> None:
    """The figures of docs/fidelity.md, at every scale of decoding."""
    body = saved(picture((int(LIMIT_PX * ratios[0]), int(LIMIT_PX * ratios[1]))), "JPEG", quality=85)
    exact = shown(body, ImageSpec(short_side_px=LIMIT_PX, pixels=rule, resize=Resize.EXACT))
    fast = shown(body, ImageSpec(short_side_px=LIMIT_PX, pixels=rule, resize=Resize.FAST))
    assert exact.shape == fast.shape
    assert least_db <= psnr_db(exact, fast) < float("inf")


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize(("left", "least_db"), [(1.6, 39), (2.0, 42), (2.5, 46), (3.0, 48)])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_fast_is_close_to_exact_for_photographs(name: str, left: float, least_db: float, scale: int) -> None:
    """The figures of docs/fidelity.md: the more pixels are left to shrink from, the closer, and 1.6 times is least."""
    body = (Path(__file__).parent / "photographs" / f"{name}.jpg").read_bytes()
    with Image.open(BytesIO(body)) as source:
        whole_px = source.width
        limit_px = int(min(source.size) / scale / left)
        decode_smaller(source, shrunk_size_px(source.size, limit_px))
        assert round(whole_px / source.width) == scale
    exact = shown(body, ImageSpec(short_side_px=limit_px, pixels=Pixels.CORRECT, resize=Resize.EXACT))
    fast = shown(body, ImageSpec(short_side_px=limit_px, pixels=Pixels.CORRECT, resize=Resize.FAST))
    assert exact.shape == fast.shape
    assert least_db <= psnr_db(exact, fast) < float("inf")


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("ratios", RATIOS)
def test_colours_are_as_close_as_greys(ratios: tuple[float, float], subsampling: str) -> None:
    """However they are halved: in one direction alone, libjpeg would leave half of those that it leaves otherwise."""
    size_px = (int(LIMIT_PX * ratios[0]), int(LIMIT_PX * ratios[1]))
    # Broad enough to outlive the halving, and close enough to each other to need all that is left of it.
    hues = [photograph((-(-size_px[0] // 3), -(-size_px[1] // 3))).getchannel(channel) for channel in range(3)]
    grey, *colours = [hue.resize(size_px, Image.Resampling.BICUBIC) for hue in hues]
    picture = Image.merge("YCbCr", [grey, *colours]).convert("RGB")
    body = saved(picture, "JPEG", quality=85, subsampling=subsampling)
    exact = shown(body, ImageSpec(short_side_px=LIMIT_PX, resize=Resize.EXACT))
    fast = shown(body, ImageSpec(short_side_px=LIMIT_PX, resize=Resize.FAST))
    assert psnr_db(exact, fast) >= 44


@pytest.mark.parametrize("turn", range(1, 9))
def test_fast_and_turned(turn: int) -> None:
    """Which pixels are decoded does not depend on which way up they are shown."""
    body = with_segment(saved(photograph((LIMIT_PX * 9 + 5, LIMIT_PX * 8 + 3)), "JPEG"), 0xE1, exif(turn))
    exact = shown(body, ImageSpec(short_side_px=LIMIT_PX, pixels=Pixels.CORRECT, resize=Resize.EXACT))
    fast = shown(body, ImageSpec(short_side_px=LIMIT_PX, pixels=Pixels.CORRECT))
    assert psnr_db(exact, fast) >= 50


@pytest.mark.parametrize("kind", ["JPEG RGB", "JPEG L", "JPEG CMYK", "JPEG progressive RGB", "JPEG 4:44", "MPO"])
@pytest.mark.parametrize(
    "size_px", [(1, 999), (999, 1), (24, 999), (25, 999), (96, 97), (95, 300), (387, 193), (203, 1601)]
)
def test_fast_gives_the_size_that_exact_gives(kind: str, size_px: tuple[int, int]) -> None:
    """The size comes from the file's own, whatever part of its pixels is decoded; and nothing is enlarged."""
    body = KINDS[kind](paint(size_px, 1))
    outcome = transcode(body, ImageSpec(short_side_px=24, resize=Resize.FAST))
    assert isinstance(outcome, Encoded)
    assert (outcome.width_px, outcome.height_px) == shrunk_size_px(size_px, 24)


@pytest.mark.parametrize(
    ("kind", "size_px"),
    [
        ("JPEG RGB", (76, 400)),
        ("JPEG RGB", (400, 76)),
        ("JPEG RGB", (24, 400)),
        ("PNG RGB", (200, 210)),
        ("GIF P", (200, 210)),
    ],
)
def test_fast_is_exact_up_to_three_times_the_size(kind: str, size_px: tuple[int, int]) -> None:
    """Where a half of the pixels a side would be less than 1.6 times what is asked for, and for what is no JPEG."""
    body = KINDS[kind](paint(size_px, 1))
    spec = ImageSpec(short_side_px=24, resize=Resize.FAST)
    assert transcode(body, spec) == transcode(body, ImageSpec(short_side_px=24))


def test_by_default_the_recipe_is_exact_and_correct_is_fast() -> None:
    """Only the recipe promises bytes."""
    body = saved(photograph((400, 410)), "JPEG")

    def jpeg(**spec: object) -> bytes:
        outcome = transcode(body, ImageSpec(short_side_px=50, **spec))  # type: ignore[arg-type]
        assert isinstance(outcome, Encoded)
        return outcome.jpeg

    assert jpeg() == jpeg(resize=Resize.EXACT) == jpeg(pixels=Pixels.CORRECT, resize=Resize.EXACT)
    assert jpeg(pixels=Pixels.CORRECT) == jpeg(resize=Resize.FAST) != jpeg()


@pytest.mark.parametrize("size_px", [(100, 80), (337, 338), (511, 90), (40, 90)])
def test_shrinking_is_the_bicubic_of_the_books(size_px: tuple[int, int]) -> None:
    """Held to exact arithmetic: what Pillow, and Pillow-SIMD, may round is one step for each of the two directions."""
    samples = np.random.default_rng(3).integers(0, 256, (size_px[1], size_px[0], 3), np.uint8)
    spec = ImageSpec(short_side_px=37)
    small = shown(saved(Image.fromarray(samples), "PNG"), spec)
    width_px, height_px = shrunk_size_px(size_px, 37)
    across, down = _weights(size_px[0], width_px), _weights(size_px[1], height_px)
    # In between, values are cut to 0 to 255, so it matters what comes first: up to Pillow 12 widths, in 13 heights.
    widths_first = np.einsum("yj,jxc->yxc", down, np.einsum("xi,jic->jxc", across, samples).clip(0, 255)).clip(0, 255)
    heights_first = np.einsum("xi,yic->yxc", across, np.einsum("yj,jic->yic", down, samples).clip(0, 255)).clip(0, 255)
    assert small.shape == widths_first.shape
    assert min(np.abs(small - widths_first).max(), np.abs(small - heights_first).max()) <= 1.5


def _weights(before_px: int, after_px: int) -> npt.NDArray[np.float64]:
    """Keys' cubic with a = -0.5, as wide as the step from pixel to pixel; row n makes pixel n."""
    step = before_px / after_px
    centres = (np.arange(after_px) + 0.5) * step
    distance = np.abs(np.arange(before_px) + 0.5 - centres[:, None]) / step
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    cubic = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return np.asarray(cubic / cubic.sum(axis=1, keepdims=True))
