"""Images are fitted to a size, in every mode and format, and left out for their size; with numpy as the judge."""

from __future__ import annotations

import asyncio
import functools
import pickle
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from bodies import exif, recipe, saved, with_segment
from hypothesis import given
from hypothesis import strategies as st
from kinds import KINDS
from PIL import Image

from datafetch import Job
from datafetch.demo.pictures import paint
from datafetch.engine.differences import describe_differences
from datafetch.engine.job import identify_settings, settings_of
from datafetch.errors import ConfigurationError
from datafetch.model.outcome import Encoded, Failure, Permission
from datafetch.transcode import Transcoder
from datafetch.transcode.codec import transcode
from datafetch.transcode.image.fitting import Fitting, fit
from datafetch.transcode.spec import Encoding, ImageFormat, ImageSpec, Pixels, Resize, ResizeMode

MODES = list(ResizeMode)
SIZES_PX = [(500, 375), (375, 500), (256, 256), (256, 400), (100, 80), (80, 100), (1000, 10), (3000, 1), (257, 511)]
IMG2DATASET: dict[tuple[ResizeMode, bool], list[tuple[int, int] | None]] = {
    (ResizeMode.KEEP_RATIO, False): [
        *((341, 256), (256, 341), (256, 256), (256, 400), (320, 256), (256, 320), (25600, 256), None, (256, 509)),
    ],
    (ResizeMode.KEEP_RATIO, True): [
        *((341, 256), (256, 341), (256, 256), (256, 400), (100, 80), (80, 100), (1000, 10), (3000, 1), (256, 509)),
    ],
    (ResizeMode.KEEP_RATIO_LARGEST, False): [
        *((256, 192), (192, 256), (256, 256), (164, 256), (256, 205), (205, 256), (256, 3), (256, 1), (129, 256)),
    ],
    (ResizeMode.KEEP_RATIO_LARGEST, True): [
        *((256, 192), (192, 256), (256, 256), (164, 256), (100, 80), (80, 100), (256, 3), (256, 1), (129, 256)),
    ],
    (ResizeMode.CENTER_CROP, False): [(256, 256)] * 9,
    (ResizeMode.CENTER_CROP, True): [
        *((256, 256), (256, 256), (256, 256), (256, 400), (100, 80), (80, 100), (1000, 10), (3000, 1), (256, 256)),
    ],
    (ResizeMode.BORDER, False): [(256, 256)] * 9,
    (ResizeMode.BORDER, True): [
        *((256, 256), (256, 256), (256, 256), (256, 256), (100, 80), (80, 100), (256, 256), (256, 256), (256, 256)),
    ],
}
"""The sizes that img2dataset 1.47.0 gives images of ``SIZES_PX`` with --image_size 256; None where it fails."""

pytestmark = pytest.mark.simd


def spec_of(mode: ResizeMode, size_px: int, **others: Any) -> ImageSpec:
    """A spec that fits images and writes PNGs, of which all pixels can be compared."""
    return ImageSpec(**{"resize_mode": mode, "size_px": size_px, "image_format": ImageFormat.PNG, **others})


def encoded(body: bytes, spec: ImageSpec) -> Encoded:
    """The image that a body becomes; what its file says is what the outcome says."""
    outcome = transcode(body, spec)
    assert isinstance(outcome, Encoded), outcome
    with Image.open(BytesIO(outcome.jpeg)) as opened:
        assert opened.size == (outcome.width_px, outcome.height_px)
        if not outcome.is_original:
            assert opened.format == spec.image_format.name_in_pillow
            assert opened.mode == "RGB"
    return outcome


def pixels_of(outcome: Encoded) -> Image.Image:
    """Its pixels."""
    return Image.open(BytesIO(outcome.jpeg)).convert("RGB")


