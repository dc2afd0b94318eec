"""Images that are kept by their header alone: nothing that is cut off passes, nothing sound is lost, nothing raises."""

import asyncio
import hashlib
import random
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import psutil
import pytest
from bodies import chunk, saved, with_segment
from hypothesis import given
from hypothesis import strategies as st
from kinds import KINDS
from PIL import Image

from datafetch.demo.pictures import paint
from datafetch.model.outcome import Body, Encoded, Failure, FailureKind, Outcome, Permission
from datafetch.transcode import Transcoder
from datafetch.transcode.codec import transcode
from datafetch.transcode.header import check_header
from datafetch.transcode.spec import BodyCheck, Encoding, ImageSpec

FULL = ImageSpec(encode=Encoding.RECEIVED)
HEADER = replace(FULL, check=BodyCheck.HEADER)
KIB, MIB = 1024, 1024 * 1024
Image.init()
_FORMATS = [name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF") if name in Image.SAVE]
_RECOGNISED_BYTES = 26  # from which on every format is told apart, and a shorter file can be none
_LIMIT_S = 10.0  # hostile bodies of 32 MiB take some 0.7 s; without a bound they took minutes

pytestmark = [pytest.mark.simd, pytest.mark.filterwarnings("ignore")]  # as in test_codec_received.py


def kind_of(outcome: Outcome) -> str:
    """The failure kind, or ``ok``."""
    return outcome.kind.value if isinstance(outcome, Failure) else "ok"


@pytest.mark.matrix
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_kept_as_by_decoding_it(kind: str) -> None:
    """Every format, mode and size: the same outcome, but that a JPEG of several pictures is called one."""
    for seed, size_px in enumerate([(1, 1), (1, 53), (5, 3), (61, 47)]):
        body = KINDS[kind](paint(size_px, seed))
        decoded, outcome = transcode(body, FULL), check_header(body, HEADER)
        assert isinstance(decoded, Encoded)
        assert outcome == replace(decoded, source_format=decoded.source_format.replace("MPO", "JPEG"))


@pytest.mark.parametrize("name", _FORMATS)
def test_no_beginning_of_a_file_is_whole(name: str) -> None:
    """A file that is cut off anywhere, byte by byte, is truncated, as its own lengths and end marker tell."""
    body = saved(paint((23, 17), 3), name)
    assert kind_of(check_header(body, HEADER)) == "ok"
    kinds = [kind_of(check_header(body[:length], HEADER)) for length in range(len(body))]
    assert set(kinds[_RECOGNISED_BYTES:]) == {"truncated"}
    assert set(kinds[:_RECOGNISED_BYTES]) <= {"truncated", "not_an_image", "corrupt"}


@pytest.mark.rotating
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_whole_by_its_header_has_all_that_pillow_needs(kind: str) -> None:
    """Any beginning of any kind of file that is kept decodes, for there is only more behind the picture."""
    body = KINDS[kind](paint((23, 17), 3))
    for length in range(len(body)):
        part = body[:length]
        if kind_of(check_header(part, HEADER)) == "ok":
            assert kind_of(transcode(part, FULL)) == "ok", f"{length} of {len(body)}"


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("tail", [b"\0", b"\r\n", b"<!-- cached -->", b"\xff\xd8\xff", bytes(5000)])
def test_bytes_behind_the_end_do_no_harm(name: str, tail: bytes) -> None:
    """The web has such files, and viewers and trainers read them; they are kept with their tail."""
    body = saved(paint((23, 17), 3), name) + tail
    outcome = check_header(body, HEADER)
    assert isinstance(outcome, Encoded)
    assert outcome.jpeg == body


def test_a_thumbnail_in_a_jpeg_is_not_its_end() -> None:
    """Its end marker is in a segment, which is skipped by its length."""
    picture = paint((64, 48), 3)
    body = with_segment(saved(picture, "JPEG"), 0xE1, b"Exif\0\0" + saved(picture.resize((16, 12)), "JPEG"))
    assert kind_of(check_header(body, HEADER)) == "ok"
    after_thumbnail = body.index(b"\xff\xd9") + 2
    for length in (after_thumbnail, after_thumbnail + 1, len(body) - 1):
        assert kind_of(check_header(body[:length], HEADER)) == "truncated"


@given(
    kind=st.sampled_from(list(KINDS)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    length=st.floats(0, 1),
    tail=st.binary(max_size=40),
)
def test_a_damaged_file_has_an_outcome(kind: str, changes: list[tuple[float, int]], length: float, tail: bytes) -> None:
    """Whatever is changed in it, near its beginning above all; none raises, and an image that is kept has pixels."""
    body = bytearray(KINDS[kind](paint((27, 21), 5)))
    for place, value in changes:
        body[int(place**3 * (len(body) - 1))] = value
    damaged = bytes(body[: int(length * len(body)) or None]) + tail
    outcome = check_header(damaged, HEADER)
    assert outcome.sha256 == hashlib.sha256(damaged).hexdigest()
    if isinstance(outcome, Encoded):
        assert outcome.jpeg == damaged
        assert min(outcome.width_px, outcome.height_px) > 0
    else:
        assert outcome.kind in {
            FailureKind.TRUNCATED,
            FailureKind.CORRUPT,
            FailureKind.NOT_AN_IMAGE,
            FailureKind.TOO_MANY_PIXELS,
        }


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"BM"])
)
def test_anything_at_all_has_an_outcome(content: bytes, signature: bytes) -> None:
    """Behind any signature, too."""
    assert check_header(signature + content, HEADER).sha256


