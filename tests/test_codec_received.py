"""Images that are kept byte for byte as received, and those that the trainer could not open."""

import asyncio
import functools
import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bodies import Tags, png, saved, tiff, trainers_size
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import KINDS
from PIL import Image

from datafetch.demo.pictures import paint
from datafetch.errors import ConfigurationError
from datafetch.model.outcome import Body, Encoded, Failure, FailureKind, Outcome
from datafetch.transcode import Transcoder
from datafetch.transcode.codec import supported_formats, transcode
from datafetch.transcode.spec import Encoding, ImageSpec, Pixels, Resize

RECEIVED = ImageSpec(encode=Encoding.RECEIVED)
COVERS = replace(RECEIVED, min_pixels=2)
SIZES_PX = [(1, 1), (1, 53), (5, 3), (61, 47)]
MIB = 1024 * 1024
BASELINE = "JPEG RGB"

pytestmark = [
    pytest.mark.simd,
    pytest.mark.filterwarnings("ignore"),
]  # Pillow's warnings about odd files, which forkserver.py silences as well


def assert_kept(outcome: Outcome, body: bytes) -> Encoded:
    """Check that the outcome is the body itself, marked as original."""
    assert isinstance(outcome, Encoded), outcome
    assert outcome.jpeg == body
    assert outcome.is_original
    assert outcome.sha256 == hashlib.sha256(body).hexdigest()
    return outcome


@pytest.mark.matrix
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_kept_byte_for_byte(kind: str, tmp_path: Path) -> None:
    """Every format, mode and size is kept, and the trainer can open it with the reported size."""
    for seed, size_px in enumerate(SIZES_PX):
        body = KINDS[kind](paint(size_px, seed))
        kept = assert_kept(transcode(body, RECEIVED), body)
        assert (kept.width_px, kept.height_px) == Image.open(BytesIO(body)).size
        assert (kept.width_px, kept.height_px) == trainers_size(body, tmp_path / "image")
        assert kept.source_format == kind.split(maxsplit=1)[0]


def test_the_kinds_cover_every_format_on_the_allow_list() -> None:
    """The tests in this file cover every format."""
    assert {kind.split(maxsplit=1)[0] for kind in KINDS} == {*supported_formats(), "MPO"}  # opened as a JPEG