@pytest.mark.parametrize(("mode", "only_if_bigger"), IMG2DATASET)
def test_sizes_are_those_of_img2dataset(mode: ResizeMode, only_if_bigger: bool) -> None:
    """For every mode and shape; one that it can't write as a JPEG is judged by the same size."""
    spec = spec_of(mode, 256, only_if_bigger=only_if_bigger)
    sizes = [fit(size_px, spec).written_px for size_px in SIZES_PX]
    expected = IMG2DATASET[mode, only_if_bigger]
    assert [size for size, theirs in zip(sizes, expected, strict=True) if theirs] == [one for one in expected if one]


@given(
    size_px=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    to_px=st.integers(1, 3000),
    mode=st.sampled_from(MODES),
    only_if_bigger=st.booleans(),
)
def test_the_size_follows_from_the_mode(
    size_px: tuple[int, int], to_px: int, mode: ResizeMode, only_if_bigger: bool
) -> None:
    """One side has the size, the other is within half a pixel of the ratio; turning the image turns the result."""
    spec = spec_of(mode, to_px, only_if_bigger=only_if_bigger)
    fitting = fit(size_px, spec)
    side_px = (min if mode.is_of_shorter_side else max)(size_px)
    if only_if_bigger and side_px <= to_px:
        assert fitting == Fitting(size_px, size_px)
        return
    for before_px, after_px in zip(size_px, fitting.resized_px, strict=True):
        exact = Fraction(before_px * to_px, side_px)
        assert after_px == max(1, after_px)
        assert abs(after_px - exact) <= Fraction(1, 2) or (after_px == 1 and exact < 1)
    assert (min if mode.is_of_shorter_side else max)(fitting.resized_px) == to_px
    assert fitting.written_px == ((to_px, to_px) if mode.makes_squares else fitting.resized_px)
    turned = fit(size_px[::-1], spec)
    assert turned == Fitting(fitting.resized_px[::-1], fitting.written_px[::-1])


@functools.cache
def _picture(size_px: tuple[int, int]) -> bytes:
    return saved(paint(size_px, 7), "PNG")


@pytest.mark.parametrize("pixels", list(Pixels))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size_px", [(120, 91), (91, 120), (64, 64), (40, 31)])
def test_pixels_are_those_of_the_page(mode: ResizeMode, size_px: tuple[int, int], pixels: Pixels) -> None:
    """Shrunk by Pillow's bicubic filter and enlarged by its Lanczos; then cut, or on white, in the middle."""
    spec = spec_of(mode, 64, pixels=pixels)
    source = Image.open(BytesIO(_picture(size_px))).convert("RGB")
    fitting = fit(size_px, spec)
    is_enlarged = max(fitting.resized_px) > max(size_px)
    filter_ = Image.Resampling.LANCZOS if is_enlarged else Image.Resampling.BICUBIC
    resized = np.asarray(source if fitting.resized_px == size_px else source.resize(fitting.resized_px, filter_))
    height, width = resized.shape[:2]
    match mode:
        case ResizeMode.CENTER_CROP:
            top, left = (height - 64) // 2, (width - 64) // 2
            expected = resized[top : top + 64, left : left + 64]
        case ResizeMode.BORDER:
            expected = np.full((64, 64, 3), 255, np.uint8)
            top, left = (64 - height) // 2, (64 - width) // 2
            expected[top : top + height, left : left + width] = resized
        case _:
            expected = resized
    assert np.array_equal(np.asarray(pixels_of(encoded(_picture(size_px), spec))), expected)