@pytest.mark.parametrize("body", [b"", b"<!doctype html>", b"%PDF-1.7", b"BM is how this text begins", b"RIFF....WAVE"])
def test_what_is_no_image_is_refused(body: bytes) -> None:
    """As it is by the decoder."""
    assert check_header(body, HEADER) == transcode(body, FULL)
    assert kind_of(check_header(body, HEADER)) == "not_an_image"


def _gif(blocks: bytes) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", 5, 5, 0, 0, 0) + blocks


_IHDR = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 5, 8, 2, 0, 0, 0))
_STRIPS = struct.pack("<HHII", 273, 4, 1 << 17, 100)
_BOMBS = {
    "JPEG of empty segments": b"\xff\xd8" + b"\xff\xe0\0\2" * (8 * MIB),
    "JPEG of fill bytes": b"\xff\xd8\xff" + b"\xff" * (32 * MIB),
    "JPEG of stuffed bytes": b"\xff\xd8\xff\xda\0\2" + b"\xff\0" * (16 * MIB),
    "JPEG of starts": b"\xff\xd8\xff" + b"\xff\xd8" * (16 * MIB),
    "PNG of empty chunks": _IHDR + chunk(b"tEXt", b"") * (2 * MIB),
    "GIF of short blocks": _gif(b"\x21\xfe" + b"\1x" * (16 * MIB)),
    "GIF of empty extensions": _gif(b"\x21\xfe\0" * (10 * MIB)),
    "GIF of nothing": _gif(bytes(32 * MIB)),
    "WebP of empty chunks": b"RIFF\xff\xff\xff\1WEBPVP8X\x0a\0\0\0" + bytes(10) + b"ABCD\0\0\0\0" * (4 * MIB),
    "AVIF of empty boxes": b"\0\0\0\x0cftypavif" + b"\0\0\0\x08free" * (4 * MIB),
    "AVIF of sizes": b"\0\0\0\x0cftypavif\0\0\0\0meta" + b"ispe" * (8 * MIB),
    "TIFF whose tags share values": b"II*\0\x08\0\0\0\xff\xff" + _STRIPS * 65_535 + bytes(MIB),
}


@pytest.mark.parametrize("name", _BOMBS)
def test_a_crafted_file_takes_bounded_time(name: str) -> None:
    """It is refused after a bounded number of steps, or one pass over its bytes."""
    started_s = time.process_time()
    assert kind_of(check_header(_BOMBS[name], HEADER)) in {"truncated", "corrupt"}
    assert time.process_time() - started_s < _LIMIT_S


def test_limits_on_sizes_hold() -> None:
    """Those that hold for every image; and a permission is recorded."""
    body = saved(paint((40, 20), 1), "PNG")
    for limits, kind in (
        ({"max_pixels": 799}, "too_many_pixels"),
        ({"min_pixels": 801}, "placeholder"),
        ({"min_size_px": 21}, "too_small"),
        ({"max_area_px": 799}, "area_too_large"),
        ({"max_aspect_ratio": 1.9}, "aspect_ratio_too_large"),
        ({"max_pixels": 800, "min_size_px": 20, "max_area_px": 800, "max_aspect_ratio": 2}, "ok"),
    ):
        spec = replace(HEADER, **limits)
        assert kind_of(check_header(body, spec)) == kind
        assert check_header(body, spec) == transcode(body, replace(spec, check=BodyCheck.FULL))
    large = saved(Image.new("1", (10_000, 9_000)), "PNG")
    assert check_header(large, replace(HEADER, max_pixels=10**8)).permitted == (Permission.MAX_PIXELS,)


def _children() -> Iterator[psutil.Process]:
    return iter(psutil.Process().children(recursive=True))


async def test_headers_are_checked_without_processes() -> None:
    """A transcoder with this spec starts none, and takes failures, bodies and bytes, small and large ones."""
    before = {child.pid for child in _children()}
    small, noise = saved(paint((40, 20), 1), "JPEG"), random.Random(1).randbytes(600 * 500 * 3)
    large = saved(Image.frombytes("RGB", (600, 500), noise), "PNG")
    assert len(large) > 512 * KIB
    async with Transcoder(HEADER, processes=2) as transcoder:
        outcomes = await asyncio.gather(*(transcoder(body) for body in (small, Body(large), large[:-1], small)))
        assert {child.pid for child in _children()} <= before
        failure = Failure(FailureKind.TIMEOUT)
        assert await transcoder(failure) is failure
    assert outcomes == [check_header(body, HEADER) for body in (small, large, large[:-1], small)]
    with pytest.raises(RuntimeError, match="works only while it is open"):
        await transcoder(small)


def test_checking_headers_loads_no_decoder() -> None:
    """It is done in the process that fetches, which does without Pillow."""
    code = "import sys, datafetch.transcode.pool.pool, datafetch.transcode.header; print('PIL' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert loaded.stdout == "False\n"


def test_photographs_are_kept() -> None:
    """As they are, and saved in every other format and way that cameras and sites use."""
    for path in sorted((Path(__file__).parent / "photographs").glob("*.jpg")):
        body = path.read_bytes()
        assert check_header(body, HEADER) == transcode(body, FULL)
        with Image.open(BytesIO(body)) as photograph:
            photograph.load()
            for name, options in (("JPEG", {"progressive": True}), ("JPEG", {"restart_marker_rows": 1}), ("WEBP", {})):
                again = saved(photograph, name, **options)
                assert kind_of(check_header(again, HEADER)) == "ok"
                assert kind_of(check_header(again[: len(again) * 9 // 10], HEADER)) == "truncated"
