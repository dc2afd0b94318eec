"""Colour JPEGs that simplejpeg decodes have the bytes of the recipe's snippet, and all others are left to Pillow."""

import itertools
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import PIL
import pytest
from bodies import exif, recipe, saved, with_segment
from PIL import Image, features
from pool_codecs import optional_decoders
from snippet import assert_as_the_snippet, assert_same_without

from datafetch.demo.pictures import paint
from datafetch.model.outcome import Encoded
from datafetch.transcode import Transcoder
from datafetch.transcode.codec import transcode
from datafetch.transcode.image import turbo_jpeg
from datafetch.transcode.spec import ImageSpec

PHOTOGRAPHS = sorted((Path(__file__).parent / "photographs").glob("*.jpg"))
SIZES_PX = [(1, 1), (1, 53), (53, 1), (7, 3), (16, 16), (17, 33), (61, 47), (200, 133)]
JPEG = saved(paint((61, 47), 2), "JPEG")
PROGRESSIVE = saved(paint((61, 47), 2), "JPEG", progressive=True)
END = b"\xff\xd9"
START_OF_SCAN = b"\xff\xda"

pytestmark = [
    pytest.mark.simd,
    pytest.mark.usefixtures("_pillow_as_in_workers"),
    pytest.mark.filterwarnings("ignore"),  # Pillow's warnings about odd files, which forkserver.py silences as well
]
needs_turbo = pytest.mark.skipif(
    not turbo_jpeg.gives_pillows_pixels(), reason="simplejpeg is missing, or this Pillow has another libjpeg"
)


def decoded(body: bytes) -> Image.Image | None:
    """Decode a JPEG by simplejpeg, if it is one of those."""
    with Image.open(BytesIO(body)) as source:
        return turbo_jpeg.decode_colour_jpeg(source, body)


def colour_jpegs(size_px: tuple[int, int]) -> Iterator[bytes]:
    """Yield JPEGs of every subsampling that Pillow writes, progressive or not, with restarts and metadata."""
    for seed, (subsampling, progressive, restart, quality) in enumerate(
        itertools.product((0, 1, 2), (False, True), ({}, {"restart_marker_blocks": 3}), (5, 75, 100))
    ):
        plain = saved(
            paint(size_px, seed), "JPEG", subsampling=subsampling, progressive=progressive, quality=quality, **restart
        )
        yield plain
        yield with_segment(with_segment(plain, 0xE2, b"ICC_PROFILE\0\1\1" + bytes(300)), 0xE1, exif(6))
        yield with_segment(plain, 0xFE, b"a comment, which the snippet copies") + b"more after the end"


def test_the_installed_pillow_and_simplejpeg_agree() -> None:
    """Pillow's own wheels have the libjpeg-turbo that simplejpeg is compared with, so the fast way is taken."""
    is_wheel = ".post" not in PIL.__version__ and features.check("libjpeg_turbo")
    assert turbo_jpeg.gives_pillows_pixels() or not is_wheel


@needs_turbo
@pytest.mark.parametrize("size_px", SIZES_PX)
def test_colour_jpegs_have_the_bytes_of_the_snippet(size_px: tuple[int, int]) -> None:
    """For every kind and size simplejpeg decodes the file, and the JPEG is the snippet's."""
    for body in colour_jpegs(size_px):
        assert decoded(body) is not None
        outcome = transcode(body, ImageSpec())
        assert isinstance(outcome, Encoded)
        assert outcome.jpeg == recipe(body, None)
        assert (outcome.width_px, outcome.height_px, outcome.source_format) == (*size_px, "JPEG")


@needs_turbo
@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.stem)
def test_photographs_have_the_bytes_of_the_snippet(path: Path) -> None:
    """So do photographs, as they are and written anew with less and more detail."""
    with Image.open(path) as photograph:
        colours = photograph.convert("RGB")
    for quality, subsampling in ((60, 2), (97, 0), (85, 1)):
        body = saved(colours, "JPEG", quality=quality, subsampling=subsampling, progressive=quality == 60)
        outcome = transcode(body, ImageSpec())
        assert decoded(body) is not None
        assert isinstance(outcome, Encoded)
        assert outcome.jpeg == recipe(body, None)
    assert_as_the_snippet(path.read_bytes())


@needs_turbo
def test_a_progressive_jpeg_without_its_last_scans_has_the_bytes_of_the_snippet() -> None:
    """What such a file lacks is smoothed by libjpeg, without a warning."""
    body = saved(paint((200, 150), 3), "JPEG", progressive=True, quality=90)
    tables = [at for at in range(len(body)) if body.startswith(b"\xff\xc4", at)]
    for at in tables[-5:]:
        assert_as_the_snippet(body[:at] + END)
    assert decoded(body[: tables[-1]] + END) is not None