@pytest.mark.parametrize("image_format", list(ImageFormat))
@pytest.mark.parametrize("mode", MODES)
def test_images_that_are_not_bigger_stay_as_they_are(mode: ResizeMode, image_format: ImageFormat) -> None:
    """With --only-if-bigger: the same pixels, and under ``original`` a JPEG the same bytes."""
    spec = spec_of(mode, 120, only_if_bigger=True, image_format=image_format)
    plain = ImageSpec(image_format=image_format)
    body = saved(paint((120, 91), 3), "JPEG")
    assert transcode(body, spec) == transcode(body, plain)
    original = transcode(body, replace(spec, encode=Encoding.ORIGINAL))
    assert isinstance(original, Encoded)
    assert original.is_original == (image_format is ImageFormat.JPG)
    bigger = saved(paint((130, 125), 3), "JPEG")
    assert not encoded(bigger, replace(spec, encode=Encoding.ORIGINAL)).is_original


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore")  # Pillow's warnings about odd files
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_fitted_and_written_in_every_format(kind: str) -> None:
    """With both kinds of pixels, and no metadata of the source in PNG and WebP."""
    for size_px in ((61, 47), (9, 30)):
        body = KINDS[kind](paint(size_px, 3))
        for mode, image_format, pixels in zip(MODES, [*ImageFormat] * 2, [*Pixels] * 2, strict=False):
            spec = spec_of(mode, 24, image_format=image_format, pixels=pixels)
            outcome = encoded(body, spec)
            assert outcome == transcode(body, spec)
            if mode.makes_squares:
                assert (outcome.width_px, outcome.height_px) == (24, 24)
            with Image.open(BytesIO(outcome.jpeg)) as opened:
                if image_format is not ImageFormat.JPG:
                    assert not {"icc_profile", "exif", "transparency", "xmp", "comment"} & opened.info.keys()


def test_formats_hold_the_recipes_pixels() -> None:
    """PNG exactly; JPEG and WebP by the quality that is asked for, which PNG does not have."""
    body = saved(paint((90, 70), 3), "JPEG", quality=90)
    exact = Image.open(BytesIO(body)).convert("RGB")
    png = encoded(body, ImageSpec(image_format=ImageFormat.PNG))
    assert np.array_equal(np.asarray(pixels_of(png)), np.asarray(exact))
    for image_format, name in ((ImageFormat.WEBP, "WEBP"), (ImageFormat.JPG, "JPEG")):
        for quality in (30, 90):
            outcome = encoded(body, ImageSpec(image_format=image_format, quality=quality))
            assert outcome.jpeg == saved(exact, name, quality=quality)
    assert encoded(body, ImageSpec(image_format=ImageFormat.JPG)).jpeg == recipe(body, None)


def test_a_turned_picture_is_cut_and_framed_upright() -> None:
    """With correct pixels: the odd pixel is at the right or the bottom of what a viewer shows."""
    picture = paint((90, 61), 3)
    body = with_segment(saved(picture, "JPEG"), 0xE1, exif(6))
    shown = Image.open(BytesIO(body)).transpose(Image.Transpose.ROTATE_270)
    for mode in (ResizeMode.CENTER_CROP, ResizeMode.BORDER):
        spec = spec_of(mode, 90 if mode is ResizeMode.BORDER else 61, pixels=Pixels.CORRECT)
        upright = pixels_of(encoded(saved(shown, "PNG"), spec))
        assert np.array_equal(np.asarray(pixels_of(encoded(body, spec))), np.asarray(upright))


@pytest.mark.parametrize("mode", MODES)
def test_fast_resizing_shrinks_only(mode: ResizeMode) -> None:
    """It is close to exact where it shrinks, also from a reduced decode, and the same where images are enlarged."""
    large, small = (saved(paint(size_px, 3), "JPEG", quality=90) for size_px in ((640, 480), (60, 40)))
    exact, fast = spec_of(mode, 96), spec_of(mode, 96, resize=Resize.FAST)
    assert encoded(small, fast) == encoded(small, exact)
    one, other = (np.asarray(pixels_of(encoded(large, spec)), float) for spec in (exact, fast))
    assert one.shape == other.shape
    assert 0 < np.mean((one - other) ** 2) < 255**2 / 10**4.0  # 40 dB


