"""JPEGs that are kept byte for byte with --encode original, and those that are encoded again."""

from dataclasses import replace

import pytest
from bodies import recipe, saved, with_segment
from kinds import KINDS
from PIL import features

from datafetch.demo.pictures import paint
from datafetch.model.outcome import Encoded, Failure, FailureKind
from datafetch.transcode.codec import transcode
from datafetch.transcode.spec import Encoding, ImageSpec, Pixels

ORIGINAL = ImageSpec(short_side_px=48, encode=Encoding.ORIGINAL)
CORRECT = replace(ORIGINAL, pixels=Pixels.CORRECT)
SIZE_PX = (67, 48)
JPEGS = [kind for kind in KINDS if kind.startswith("JPEG")]
OF_FOUR_COMPONENTS = {kind for kind in JPEGS if "CMYK" in kind or "YCCK" in kind}
TO_BE_CORRECTED = {kind for kind in JPEGS if "turned" in kind and kind != "JPEG turned 1"}
if features.check("littlecms2"):
    TO_BE_CORRECTED |= {"JPEG P3", "JPEG grey of gamma 1"}

pytestmark = [
    pytest.mark.simd,
    pytest.mark.usefixtures("_pillow_as_in_workers"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("spec", [ORIGINAL, CORRECT], ids=["recipe", "correct"])
def test_an_intact_jpeg_is_kept_byte_for_byte(kind: str, spec: ImageSpec) -> None:
    """JPEGs in grey or RGB are kept, whatever their orientation and profile, unless their pixels must be corrected."""
    body = KINDS[kind](paint(SIZE_PX, 3))
    outcome = transcode(body, spec)
    assert isinstance(outcome, Encoded)
    kept = kind not in OF_FOUR_COMPONENTS | (TO_BE_CORRECTED if spec is CORRECT else set())
    assert outcome.is_original == kept
    assert (outcome.jpeg == body) == kept
    if kept:
        assert (outcome.width_px, outcome.height_px, outcome.source_format) == (*SIZE_PX, "JPEG")
    else:
        assert outcome == transcode(body, replace(spec, encode=Encoding.RECIPE))


@pytest.mark.matrix
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("JPEG")])
def test_every_other_format_is_encoded_again(kind: str) -> None:
    """No other format is kept, not even MPO, which consists of two JPEGs."""
    body = KINDS[kind](paint(SIZE_PX, 3))
    outcome = transcode(body, ORIGINAL)
    assert isinstance(outcome, Encoded)
    assert not outcome.is_original
    assert outcome == transcode(body, replace(ORIGINAL, encode=Encoding.RECIPE))


@pytest.mark.parametrize(
    ("size_px", "kept"), [((48, 48), True), ((30, 300), True), ((49, 49), False), ((300, 49), False)]
)
def test_a_larger_jpeg_is_shrunk(size_px: tuple[int, int], kept: bool) -> None:
    """A file is kept only if its shorter side does not exceed the requested one."""
    body = saved(paint(size_px, 3), "JPEG")
    outcome = transcode(body, ORIGINAL)
    assert isinstance(outcome, Encoded)
    assert outcome.is_original == kept
    assert outcome == transcode(body, replace(ORIGINAL, encode=Encoding.RECIPE)) or kept


@pytest.mark.parametrize("size_px", [(1, 1), (1, 40), (7, 9), (8, 8), (400, 300)])
def test_without_a_short_side_every_size_is_kept(size_px: tuple[int, int]) -> None:
    """This includes a JPEG smaller than a block, and a large one."""
    body = saved(paint(size_px, 3), "JPEG")
    outcome = transcode(body, ImageSpec(encode=Encoding.ORIGINAL))
    assert isinstance(outcome, Encoded)
    assert (outcome.jpeg, outcome.width_px, outcome.height_px) == (body, *size_px)