def renamed_frame(marker: int) -> bytes:
    """Return the JPEG with another marker in place of that of its frame."""
    return JPEG.replace(b"\xff\xc0", bytes((0xFF, marker)), 1)


def other_size_to_pillow() -> bytes:
    """Return a JPEG with two frame headers, of which Pillow takes the last, and libjpeg neither."""
    start = JPEG.index(b"\xff\xc0")
    frame = JPEG[start : start + 19]
    smaller = frame[:5] + (8).to_bytes(2, "big") + (8).to_bytes(2, "big") + frame[9:]
    return JPEG[:start] + frame + smaller + JPEG[start + 19 :]


def one_scan_per_component() -> bytes:
    """Return a colour JPEG whose first scan claims to have one component."""
    at = JPEG.index(START_OF_SCAN)
    return JPEG[: at + 4] + b"\1" + JPEG[at + 5 :]


LEFT_TO_PILLOW = {
    "grey": saved(paint((61, 47), 2).convert("L"), "JPEG"),
    "CMYK": saved(paint((61, 47), 2).convert("CMYK"), "JPEG"),
    "not in YCbCr": saved(paint((61, 47), 2), "JPEG", keep_rgb=True),
    "several pictures": saved(paint((61, 47), 2), "MPO", save_all=True, append_images=[paint((61, 47), 3)]),
    "cut off": JPEG[: len(JPEG) // 2],
    "cut off, with an end": JPEG[: len(JPEG) // 2] + END,
    "cut off, progressive, with an end": PROGRESSIVE[: len(PROGRESSIVE) // 2] + END,
    "without its end": JPEG[:-2],
    "damaged": JPEG[: len(JPEG) * 3 // 4] + b"\xff\xd3" + JPEG[len(JPEG) * 3 // 4 :],
    "with bytes between segments": JPEG[:20] + b"stray" + JPEG[20:],
    "arithmetic": renamed_frame(0xC9),
    "lossless": renamed_frame(0xC3),
    "of two sizes": other_size_to_pillow(),
    "of several scans": one_scan_per_component(),
    "of many scans": PROGRESSIVE[:-2] + PROGRESSIVE[PROGRESSIVE.rindex(START_OF_SCAN) : -2] * 70 + END,
    "of a subsampling without a name": JPEG.replace(b"\x01\x22\x00", b"\x01\x31\x00", 1),
    "not a JPEG": saved(paint((61, 47), 2), "PNG"),
}


@pytest.mark.parametrize("kind", LEFT_TO_PILLOW)
def test_all_else_is_left_to_pillow(kind: str) -> None:
    """Nothing is decoded by simplejpeg, and the outcome is the snippet's."""
    body = LEFT_TO_PILLOW[kind]
    assert decoded(body) is None
    assert_as_the_snippet(body)


def test_very_large_jpegs_are_left_to_pillow() -> None:
    """The header decides, before memory for the pixels is allocated."""
    side_px = 4097
    body = JPEG.replace(b"\x00\x2f\x00\x3d", side_px.to_bytes(2, "big") * 2, 1)
    with Image.open(BytesIO(body)) as source:
        assert source.size == (side_px, side_px)
    assert decoded(body) is None


def test_a_jpeg_that_is_shrunk_is_decoded_by_pillow() -> None:
    """Its pixels stay in mode RGB, which Pillow shrinks faster; the bytes are the snippet's."""
    body = saved(paint((200, 150), 3), "JPEG")
    outcome = transcode(body, ImageSpec(short_side_px=60))
    assert isinstance(outcome, Encoded)
    assert outcome.jpeg == recipe(body, 60)


def test_without_simplejpeg_the_bytes_are_the_same() -> None:
    """An installation without it gives the same JPEG, by Pillow alone."""
    assert_same_without("simplejpeg", "turbo_jpeg", JPEG)


@pytest.mark.rotating
@needs_turbo
async def test_workers_have_it_before_their_first_image() -> None:
    """The fork server loads and compares simplejpeg once, outside the sandbox, for all workers."""
    async with Transcoder(ImageSpec(), processes=1, codec=optional_decoders) as transcoder:
        outcome = await transcoder(b"any")
    assert isinstance(outcome, Encoded)
    assert b"simplejpeg loaded, compared 1 time" in outcome.jpeg
