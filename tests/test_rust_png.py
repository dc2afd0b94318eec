"""Colour PNGs that kornia-rs decodes have the bytes of the recipe's snippet, and all others are left to Pillow."""

import random
import struct
import subprocess
import sys
import zlib
from importlib.util import find_spec
from io import BytesIO

import numpy as np
import pytest
from bodies import chunk, png, recipe, saved
from PIL import Image
from pool_codecs import optional_decoders
from snippet import assert_as_the_snippet, assert_same_without

from datafetch.demo.pictures import paint
from datafetch.model.outcome import Encoded
from datafetch.transcode import Transcoder
from datafetch.transcode.codec import transcode
from datafetch.transcode.image import rust_png
from datafetch.transcode.spec import ImageSpec

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIZES_PX = [(1, 1), (1, 53), (53, 1), (7, 3), (16, 16), (17, 33), (200, 133), (301, 230)]
RGB, RGBA = 2, 6
PICTURE = paint((61, 47), 2)
PNG = saved(PICTURE, "PNG")
FUZZED = 3000

pytestmark = [
    pytest.mark.simd,
    pytest.mark.usefixtures("_pillow_as_in_workers"),
    pytest.mark.filterwarnings("ignore"),  # Pillow's warnings about odd files, which forkserver.py silences as well
]
needs_kornia = pytest.mark.skipif(not rust_png.gives_pillows_pixels(), reason="kornia-rs is missing")


def decoded(body: bytes) -> Image.Image | None:
    """Decode a PNG by kornia-rs, if it is one of those."""
    with Image.open(BytesIO(body)) as source:
        return rust_png.decode_colour_png(source, body)


def of_rows(rows: bytes, size_px: tuple[int, int], colour: int = RGB, *, level: int = 6, data_chunks: int = 1) -> bytes:
    """Create a PNG of filtered rows, its data in so many chunks."""
    return of_data(zlib.compress(rows, level), size_px, colour, data_chunks=data_chunks)


def of_data(data: bytes, size_px: tuple[int, int], colour: int = RGB, *, data_chunks: int = 1) -> bytes:
    """Create a PNG of compressed rows."""
    step = -(-len(data) // data_chunks)
    parts = [data[start : start + step] for start in range(0, len(data), step)]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size_px, 8, colour, 0, 0, 0))
    return SIGNATURE + header + b"".join(chunk(b"IDAT", part) for part in parts) + chunk(b"IEND", b"")


def random_rows(rng: random.Random, size_px: tuple[int, int], channels: int) -> bytes:
    """Make rows of random bytes, each with one of the five filters."""
    width, height = size_px
    return b"".join(bytes([rng.randrange(5)]) + rng.randbytes(width * channels) for _ in range(height))


def test_kornia_agrees_where_it_is_installed() -> None:
    """Otherwise all other tests would be skipped."""
    assert rust_png.gives_pillows_pixels() is (find_spec("kornia_rs") is not None)


@needs_kornia
@pytest.mark.parametrize("size_px", SIZES_PX)
@pytest.mark.parametrize(("colour", "channels"), [(RGB, 3), (RGBA, 4)])
def test_colour_pngs_have_the_bytes_of_the_snippet(size_px: tuple[int, int], colour: int, channels: int) -> None:
    """With random filters and bytes, in one chunk and in many, stored and compressed; also where it is shrunk."""
    rng = random.Random(1)
    for level, data_chunks in ((0, 1), (1, 5), (9, 1)):
        body = of_rows(random_rows(rng, size_px, channels), size_px, colour, level=level, data_chunks=data_chunks)
        assert decoded(body) is not None
        for limit in (None, 100):
            outcome = transcode(body, ImageSpec(short_side_px=limit))
            assert isinstance(outcome, Encoded)
            assert outcome.jpeg == recipe(body, limit)
            assert outcome.source_format == "PNG"


@needs_kornia
def test_pictures_have_the_bytes_of_the_snippet() -> None:
    """As Pillow writes them, with a profile, a resolution and a comment in front of the pixels."""
    for mode in ("RGB", "RGBA"):
        for seed in range(4):
            picture = paint((150, 90 + seed), seed).convert(mode)
            options = {"dpi": (72, 72), "icc_profile": bytes(300), "compress_level": 1 + seed, "optimize": seed == 3}
            body = saved(picture, "PNG", **options)
            assert decoded(body) is not None
            assert_as_the_snippet(body)


ROWS = zlib.decompress(of_rows(random_rows(random.Random(2), (8, 6), 3), (8, 6))[41:-16])
DATA = zlib.compress(ROWS)
IMAGE, END = chunk(b"IDAT", DATA), chunk(b"IEND", b"")
SMALL_HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 6, 8, RGB, 0, 0, 0))


def behind_header(*parts: bytes) -> bytes:
    """Create a PNG of 8 × 6 pixels with chunks between its header and its pixels."""
    return b"".join((SIGNATURE, SMALL_HEADER, *parts, IMAGE, END))


def frame_control(width: int, height: int, top: int) -> bytes:
    """Create the chunk that says which part of an animation's canvas comes next."""
    return chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, width, height, 0, top, 1, 1, 0, 0))