@functools.cache
def _whole(kind: str) -> bytes:
    return KINDS[kind](paint((320, 240) if kind == BASELINE else (27, 21), 5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder for the files that the trainer opens."""
    return tmp_path_factory.mktemp("received")


@pytest.mark.rotating
@settings(max_examples=600)
@given(kind=st.sampled_from(list(KINDS)), missing=st.integers(1, 24) | st.integers(1, 100_000))
def test_a_cut_off_file_is_kept_exactly_if_the_trainer_can_open_it(folder: Path, kind: str, missing: int) -> None:
    """Any prefix of any kind of file is a failure, or a file that opens and converts."""
    whole = _whole(kind)
    part = whole[: -(missing % len(whole)) or None]
    outcome = transcode(part, RECEIVED)
    size_px = trainers_size(part, folder / "image")
    if size_px is None:
        assert isinstance(outcome, Failure)
        assert outcome.kind in {FailureKind.TRUNCATED, FailureKind.NOT_AN_IMAGE}
    else:
        kept = assert_kept(outcome, part)
        assert (kept.width_px, kept.height_px) == size_px


@pytest.mark.parametrize("tenths", range(1, 10))
@pytest.mark.parametrize("name", supported_formats())
def test_half_an_image_is_never_kept(name: str, tenths: int) -> None:
    """In every format, a file that is cut off at any tenth is truncated."""
    body = saved(paint((61, 47), 5), name)
    outcome = transcode(body[: len(body) * tenths // 10], RECEIVED)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.TRUNCATED
    assert outcome == transcode(body[: len(body) * tenths // 10], ImageSpec())


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_jpeg_without_its_end_marker_is_kept_if_pillow_accepts_it(missing: int, tmp_path: Path) -> None:
    """Versions of Pillow differ. With ``--encode original`` such a JPEG is encoded again."""
    body = _whole(BASELINE)[:-missing]
    is_kept = trainers_size(body, tmp_path / "image") is not None
    outcome = transcode(body, RECEIVED)
    assert isinstance(outcome, Encoded if is_kept else Failure)
    again = transcode(body, ImageSpec(encode=Encoding.ORIGINAL))
    assert not isinstance(again, Encoded) or not again.is_original


@pytest.mark.parametrize("name", ["GIF", "TIFF", "PNG"])
def test_only_the_first_frame_of_an_animation_has_to_decode(name: str, tmp_path: Path) -> None:
    """The trainer reads only that one, so an animation whose second frame is cut off is kept."""
    first, second = (paint((61, 47), seed) for seed in (1, 2))
    whole = saved(first, name, save_all=True, append_images=[second])
    part = whole[: len(whole) * 19 // 20]
    assert trainers_size(part, tmp_path / "image") == (61, 47)
    assert_kept(transcode(part, RECEIVED), part)


def _grey_tiff_with_premultiplied_alpha() -> bytes:
    tags: Tags = {256: 4, 257: 3, 258: [8, 8], 259: 1, 262: 1, 277: 2, 278: 3, 338: 1}
    return tiff(bytes(4 * 3 * 2), tags)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(_grey_tiff_with_premultiplied_alpha(), id="grey TIFF with premultiplied alpha"),
        pytest.param(png(np.zeros((3, 4), int), 8, 3, [(b"tRNS", b"\xff\0")]), id="PNG that lacks its palette"),
    ],
)
def test_a_file_that_loads_but_does_not_convert_is_not_kept(body: bytes, tmp_path: Path) -> None:
    """The trainer converts to RGB after decoding, which Pillow can't do for every image that it loads."""
    taken = trainers_size(body, tmp_path / "image") is not None
    outcome = transcode(body, RECEIVED)
    assert isinstance(outcome, Encoded) == taken
    assert taken or (isinstance(outcome, Failure) and outcome.kind is FailureKind.TRUNCATED)


@pytest.mark.parametrize("size_px", [(1, 65_501), (70_000, 1)])
@pytest.mark.parametrize("name", ["PNG", "BMP", "TIFF"])
def test_an_image_too_long_for_a_jpeg_is_kept(name: str, size_px: tuple[int, int]) -> None:
    """The limit of 65,500 pixels per side applies only to images that are encoded."""
    body = saved(Image.new("L", size_px), name)
    kept = assert_kept(transcode(body, RECEIVED), body)
    assert (kept.width_px, kept.height_px) == size_px
    assert isinstance(transcode(body, ImageSpec()), Failure)


@pytest.mark.parametrize("body", [b"", b"<!doctype html>", b"%PDF-1.7", saved(paint((20, 20), 1), "PPM")])
def test_a_format_off_the_allow_list_is_not_kept(body: bytes) -> None:
    """It is refused even if the trainer's Pillow could read it."""
    outcome = transcode(body, RECEIVED)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.NOT_AN_IMAGE


def test_options_for_encoding_change_nothing() -> None:
    """Quality and resizing only apply to images that are encoded."""
    body = _whole(BASELINE)
    assert transcode(body, replace(RECEIVED, quality=1, resize=Resize.FAST)) == transcode(body, RECEIVED)


@pytest.mark.parametrize("wrong", [{"short_side_px": 336}, {"pixels": Pixels.CORRECT}, {"pixels": "correct"}])
def test_options_that_change_pixels_are_refused(wrong: dict[str, Any]) -> None:
    """One line names the fields, before anything is fetched."""
    message = "encode='received' keeps images as they are: it takes short_side_px=None and pixels='recipe'"
    with pytest.raises(ConfigurationError, match=f"^{message}$"):
        ImageSpec(encode=Encoding.RECEIVED, **wrong)


@pytest.mark.parametrize("wrong", [0, -1, 11, True, 1.0, "2", None])
def test_min_pixels_is_an_integer_up_to_max_pixels(wrong: Any) -> None:
    """Other values are refused when the spec is created."""
    with pytest.raises(ConfigurationError, match="min_pixels must be"):
        ImageSpec(max_pixels=10, min_pixels=wrong)
    assert ImageSpec(max_pixels=10, min_pixels=10).min_pixels == 10


@pytest.mark.rotating
@pytest.mark.parametrize("spec", [COVERS, replace(COVERS, encode=Encoding.RECIPE)], ids=["received", "recipe"])
def test_an_image_of_one_pixel_is_a_placeholder_in_every_format(spec: ImageSpec) -> None:
    """It is refused by its size, before it is decoded. Two pixels, in either direction, are an image."""
    for kind, make in KINDS.items():
        for size_px in ((1, 1), (1, 2), (2, 1)):
            body = make(paint(size_px, 1))
            width_px, height_px = Image.open(BytesIO(body)).size  # a canvas may be larger than the picture
            outcome = transcode(body, spec)
            if width_px * height_px > 1:
                assert isinstance(outcome, Encoded), kind
                assert isinstance(transcode(body, replace(spec, min_pixels=width_px * height_px + 1)), Failure), kind
            else:
                assert isinstance(outcome, Failure), kind
                assert outcome.kind is FailureKind.PLACEHOLDER
                assert outcome.detail == "1x1 pixels, a placeholder for an image that is gone"
                assert outcome.sha256 == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("name", supported_formats())
def test_a_placeholder_is_refused_without_decoding_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size in the header decides; pixels are neither loaded nor converted."""
    body = saved(paint((1, 1), 1), name)
    monkeypatch.setattr(Image.Image, "convert", None)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    outcome = transcode(body, COVERS)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.PLACEHOLDER


@pytest.mark.rotating
async def test_placeholders_are_refused_by_the_pool() -> None:
    """Intact images of every format, between the placeholders, are kept."""
    names = supported_formats() * 5
    sound = [saved(paint((48, 40), seed), name) for seed, name in enumerate(names)]
    gone = [saved(paint((1, 1), seed), name) for seed, name in enumerate(names)]
    async with Transcoder(COVERS, processes=2) as transcoder:
        for body, placeholder in zip(sound, gone, strict=True):
            assert_kept(await transcoder(Body(body)), body)
            outcome = await transcoder(Body(placeholder))
            assert isinstance(outcome, Failure)
            assert outcome.kind is FailureKind.PLACEHOLDER
            assert outcome.sha256 == hashlib.sha256(placeholder).hexdigest()


def _large_bmp() -> bytes:
    """Create the largest body that the fetcher accepts: 32 MiB, less 7 KB."""
    return saved(Image.frombytes("RGBA", (2896, 2896), random.Random(3).randbytes(2896 * 2896 * 4)), "BMP")


def _long_png() -> bytes:
    """Create a small image followed by more bytes than a JPEG of its size could have."""
    return saved(paint((48, 40), 4), "PNG") + random.Random(4).randbytes(12 * MIB)


@pytest.mark.rotating
@pytest.mark.parametrize(("large", "max_pixels"), [(_large_bmp, 2896 * 2896), (_long_png, 48 * 40)])
async def test_a_large_body_is_kept_whole_by_the_pool(large: Callable[[], bytes], max_pixels: int) -> None:
    """The shared buffer holds it twice, beyond its usual size and the longest JPEG; small bodies pass as well."""
    body, small = large(), saved(paint((48, 40), 1), "GIF")
    bodies = [small, body, *[small] * 20, body, small]
    async with Transcoder(replace(RECEIVED, max_pixels=max_pixels), processes=2) as transcoder:
        outcomes = await asyncio.gather(*map(transcoder, bodies))
    for outcome, sent in zip(outcomes, bodies, strict=True):
        assert_kept(outcome, sent)
