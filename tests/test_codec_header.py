"""Sizes that a body claims are checked before it is opened."""

import struct

import pytest
from bodies import Tags, exif, saved, tiff, with_segment
from kinds import KINDS
from PIL import Image

from datafetch.demo.pictures import paint
from datafetch.model.outcome import Encoded, Failure, FailureKind, Outcome
from datafetch.transcode.codec import supported_formats, transcode
from datafetch.transcode.image.size_claims import has_oversized_tags, tiff_tile_pixels
from datafetch.transcode.spec import Encoding, ImageSpec

PLAIN = ImageSpec()
RECEIVED = ImageSpec(encode=Encoding.RECEIVED)
JPEG = saved(paint((20, 15), 1), "JPEG")
SHARED_BYTES = 20_000
MANY = 400  # tags that refer to them: 8 MB in a file of 25 KB

pytestmark = [
    pytest.mark.simd,
    pytest.mark.usefixtures("_pillow_as_in_workers"),
    pytest.mark.filterwarnings("ignore"),
]


def tags(count: int, order: str = "<", *, big: bool = False, rational: bool = False) -> bytes:
    """Create a TIFF that consists of one directory, whose tags all refer to the same bytes."""
    mark = b"II" if order == "<" else b"MM"
    head = struct.pack(f"{order}HHHQQ", 43, 8, 0, 16, count) if big else struct.pack(f"{order}HIH", 42, 8, count)
    row = f"{order}HHQQ" if big else f"{order}HHII"
    kind, values = (5, SHARED_BYTES // 8) if rational else (7, SHARED_BYTES)
    rows = b"".join(struct.pack(row, 40_000 + number, kind, values, 0) for number in range(count))
    return mark + head + rows + bytes(SHARED_BYTES)


def in_exif(file: bytes) -> bytes:
    """Create a JPEG whose EXIF, this TIFF, is spread over two segments."""
    rear = with_segment(JPEG, 0xE1, b"Exif\0\0" + file[9_000:])
    return with_segment(rear, 0xE1, b"Exif\0\0" + file[:9_000])


def with_subdirectory(file: bytes, tag: int) -> bytes:
    """Create a TIFF whose first directory refers to that of another one."""
    first = struct.pack("<HHHII", 1, tag, 4, 1, 26) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + first + file[8:]


def assert_refused(outcome: Outcome) -> None:
    """Check that the outcome is a refusal by datafetch's own rule, and not by Pillow."""
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.CORRUPT
    assert outcome.detail == "its metadata tags refer to more bytes than the file has"


@pytest.mark.parametrize(
    "body",
    [
        tags(MANY),
        tags(MANY, ">"),
        tags(MANY, big=True),
        tags(MANY, rational=True),
        with_subdirectory(tags(MANY), 34_665),
        in_exif(tags(MANY)),
        in_exif(tags(MANY, ">")),
        with_segment(JPEG, 0xE1, b"Exif\0\0" * 3 + tags(MANY)),
        with_segment(JPEG, 0xE2, b"MPF\0" + tags(MANY)),
        with_segment(with_segment(JPEG, 0xE2, b"MPF\0" + tags(MANY)), 0xE1, exif(1)),
        JPEG[:2] + b"\xff\xff\0\xff\xd0" + with_segment(JPEG, 0xE2, b"MPF\0" + tags(MANY))[2:],
    ],
)
def test_tags_that_share_their_bytes_are_refused_before_they_are_copied(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This covers the first directory of a TIFF and its subdirectories, and the EXIF and MPF of a JPEG."""
    monkeypatch.setattr(Image, "open", None)
    assert_refused(transcode(body, PLAIN))
    assert_refused(transcode(body, RECEIVED))


@pytest.mark.skipif("AVIF" not in supported_formats(), reason="this Pillow reads no AVIF")
def test_oversized_exif_of_an_avif_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow reads it while the file is opened."""
    body = saved(paint((20, 15), 1), "AVIF", speed=10)
    at = body.index(b"mdat") + 4
    monkeypatch.setattr(Image, "open", None)
    assert_refused(transcode(body[:at] + tags(MANY) + body[at:], PLAIN))


@pytest.mark.parametrize("count", [2, 40])
def test_a_few_tags_may_share_their_bytes(count: int) -> None:
    """Up to 1 MiB more than the file has is accepted: careless editors write such files."""
    assert isinstance(transcode(in_exif(tags(count)), PLAIN), Encoded)
    assert not has_oversized_tags(tags(count))


def test_values_beyond_the_end_are_not_counted() -> None:
    """Pillow stops reading tags at a corrupt length, and still reads the image."""
    lies = exif(1)[:-16] + struct.pack("<HHII", 0x0112, 7, 0xFFFFFFFF, 0xFFFFFFF0) + bytes(4)
    assert isinstance(transcode(with_segment(JPEG, 0xE1, lies), PLAIN), Encoded)


@pytest.mark.rotating
def test_no_kind_of_image_has_oversized_tags() -> None:
    """Neither complete nor cut-off files of any kind are refused, and nothing raises."""
    for kind, make in KINDS.items():
        body = make(paint((20, 15), 1))
        for length in (*range(0, min(len(body), 400), 7), len(body)):
            assert not has_oversized_tags(body[:length]), kind
            assert tiff_tile_pixels(body[:length]) in {0, 16 * 16}, kind


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("huge_first", [False, True])
@pytest.mark.parametrize("side", [322, 323])
def test_the_larger_of_two_tile_sizes_counts(order: str, huge_first: bool, side: int) -> None:
    """One of two readers uses the first size, and the other the last."""
    named: Tags = {256: 16, 257: 16, 258: 8, 259: 5, 262: 1, 277: 1, 322: 16, 323: 16}
    body = tiff(bytes(1000), named, order)
    row = struct.pack(f"{order}HHII", side, 4, 1, 16)
    huge = struct.pack(f"{order}HHII", side, 4, 1, 2_000_000_000)
    start = struct.unpack_from(f"{order}I", body, 4)[0]
    count = struct.pack(f"{order}H", len(named) + 3)
    twice = huge + row if huge_first else row + huge
    doubled = body[:start] + count + body[start + 2 :].replace(row, twice)
    outcome = transcode(doubled, PLAIN)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.TOO_MANY_PIXELS
    assert outcome.detail == f"tiles of over {PLAIN.max_pixels:,} pixels"
