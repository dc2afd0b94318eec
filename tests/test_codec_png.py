"""PNGs that Pillow refuses for their texts or their profile, and other faults that a second request can't fix."""

import struct
import zlib

import numpy as np
import pytest
from bodies import P3_COLOURANTS, chunk, png, recipe, rgb_profile, saved
from PIL import features

from datafetch.demo.pictures import paint
from datafetch.model.outcome import Encoded, Failure, FailureKind
from datafetch.transcode.codec import transcode
from datafetch.transcode.spec import Encoding, ImageSpec, Pixels

MIB = 1024 * 1024
SAMPLES = np.asarray(paint((40, 30), 3))
RECIPE = ImageSpec(short_side_px=24)
CORRECT = ImageSpec(short_side_px=24, pixels=Pixels.CORRECT)
PLAIN = png(SAMPLES, 8, 2)
PROFILE = rgb_profile(P3_COLOURANTS)

pytestmark = [
    pytest.mark.simd,
    pytest.mark.usefixtures("_pillow_as_in_workers"),
    pytest.mark.filterwarnings("ignore"),
]


def _padded(profile: bytes, size_bytes: int) -> bytes:
    """Extend a profile with bytes behind its tags, which its length includes."""
    return struct.pack(">I", size_bytes) + profile[4:].ljust(size_bytes - 4, b"\0")


def _profile_chunk(profile: bytes) -> tuple[bytes, bytes]:
    return b"iCCP", b"a name\0\0" + zlib.compress(profile)


LARGE = zlib.compress(bytes(MIB + 1))
FULL = zlib.compress(bytes(MIB))
TEXTS = {
    "zTXt": [(b"zTXt", b"Comment\0\0" + LARGE)],
    "iTXt": [(b"iTXt", b"Comment\0\1\0\0\0" + LARGE)],
    "XMP": [(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0a key\0" + LARGE)],
    "many": [(b"zTXt", b"part\0\0" + FULL)] * 65,
    "of an unknown method": [(b"zTXt", b"Comment\0\1" + FULL)],
}
PROFILES = {
    "over 4 MiB": [_profile_chunk(_padded(PROFILE, 4 * MIB + 1))],
    "of an unknown method": [(b"iCCP", b"a name\0\1" + zlib.compress(PROFILE))],
    "without a name": [(b"iCCP", b"")],
}


def _outcome(body: bytes, spec: ImageSpec) -> Encoded:
    outcome = transcode(body, spec)
    assert isinstance(outcome, Encoded), outcome
    return outcome


@pytest.mark.rotating
@pytest.mark.parametrize(
    "spec", [RECIPE, CORRECT, ImageSpec(encode=Encoding.ORIGINAL)], ids=["recipe", "correct", "kept"]
)
@pytest.mark.parametrize("chunks", [*TEXTS.values(), *PROFILES.values()], ids=[*TEXTS, *PROFILES])
def test_refused_texts_and_profiles_do_not_fail_an_image(chunks: list[tuple[bytes, bytes]], spec: ImageSpec) -> None:
    """They are left out, and the pixels are those of the file without them."""
    body = png(SAMPLES, 8, 2, chunks)
    with pytest.raises((ValueError, SyntaxError, OSError, IndexError)):
        recipe(body, None)
    assert _outcome(body, spec).jpeg == _outcome(PLAIN, spec).jpeg


def test_a_refused_text_behind_the_pixels_does_not_fail_an_image() -> None:
    """Pillow reads such a text only after the pixels."""
    end = chunk(b"IEND", b"")
    body = PLAIN.removesuffix(end) + chunk(b"zTXt", b"Comment\0\0" + LARGE) + end
    assert _outcome(body, CORRECT).jpeg == _outcome(PLAIN, CORRECT).jpeg


def test_other_texts_are_kept() -> None:
    """A comment that Pillow would copy into the recipe's JPEG is still copied."""
    comment = (b"tEXt", b"comment\0a comment")
    body = png(SAMPLES, 8, 2, [comment, *TEXTS["zTXt"]])
    assert _outcome(body, RECIPE).jpeg == recipe(png(SAMPLES, 8, 2, [comment]), 24)


@pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow has no Little CMS")
@pytest.mark.parametrize("size_bytes", [MIB + 1, 3 * MIB, 4 * MIB])
def test_a_profile_over_pillows_limit_is_applied(size_bytes: int) -> None:
    """Profiles up to 4 MiB are applied (docs/fidelity.md), although Pillow refuses to inflate more than 1 MiB."""
    body = png(SAMPLES, 8, 2, [_profile_chunk(_padded(PROFILE, size_bytes))])
    applied = _outcome(body, CORRECT).jpeg
    assert applied == _outcome(png(SAMPLES, 8, 2, [_profile_chunk(PROFILE)]), CORRECT).jpeg
    assert applied != _outcome(PLAIN, CORRECT).jpeg


def test_a_png_that_the_trainer_cannot_open_is_not_kept() -> None:
    """The trainer's Pillow has the same limits. The kind is ``corrupt``, because another request can't help."""
    outcome = transcode(png(SAMPLES, 8, 2, TEXTS["zTXt"]), ImageSpec(encode=Encoding.RECEIVED))
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.CORRUPT


@pytest.mark.parametrize("tenths", range(1, 10))
def test_a_cut_off_png_is_truncated(tenths: int) -> None:
    """This also holds if it has such a text: the next request may bring the missing part."""
    body = png(SAMPLES, 8, 2, TEXTS["zTXt"])
    outcome = transcode(body[: len(body) * tenths // 10], CORRECT)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.TRUNCATED


def test_an_unsupported_variant_is_corrupt() -> None:
    """A JPEG of 12 bits, one of two components, a BMP of 5 bits: another request brings the same file."""
    jpeg, bmp = saved(paint((20, 15), 1), "JPEG"), saved(paint((20, 15), 1), "BMP")
    frame = jpeg.index(b"\xff\xc0")
    for body in (
        jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :],
        jpeg[: frame + 9] + b"\x02" + jpeg[frame + 10 :],
        bmp[:28] + b"\x05\0" + bmp[30:],
    ):
        outcome = transcode(body, RECIPE)
        assert isinstance(outcome, Failure)
        assert outcome.kind is FailureKind.CORRUPT, outcome
