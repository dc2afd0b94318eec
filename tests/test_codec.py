"""Transcoding one body to one outcome."""

import base64
import struct
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from bodies import recipe, saved, tiff
from kinds import KINDS
from PIL import Image

from datafetch.demo.pictures import paint
from datafetch.errors import ConfigurationError
from datafetch.model.outcome import Encoded, Failure, FailureKind, Permission
from datafetch.transcode.codec import classify, transcode
from datafetch.transcode.spec import Encoding, ImageSpec, Pixels, Resize

VILA = ImageSpec(short_side_px=336)
RECEIVED = ImageSpec(encode=Encoding.RECEIVED)

pytestmark = [pytest.mark.simd, pytest.mark.usefixtures("_pillow_as_in_workers")]


@pytest.mark.rotating
def test_the_recipe_byte_for_byte_on_photographs(pictures: tuple[Path, list[str]]) -> None:
    """Photograph-like pictures without EXIF, in the web's mix of formats, give the recipe's JPEG."""
    folder, names = pictures
    for name in names:
        body = (folder / name).read_bytes()
        outcome = transcode(body, VILA)
        assert isinstance(outcome, Encoded)
        assert outcome.jpeg == recipe(body, 336), name


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(name: str) -> None:
    """Only the first frame is used, as with ``Image.open``."""
    first, second = paint((60, 50), 1), paint((60, 50), 2)
    body = saved(first, name, save_all=True, append_images=[second])
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
        b"BM",
        b"BMW",
        b"BMW builds cars, and has done so since 1928",
        b"SIMPLE  =                    T / FITS",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        saved(paint((20, 20), 1), "PPM"),
        saved(paint((20, 20), 1), "ICO"),
        saved(paint((20, 20), 1), "TGA"),
    ],
)
def test_a_format_off_the_allow_list_is_not_an_image(body: bytes) -> None:
    """Such formats are not even tried, although Pillow could read some of them."""
    outcome = transcode(body, VILA)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.NOT_AN_IMAGE
    assert "0x" not in outcome.detail


@pytest.mark.parametrize("tenths", range(1, 10))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_half_an_image_is_truncated(name: str, tenths: int) -> None:
    """An image that ends early is a failure, not a picture with a grey half."""
    body = saved(paint((320, 240), 5), name)
    outcome = transcode(body[: len(body) * tenths // 10], VILA)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.TRUNCATED


@pytest.mark.rotating
@pytest.mark.parametrize("spec", [VILA, RECEIVED])
def test_too_many_pixels_are_refused_from_the_header(spec: ImageSpec) -> None:
    """A decompression bomb is refused by its size, before its pixels are allocated."""
    bomb = saved(Image.new("1", (30_000, 30_000)), "PNG")
    assert len(bomb) < 200_000
    outcome = transcode(bomb, spec)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.TOO_MANY_PIXELS


def _webp_canvas(width_px: int, height_px: int) -> bytes:
    frame = saved(paint((8, 8), 1), "WEBP")[12:]
    canvas = (
        b"VP8X"
        + struct.pack("<II", 10, 0)
        + b"".join((side_px - 1).to_bytes(3, "little") for side_px in (width_px, height_px))
    )
    return b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(frame)) + b"WEBP" + canvas + frame


@pytest.mark.parametrize(
    "body",
    [
        _webp_canvas(16_383, 16_383),
        # The frames' own headers, with the bits of the size set.
        (lossy := saved(paint((8, 8), 1), "WEBP"))[:26] + b"\xff\x3f\xff\x3f" + lossy[30:],
        (lossless := saved(paint((8, 8), 1), "WEBP", lossless=True))[:21] + b"\xff\xff\xff\x0f" + lossless[25:],
    ],
)
@pytest.mark.parametrize("spec", [VILA, RECEIVED])
def test_a_webp_is_refused_before_it_is_opened(body: bytes, spec: ImageSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening it would allocate its canvas."""
    monkeypatch.setattr(Image, "open", None)
    outcome = transcode(body, spec)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.TOO_MANY_PIXELS


@pytest.mark.parametrize("spec", [VILA, RECEIVED])
def test_a_tiff_with_huge_tiles_is_refused(spec: ImageSpec) -> None:
    """A tile is decoded whole, however little of it the image shows."""
    tags: dict[int, int | list[int] | bytes] = {
        256: 16,
        257: 16,
        258: 8,
        259: 5,
        262: 1,
        277: 1,
        322: 30_000,
        323: 30_000,
    }
    outcome = transcode(tiff(bytes(1000), tags), spec)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.TOO_MANY_PIXELS


@pytest.mark.rotating
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spec", [ImageSpec(), ImageSpec(pixels=Pixels.CORRECT), RECEIVED])
def test_the_limit_holds_for_every_kind_of_image(spec: ImageSpec) -> None:
    """In every format, exactly ``max_pixels`` are accepted, and one more is refused."""
    for kind, make in KINDS.items():
        body = make(paint((20, 15), 1))
        width_px, height_px = Image.open(BytesIO(body)).size
        for max_pixels in (width_px * height_px, width_px * height_px - 1):
            outcome = transcode(body, replace(spec, max_pixels=max_pixels))
            assert isinstance(outcome, Encoded) == (max_pixels == width_px * height_px), kind


@pytest.mark.parametrize(("max_pixels", "arrives"), [(300, True), (299, False)])
def test_the_pixel_limit_is_the_specs(max_pixels: int, arrives: bool) -> None:
    """Exactly ``max_pixels`` are accepted, and one more is refused."""
    outcome = transcode(saved(paint((20, 15), 1), "PNG"), ImageSpec(max_pixels=max_pixels))
    assert isinstance(outcome, Encoded) == arrives


def test_an_image_too_long_for_a_jpeg_is_a_failure() -> None:
    """A JPEG has at most 65,500 pixels per side."""
    outcome = transcode(saved(Image.new("L", (1, 65_501)), "PNG"), VILA)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.TOO_MANY_PIXELS


def test_quality_is_the_specs() -> None:
    """Lower quality gives a smaller file, and 75 is Pillow's default."""
    body = saved(paint((320, 240), 5), "PNG")
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
        *({name: value} for name in ("short_side_px", "quality", "max_pixels") for value in (True, 50.0, "50")),
        {"decode_timeout_s": True},
        {"decode_timeout_s": "20"},
        {"quality": None},
    ],
)
def test_a_spec_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    """The error names the field, before anything is fetched."""
    with pytest.raises(ConfigurationError, match=f"^{next(iter(wrong))} must be "):
        ImageSpec(**wrong)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("pixels", "recipe or correct"),
        ("resize", "exact or fast"),
        ("encode", "recipe or original or received"),
    ],
)
@pytest.mark.parametrize("wrong", ["best", "", 1])
def test_an_unknown_choice_is_refused(name: str, choices: str, wrong: Any) -> None:
    """The error names the field and the available choices."""
    with pytest.raises(ConfigurationError, match=f"^{name} must be {choices}, not {wrong!r}"):
        ImageSpec(**{name: wrong})