@pytest.mark.parametrize("kind", [kind for kind in JPEGS if "more after" not in kind])
def test_a_cut_off_jpeg_is_not_kept(kind: str) -> None:
    """Cut off at any tenth, or by one or two bytes, it gives the same failure as with ``--encode recipe``."""
    body = KINDS[kind](paint(SIZE_PX, 5))
    for length in [*(len(body) * tenths // 10 for tenths in range(1, 10)), len(body) - 2, len(body) - 1]:
        outcome = transcode(body[:length], ORIGINAL)
        assert isinstance(outcome, Failure), length
        assert outcome.kind is FailureKind.TRUNCATED
        assert outcome == transcode(body[:length], replace(ORIGINAL, encode=Encoding.RECIPE))


@pytest.mark.parametrize("spec", [ORIGINAL, CORRECT], ids=["recipe", "correct"])
def test_a_damaged_huffman_table_is_detected_by_decoding(spec: ImageSpec) -> None:
    """The header and the end marker are intact, so only reading the scan reveals the damage."""
    body = saved(paint(SIZE_PX, 3), "JPEG")
    counts = body.index(b"\xff\xc4") + 5
    outcome = transcode(body[:counts] + b"\xff" * 16 + body[counts + 16 :], spec)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.TRUNCATED


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(
    "tail", [b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 40, b"\xff\xda", b"\xff\xd9\xff\xda\0", b"\xff" * 99, b"\0"]
)
def test_data_behind_the_end_is_kept(tail: bytes, progressive: bool) -> None:
    """The file is kept as received with its tail, such as the video of a motion photo, whatever bytes that has."""
    body = saved(paint(SIZE_PX, 3), "JPEG", progressive=progressive) + tail
    outcome = transcode(body, ORIGINAL)
    assert isinstance(outcome, Encoded)
    assert outcome.is_original
    assert outcome.jpeg == body


def test_an_end_marker_within_a_segment_does_not_count() -> None:
    """A thumbnail in EXIF is a complete JPEG, and data behind a cut-off image does not complete it."""
    thumbnail = b"Exif\0\0" + saved(paint((16, 12), 3), "JPEG")
    body = with_segment(saved(paint(SIZE_PX, 3), "JPEG"), 0xE1, thumbnail)
    kept = transcode(body, ORIGINAL)
    assert isinstance(kept, Encoded)
    assert kept.is_original
    for tail in (b"", b"\0\0\0\x18ftypmp42", b"\xff\xda" + bytes(9)):
        outcome = transcode(body[:-2] + tail, ORIGINAL)
        assert not isinstance(outcome, Encoded) or not outcome.is_original


def test_a_long_run_of_fill_bytes_is_read_once() -> None:
    """Searching from each of millions of 0xFF bytes again, in a run that no marker ends, would take hours."""
    body = saved(paint(SIZE_PX, 3), "JPEG")[:-2] + b"\xff" * (4 << 20)
    assert transcode(body, ORIGINAL) == transcode(body, replace(ORIGINAL, encode=Encoding.RECIPE))


def test_half_a_jpeg_with_an_end_marker_counts_as_intact() -> None:
    """The snippet accepts it, too: libjpeg fills in the rest, and Pillow hides its warning (docs/fidelity.md)."""
    whole = saved(paint((320, 240), 3), "JPEG")
    body = whole[: len(whole) // 2] + b"\xff\xd9"
    kept = transcode(body, ImageSpec(encode=Encoding.ORIGINAL))
    again = transcode(body, ImageSpec())
    assert isinstance(kept, Encoded)
    assert isinstance(again, Encoded)
    assert (kept.jpeg, again.jpeg) == (body, recipe(body, None))


@pytest.mark.parametrize("size_px", [(1, 8), (16, 16), (320, 240), (1500, 1000)])
@pytest.mark.parametrize("progressive", [False, True])
def test_missing_bytes_are_detected_at_every_size(size_px: tuple[int, int], progressive: bool) -> None:
    """A JPEG without its last bytes is not kept, and fails where it fails with ``--encode recipe``."""
    body = saved(paint(size_px, 5), "JPEG", progressive=progressive)
    spec = ImageSpec(encode=Encoding.ORIGINAL)
    assert isinstance(transcode(body, spec), Encoded)
    for missing in (1, 2, 3, len(body) // 10, len(body) // 2):
        outcome = transcode(body[:-missing], spec)
        assert outcome == transcode(body[:-missing], ImageSpec()), missing
        assert not isinstance(outcome, Encoded) or not outcome.is_original
