"""Shrinking gives the requested size, by exact arithmetic or close to it."""

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
from datafetch.transcode.image.fitting import shrunk_size_px
from datafetch.transcode.image.reduced_decoding import reduce_decoding
from datafetch.transcode.spec import ImageSpec, Pixels, Resize

LIMIT_PX = 84
PHOTOGRAPHS = ["astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "retina", "rocket"]
# Widths and heights as multiples of the limit, around those at which decoding switches to a half, quarter and eighth.
RATIOS = [(3.22, 3.22), (3.25, 4.3), (3.6, 3.5), (6.3, 4.1), (6.45, 6.45), (7.4, 6.6), (12.9, 13.0), (16.0, 16.1)]

pytestmark = [pytest.mark.simd, pytest.mark.usefixtures("_pillow_as_in_workers")]

Picture = Callable[[tuple[int, int]], Image.Image]


def photograph(size_px: tuple[int, int]) -> Image.Image:
    """Paint noise of several scales, like the demo's pictures."""
    return paint(size_px, 5)


def text_lines(size_px: tuple[int, int]) -> Image.Image:
    """Draw lines of text, black and coloured, on white."""
    picture = Image.new("RGB", size_px, "white")
    draw = ImageDraw.Draw(picture)
    for line, top in enumerate(range(0, size_px[1], 14)):
        text = "The quick brown fox jumps over the lazy dog, 0123456789. " * (1 + size_px[0] // 250)
        ink = [(0, 0, 0), (160, 0, 0), (0, 90, 160)][line % 3]
        draw.text((line * 5 % 11, top), text, fill=ink, font=ImageFont.load_default(13))
    return picture


def noise(size_px: tuple[int, int]) -> Image.Image:
    """Give every pixel a random value."""
    samples = np.random.default_rng(2).integers(0, 256, (size_px[1], size_px[0], 3), np.uint8)
    return Image.fromarray(samples)


def rings(size_px: tuple[int, int]) -> Image.Image:
    """Draw rings that become finer outwards, up to one black and one white pixel, so that every frequency occurs."""
    y, x = np.mgrid[: size_px[1], : size_px[0]]
    distance = np.hypot(x - size_px[0] / 2, y - size_px[1] / 2)
    wave = 127.5 + 127.5 * np.cos(np.pi / 2 * distance**2 / distance.max())
    return Image.fromarray(wave.astype(np.uint8)).convert("RGB")


def gradient(size_px: tuple[int, int]) -> Image.Image:
    """Draw smooth gradients, with sawtooth edges in one channel."""
    y, x = np.mgrid[: size_px[1], : size_px[0]]
    channels = [x * 255 // size_px[0], y * 255 // size_px[1], (x + y) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def decoded_pixels(body: bytes, spec: ImageSpec) -> npt.NDArray[np.float64]:
    """Return the pixels before they are encoded as JPEG."""
    with Image.open(BytesIO(body)) as source:
        return np.asarray(pixels(source, body, spec), np.float64)


def psnr_db(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Return the peak signal-to-noise ratio."""
    squares = float(((one - other) ** 2).mean())
    return float("inf") if squares == 0 else 10 * float(np.log10(255**2 / squares))


@pytest.mark.rotating
@pytest.mark.parametrize("rule", [Pixels.RECIPE, Pixels.CORRECT])
@pytest.mark.parametrize(
    ("picture", "min_db"), [(photograph, 47), (gradient, 45), (text_lines, 29), (noise, 31), (rings, 31)]
)
@pytest.mark.parametrize("ratios", RATIOS)
def test_fast_is_close_to_exact(picture: Picture, min_db: float, ratios: tuple[float, float], rule: Pixels) -> None:
    """The figures of docs/fidelity.md hold at every scale of decoding."""
    body = saved(picture((int(LIMIT_PX * ratios[0]), int(LIMIT_PX * ratios[1]))), "JPEG", quality=85)
    exact = decoded_pixels(body, ImageSpec(short_side_px=LIMIT_PX, pixels=rule, resize=Resize.EXACT))
    fast = decoded_pixels(body, ImageSpec(short_side_px=LIMIT_PX, pixels=rule, resize=Resize.FAST))
    assert exact.shape == fast.shape
    assert min_db <= psnr_db(exact, fast) < float("inf")


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize(("ratio", "min_db"), [(1.6, 39), (2.0, 42), (2.5, 46), (3.0, 48)])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_fast_is_close_to_exact_for_photographs(name: str, ratio: float, min_db: float, scale: int) -> None:
    """The figures of docs/fidelity.md hold: the more pixels are decoded, the closer, and 1.6 times is the minimum."""
    body = (Path(__file__).parent / "photographs" / f"{name}.jpg").read_bytes()
    with Image.open(BytesIO(body)) as source:
        whole_px = source.width
        limit_px = int(min(source.size) / scale / ratio)
        reduce_decoding(source, shrunk_size_px(source.size, limit_px))
        assert round(whole_px / source.width) == scale
    exact = decoded_pixels(body, ImageSpec(short_side_px=limit_px, pixels=Pixels.CORRECT, resize=Resize.EXACT))
    fast = decoded_pixels(body, ImageSpec(short_side_px=limit_px, pixels=Pixels.CORRECT, resize=Resize.FAST))
    assert exact.shape == fast.shape
    assert min_db <= psnr_db(exact, fast) < float("inf")


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("ratios", RATIOS)
def test_chroma_is_as_close_as_luma(ratios: tuple[float, float], subsampling: str) -> None:
    """This holds for every subsampling. If it is in one direction only, libjpeg reduces chroma by twice as much."""
    size_px = (int(LIMIT_PX * ratios[0]), int(LIMIT_PX * ratios[1]))
    # Coarse enough to survive the halving, but fine enough to need all of the remaining resolution.
    hues = [photograph((-(-size_px[0] // 3), -(-size_px[1] // 3))).getchannel(channel) for channel in range(3)]
    grey, *colours = [hue.resize(size_px, Image.Resampling.BICUBIC) for hue in hues]
    picture = Image.merge("YCbCr", [grey, *colours]).convert("RGB")
    body = saved(picture, "JPEG", quality=85, subsampling=subsampling)
    exact = decoded_pixels(body, ImageSpec(short_side_px=LIMIT_PX, resize=Resize.EXACT))
    fast = decoded_pixels(body, ImageSpec(short_side_px=LIMIT_PX, resize=Resize.FAST))
    assert psnr_db(exact, fast) >= 44


@pytest.mark.parametrize("turn", range(1, 9))
def test_fast_with_every_orientation(turn: int) -> None:
    """Which pixels are decoded does not depend on the orientation."""
    body = with_segment(saved(photograph((LIMIT_PX * 9 + 5, LIMIT_PX * 8 + 3)), "JPEG"), 0xE1, exif(turn))
    exact = decoded_pixels(body, ImageSpec(short_side_px=LIMIT_PX, pixels=Pixels.CORRECT, resize=Resize.EXACT))
    fast = decoded_pixels(body, ImageSpec(short_side_px=LIMIT_PX, pixels=Pixels.CORRECT, resize=Resize.FAST))
    assert psnr_db(exact, fast) >= 50


@pytest.mark.parametrize("kind", ["JPEG RGB", "JPEG L", "JPEG CMYK", "JPEG progressive RGB", "JPEG 4:44", "MPO"])
@pytest.mark.parametrize(
    "size_px", [(1, 999), (999, 1), (24, 999), (25, 999), (96, 97), (95, 300), (387, 193), (203, 1601)]
)
def test_fast_and_exact_give_the_same_size(kind: str, size_px: tuple[int, int]) -> None:
    """The size is computed from that of the file, whatever part of its pixels is decoded, and nothing is enlarged."""
    body = KINDS[kind](paint(size_px, 1))
    outcome = transcode(body, ImageSpec(short_side_px=24, resize=Resize.FAST))
    assert isinstance(outcome, Encoded)
    assert (outcome.width_px, outcome.height_px) == shrunk_size_px(size_px, 24)


def test_by_default_shrinking_is_exact() -> None:
    """That needs no extra, and the recipe promises identical bytes."""
    body = saved(photograph((400, 410)), "JPEG")
    for rule in Pixels:
        outcome = transcode(body, ImageSpec(short_side_px=50, pixels=rule))
        assert outcome == transcode(body, ImageSpec(short_side_px=50, pixels=rule, resize=Resize.EXACT))
        assert outcome != transcode(body, ImageSpec(short_side_px=50, pixels=rule, resize=Resize.FAST))


@pytest.mark.parametrize("size_px", [(100, 80), (337, 338), (511, 90), (40, 90)])
def test_shrinking_is_bicubic_by_definition(size_px: tuple[int, int]) -> None:
    """Compared with exact arithmetic, Pillow and Pillow-SIMD may differ by rounding, once in each direction."""
    samples = np.random.default_rng(3).integers(0, 256, (size_px[1], size_px[0], 3), np.uint8)
    spec = ImageSpec(short_side_px=37)
    small = decoded_pixels(saved(Image.fromarray(samples), "PNG"), spec)
    width_px, height_px = shrunk_size_px(size_px, 37)
    across, down = _weights(size_px[0], width_px), _weights(size_px[1], height_px)
    # Values are clipped to 0..255 between the two directions, so their order matters: up to Pillow 12 the width comes
    # first, and from 13 on for some sizes the height.
    widths_first = np.einsum("yj,jxc->yxc", down, np.einsum("xi,jic->jxc", across, samples).clip(0, 255)).clip(0, 255)
    heights_first = np.einsum("xi,yic->yxc", across, np.einsum("yj,jic->yic", down, samples).clip(0, 255)).clip(0, 255)
    assert small.shape == widths_first.shape
    assert min(np.abs(small - widths_first).max(), np.abs(small - heights_first).max()) <= 1.5


def _weights(before_px: int, after_px: int) -> npt.NDArray[np.float64]:
    """Return the weights of Keys' cubic with a = -0.5, scaled to the reduction; row n gives pixel n."""
    step = before_px / after_px
    centres = (np.arange(after_px) + 0.5) * step
    distance = np.abs(np.arange(before_px) + 0.5 - centres[:, None]) / step
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    cubic = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return np.asarray(cubic / cubic.sum(axis=1, keepdims=True))