@pytest.mark.parametrize(
    ("limits", "size_px", "failure"),
    [
        ({"min_size_px": 41}, (60, 40), ("too_small", "a side of under 41 pixels")),
        ({"min_size_px": 40}, (60, 40), None),
        (
            {"max_aspect_ratio": 1.49},
            (60, 40),
            ("aspect_ratio_too_large", "over 1.49 times as long on one side as the other"),
        ),
        ({"max_aspect_ratio": 1.5}, (40, 60), None),
        ({"max_area_px": 2399}, (60, 40), ("area_too_large", "an area of over 2,399 pixels")),
        ({"max_area_px": 2400}, (60, 40), None),
        ({"max_pixels": 2399}, (60, 40), ("too_many_pixels", "over 2,399 pixels")),
        (
            {"resize_mode": "keep-ratio", "size_px": 600, "max_pixels": 500_000},
            (60, 40),
            ("too_many_pixels", "over 500,000 pixels once it is enlarged"),
        ),
        (
            {"resize_mode": "center-crop", "size_px": 600, "max_pixels": 500_000},
            (60, 40),
            ("too_many_pixels", "over 500,000 pixels once it is enlarged"),
        ),
        ({"resize_mode": "keep-ratio-largest", "size_px": 600, "max_pixels": 500_000}, (60, 40), None),
        (
            {"resize_mode": "keep-ratio", "size_px": 100},
            (1, 700),
            ("too_many_pixels", "a side of over 65,500 pixels, which no JPEG can have"),
        ),
        (
            {"resize_mode": "keep-ratio", "size_px": 100, "image_format": "webp"},
            (1, 200),
            ("too_many_pixels", "a side of over 16,383 pixels, which no WEBP can have"),
        ),
        ({"resize_mode": "keep-ratio", "size_px": 100, "image_format": "png"}, (1, 700), None),
    ],
)
def test_an_image_is_left_out_for_its_size(
    limits: dict[str, Any], size_px: tuple[int, int], failure: tuple[str, str] | None
) -> None:
    """As it is in the header, or would be written; whatever is made of it."""
    body = saved(paint(size_px, 3), "PNG")
    outcome = transcode(body, ImageSpec(**limits))
    assert (failure is None) == isinstance(outcome, Encoded)
    if isinstance(outcome, Failure):
        assert (outcome.kind, outcome.detail) == failure
        assert not outcome.may_pass
    if "resize_mode" not in limits:
        for encoding in Encoding:
            assert isinstance(transcode(body, ImageSpec(**limits, encode=encoding)), type(outcome))


def test_an_image_that_is_enlarged_needs_the_permission() -> None:
    """The ledger says so, as of one that was received that large."""
    body = saved(Image.new("L", (50, 10)), "PNG")
    spec = ImageSpec(resize_mode=ResizeMode.KEEP_RATIO, size_px=4500, max_pixels=102_000_000)
    outcome = transcode(body, spec)
    assert isinstance(outcome, Encoded)
    assert (outcome.width_px, outcome.height_px, outcome.permitted) == (22_500, 4500, (Permission.MAX_PIXELS,))