LEFT_TO_PILLOW = {
    "a text by which Pillow takes it for interlaced": behind_header(chunk(b"tEXt", b"interlace\0yes")),
    "a frame of an animation that is none": behind_header(frame_control(8, 3, 3)),
    "a narrow frame of an animation that is none": behind_header(frame_control(4, 3, 0)),
    "pixels of an animation that is none": behind_header(
        frame_control(8, 6, 0), chunk(b"fdAT", struct.pack(">I", 1) + zlib.compress(bytes(150)))
    ),
    "an end in front of the pixels": behind_header(END),
    "grey": saved(PICTURE.convert("L"), "PNG"),
    "palette": saved(PICTURE.quantize(16), "PNG"),
    "grey and alpha": saved(PICTURE.convert("LA"), "PNG"),
    "16 bits": png(np.arange(6 * 8 * 3, dtype=np.uint16).reshape(6, 8, 3) * 400, 16, RGB),
    "interlaced": png(np.asarray(PICTURE), 8, RGB, interlaced=True),
    "animated": saved(PICTURE, "PNG", save_all=True, append_images=[paint((61, 47), 3)]),
    "a text behind the pixels": PNG[:-12] + chunk(b"tEXt", b"Comment\0x") + PNG[-12:],
    "a broken text behind the pixels": PNG[:-12] + chunk(b"zTXt", b"Comment\0\1x") + PNG[-12:],
    "without its end": PNG[:-12],
    "cut off": PNG[: len(PNG) // 2],
    "another checksum of the data": of_data(DATA[:-4] + b"abcd", (8, 6)),
    "no checksum of the data": of_data(DATA[:-4], (8, 6)),
    "more rows": of_rows(ROWS + ROWS, (8, 6)),
    "fewer rows": of_rows(ROWS[:-25], (8, 6)),
    "bytes behind the data": of_data(DATA + b"more", (8, 6)),
    "no filter of that number": of_rows(b"\5" + ROWS[1:], (8, 6)),
    "another header": PNG[:33] + SMALL_HEADER + PNG[33:],
    "many chunks": of_rows(random_rows(random.Random(3), (200, 133), 3), (200, 133), level=0, data_chunks=1 << 17),
    "not a PNG": saved(PICTURE, "JPEG"),
}


@pytest.mark.parametrize("kind", LEFT_TO_PILLOW)
def test_all_else_is_left_to_pillow(kind: str) -> None:
    """Nothing is decoded by kornia-rs, and the outcome is the snippet's."""
    body = LEFT_TO_PILLOW[kind]
    assert decoded(body) is None
    assert_as_the_snippet(body)


@needs_kornia
def test_texts_in_front_of_the_pixels_have_the_influence_that_they_have_in_pillow() -> None:
    """Pillow keeps texts under the names of its own settings, some of which change or break what it decodes."""
    for name in (b"interlace", b"bbox", b"default_image", b"dpi", b"comment", b"transparency", b"icc_profile", b"exif"):
        for text in (chunk(b"tEXt", name + b"\0yes"), chunk(b"zTXt", name + b"\0\0" + zlib.compress(b"1"))):
            assert_as_the_snippet(behind_header(text))
            assert_as_the_snippet(behind_header(text, text))


@needs_kornia
def test_where_memory_is_short_pillow_decodes() -> None:
    """With too little of it for another decoder, the image arrives as with enough."""
    program = """
import os, resource, sys
from datafetch.model.outcome import Encoded
from datafetch.transcode.codec import transcode
from datafetch.transcode.image import rust_png
from datafetch.transcode.spec import ImageSpec
body = sys.stdin.buffer.read()
rust_png.gives_pillows_pixels()
taken_bytes = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for spare_mib in (140, 180, 220, 400):
    pid = os.fork()
    if not pid:
        resource.setrlimit(resource.RLIMIT_AS, (taken_bytes + (spare_mib << 20),) * 2)
        os._exit(0 if isinstance(transcode(body, ImageSpec()), Encoded) else 1)
    assert os.waitpid(pid, 0)[1] == 0, spare_mib
"""
    side_px = 4096
    body = of_rows((b"\4" + bytes(4 * side_px)) * side_px, (side_px, side_px), RGBA, level=1)
    subprocess.run([sys.executable, "-c", program], input=body, check=True, timeout=120)


def test_very_large_pngs_are_left_to_pillow() -> None:
    """The header decides, before anything is decompressed."""
    assert decoded(of_data(DATA, (4097, 4097))) is None


@needs_kornia
def test_damaged_pngs_have_the_outcomes_of_the_snippet() -> None:
    """Bytes changed, cut off and added anywhere: no image arrives or fails because of kornia-rs, and some are its."""
    rng = random.Random(4)
    arrived = 0
    for _ in range(FUZZED):
        size_px = rng.randint(1, 20), rng.randint(1, 20)
        colour, channels = rng.choice([(RGB, 3), (RGBA, 4)])
        body = bytearray(of_rows(random_rows(rng, size_px, channels), size_px, colour, data_chunks=rng.randint(1, 3)))
        for _ in range(rng.randrange(3)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        damaged = bytes(body[: rng.randrange(len(body))] if rng.random() < 0.1 else body)
        try:
            arrived += decoded(damaged) is not None
        except (OSError, SyntaxError):  # Pillow's, which has not opened it
            continue
        assert_as_the_snippet(damaged)
    assert FUZZED // 10 < arrived < FUZZED


def test_without_kornia_the_bytes_are_the_same() -> None:
    """An installation without it gives the same JPEG, by Pillow alone."""
    assert_same_without("kornia_rs", "rust_png", PNG)


@pytest.mark.rotating
@needs_kornia
async def test_workers_have_it_before_their_first_image() -> None:
    """The fork server loads and compares kornia-rs once, outside the sandbox; inside, it decodes."""
    async with Transcoder(ImageSpec(), processes=1, codec=optional_decoders) as transcoder:
        outcome = await transcoder(b"any")
    assert isinstance(outcome, Encoded)
    assert b"kornia_rs loaded, compared 1 time" in outcome.jpeg
    async with Transcoder(ImageSpec(), processes=1) as transcoder:
        outcome = await transcoder(PNG)
    assert isinstance(outcome, Encoded)
    assert outcome.jpeg == recipe(PNG, None)
