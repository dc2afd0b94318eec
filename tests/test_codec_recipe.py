"""The recipe's pixels give the same JPEG as the recipe's snippet, byte for byte."""

import hashlib
from io import BytesIO

import pytest
from bodies import recipe, saved
from kinds import KINDS
from PIL import Image

from datafetch.demo.pictures import paint
from datafetch.model.outcome import Encoded, Failure
from datafetch.transcode.codec import supported_formats, transcode
from datafetch.transcode.spec import ImageSpec

# One pixel, one row, one column, odd and wide sizes, and sizes at and around the limit below.
SIZES_PX = [(1, 1), (1, 53), (53, 1), (7, 3), (24, 24), (25, 25), (25, 24), (24, 25), (61, 47), (90, 31), (48, 145)]
LIMIT_PX = 24
CUT_SIZE_PX = (61, 47)

pytestmark = [
    pytest.mark.simd,
    pytest.mark.usefixtures("_pillow_as_in_workers"),
    pytest.mark.filterwarnings("ignore"),  # Pillow's warnings about odd files, which forkserver.py silences as well
]


def test_there_are_more_than_a_thousand_images() -> None:
    """The next test covers this many combinations of kind and size."""
    assert len(KINDS) * len(SIZES_PX) > 1000


@pytest.mark.matrix
@pytest.mark.parametrize("kind", KINDS)
def test_the_recipe_byte_for_byte(kind: str) -> None:
    """For every kind of file and every size, the JPEG equals that of the recipe's snippet with the same Pillow."""
    for seed, size_px in enumerate(SIZES_PX):
        body = KINDS[kind](paint(size_px, seed))
        for limit_px in (None, LIMIT_PX):
            outcome = transcode(body, ImageSpec(short_side_px=limit_px))
            assert isinstance(outcome, Encoded), (size_px, outcome)
            assert outcome.jpeg == recipe(body, limit_px), size_px
            assert outcome.source_format == kind.split(maxsplit=1)[0]
            assert outcome.sha256 == hashlib.sha256(body).hexdigest()
            assert not outcome.is_original
            with Image.open(BytesIO(outcome.jpeg)) as written:
                assert written.size == (outcome.width_px, outcome.height_px)


@pytest.mark.matrix
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_off_image_fails_exactly_if_the_snippet_raises(kind: str) -> None:
    """Cut off at any tenth, an image fails if the snippet raises, and otherwise gives the snippet's JPEG."""
    body = KINDS[kind](paint(CUT_SIZE_PX, 5))
    for tenths in range(10):
        part = body[: len(body) * tenths // 10]
        try:
            expected = recipe(part, LIMIT_PX)
        except Exception:  # noqa: BLE001 - the snippet raises anything
            expected = b""
        outcome = transcode(part, ImageSpec(short_side_px=LIMIT_PX))
        assert isinstance(outcome, Encoded if expected else Failure), (tenths, outcome)
        assert not expected or (isinstance(outcome, Encoded) and outcome.jpeg == expected)


MODES = {
    "JPEG": ["RGB", "L", "CMYK"],
    "PNG": ["RGBA", "P"],
    "WEBP": ["RGB"],
    "GIF": ["P"],
    "TIFF": ["RGB"],
    "AVIF": ["RGB"],
}


@pytest.mark.rotating
@pytest.mark.parametrize("size_px", [(337, 336), (336, 336), (337, 337), (401, 1203), (1000, 353), (1, 700)])
@pytest.mark.parametrize(
    ("name", "mode"), [(name, mode) for name in supported_formats() for mode in MODES.get(name, [])]
)
def test_vilas_resize_rule_at_its_own_size(name: str, mode: str, size_px: tuple[int, int]) -> None:
    """Around 336 pixels and well beyond, sizes are truncated as in the snippet."""
    body = saved(paint(size_px, 3).convert(mode), name)
    outcome = transcode(body, ImageSpec(short_side_px=336))
    assert isinstance(outcome, Encoded)
    assert outcome.jpeg == recipe(body, 336)