@pytest.mark.rotating
async def test_processes_fit_and_encode_as_this_one_does() -> None:
    """In the sandbox, for every mode and format."""
    bodies = [saved(paint((90 + number, 60), number), "JPEG") for number in range(12)]
    for mode, image_format in zip(MODES, [*ImageFormat, ImageFormat.JPG], strict=True):
        spec = spec_of(mode, 48, image_format=image_format)
        async with Transcoder(spec, processes=2) as transcoder:
            assert await asyncio.gather(*map(transcoder, bodies)) == [transcode(body, spec) for body in bodies]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size_px": 3}, "resize_mode and size_px must be given together"),
        ({"resize_mode": "border"}, "resize_mode and size_px must be given together"),
        ({"resize_mode": "crop", "size_px": 3}, "resize_mode must be keep-ratio or .* or border or None, not 'crop'"),
        ({"only_if_bigger": True}, "only_if_bigger is for resize_mode and size_px; give these, too"),
        ({"resize_mode": "border", "size_px": 3, "short_side_px": 3}, "short_side_px and resize_mode both resize; .*"),
        (
            {"resize_mode": "border", "size_px": 10_000},
            "squares of size_px have more pixels than max_pixels; give .*",
        ),
        ({"resize_mode": "border", "size_px": 0}, "size_px must be from 1 to .*"),
        ({"encode": "received", "image_format": "png"}, ".* it takes neither resize_mode nor image_format"),
        ({"encode": "received", "resize_mode": "border", "size_px": 3}, ".* it takes neither resize_mode nor .*"),
        ({"check": "header"}, "check='header' is for images that are kept as they are: it takes encode='received'"),
        ({"quality": 96}, "quality must be from 1 to 95, not 96"),
        ({"quality": 101, "image_format": "webp"}, "quality must be from 1 to 100, not 101"),
        (
            {"quality": 90, "image_format": "png"},
            "image_format='png' is lossless and has no quality; leave out quality",
        ),
        ({"max_aspect_ratio": 0.5}, "max_aspect_ratio must be a number from 1 on, not 0.5"),
        ({"max_aspect_ratio": float("nan")}, "max_aspect_ratio must be a number from 1 on, not nan"),
        ({"min_size_px": 0}, "min_size_px must be from 1 to .*"),
        ({"max_area_px": 0}, "max_area_px must be from 1 to .*"),
    ],
)
def test_options_that_do_not_fit_are_refused(wrong: dict[str, Any], message: str) -> None:
    """In one line, before anything is fetched."""
    with pytest.raises(ConfigurationError, match=f"^{message}$"):
        ImageSpec(**wrong)


def test_identities_of_earlier_versions_stay_what_they_are() -> None:
    """New options are part of them where they are set, each value another one; a number is the same in any type."""
    job = Job("coyo", "in", "out")
    before = {
        "limit": None,
        "payload": "base64",
        "short_side": 336,
        "quality": 75,
        "pixels": "recipe",
        "resize": "exact",
        "encode": "recipe",
    }
    assert identify_settings(job, ImageSpec(short_side_px=336)) == before
    fitted = {"resize_mode": "border", "size_px": 64}
    specs = [
        ImageSpec(),
        ImageSpec(encode=Encoding.RECEIVED),
        *(ImageSpec(**{"encode": Encoding.RECEIVED, name: value}) for name, value in {"check": "header"}.items()),  # type: ignore[arg-type]
        *(ImageSpec(**one) for one in ({"min_size_px": 5}, {"max_area_px": 5}, {"max_aspect_ratio": 5})),  # type: ignore[arg-type]
        *(ImageSpec(**fitted, **one) for one in ({}, {"only_if_bigger": True}, {"resize": "fast"})),  # type: ignore[arg-type]
        *(ImageSpec(image_format=one) for one in (ImageFormat.PNG, ImageFormat.WEBP)),
        *(ImageSpec(resize_mode=one, size_px=65) for one in MODES),
    ]
    identities = [identify_settings(job, spec) for spec in specs]
    assert all(one not in identities[:number] for number, one in enumerate(identities))
    ratios = [identify_settings(job, ImageSpec(max_aspect_ratio=ratio)) for ratio in (3, 3.0)]
    assert pickle.dumps(ratios[0]) == pickle.dumps(ratios[1])


def test_differences_name_the_options() -> None:
    """And nothing that only follows from them."""
    job = Job("coyo", "in", "out")
    now = ImageSpec(resize_mode=ResizeMode.BORDER, size_px=64)
    before, after = identify_settings(job, ImageSpec()), identify_settings(job, now)
    text = describe_differences(before, after, settings_of(job, ImageSpec()), settings_of(job, now))
    assert text == "--resize-mode: not set, now border; --size: not set, now 64"