def test_a_choice_may_be_a_plain_string() -> None:
    """A plain string is converted to the enumeration, and compares equal to it."""
    words: dict[str, Any] = {"pixels": "correct", "resize": "fast", "encode": "original"}
    spec = ImageSpec(**words)
    assert spec == ImageSpec(pixels=Pixels.CORRECT, resize=Resize.FAST, encode=Encoding.ORIGINAL)
    assert (spec.pixels, spec.resize, spec.encode) == (Pixels.CORRECT, Resize.FAST, Encoding.ORIGINAL)
    assert spec.pixels is Pixels.CORRECT


@pytest.mark.parametrize("length", [6, 10, 14, 20, 40])
def test_a_bmp_that_is_cut_off_in_its_header_is_truncated(length: int) -> None:
    """Such a body is an image that ended early, and not text."""
    outcome = transcode(saved(paint((20, 15), 1), "BMP")[:length], VILA)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.TRUNCATED


def test_a_refusal_is_described_in_words() -> None:
    """People read the ledger: it states the limit, and not the class of an exception."""
    outcome = transcode(saved(paint((20, 15), 1), "PNG"), ImageSpec(max_pixels=299))
    assert isinstance(outcome, Failure)
    assert outcome.detail == "over 299 pixels"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (AssertionError(), FailureKind.TRUNCATED),
        (MemoryError(), FailureKind.WORKER_CRASHED),
        (OSError(), FailureKind.TRUNCATED),
    ],
)
def test_an_error_without_a_message_is_described_in_words(error: Exception, kind: FailureKind) -> None:
    """The ledger never has an empty detail, although some exceptions have no message."""
    failure = classify(error, b"", "")
    assert failure.kind is kind
    assert failure.detail.startswith(f"{type(error).__name__}: ")
    assert len(failure.detail.split(": ")[1].split()) > 2


def test_an_image_that_needs_permission_for_its_pixels_reports_it() -> None:
    """The permission is recorded for an image above the default limit, and for no other."""
    large, small = (saved(Image.new("L", (9_500, side_px)), "JPEG") for side_px in (9_500, 95))
    assert isinstance(transcode(large, ImageSpec(encode=Encoding.ORIGINAL)), Failure)
    spec = ImageSpec(encode=Encoding.ORIGINAL, max_pixels=100_000_000)
    permitted = [outcome.permitted for outcome in (transcode(large, spec), transcode(small, spec))]
    assert permitted == [(Permission.MAX_PIXELS,), ()]
