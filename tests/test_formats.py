"""What every output format must do, and what the trainer's loader reads."""

import pickle
import pickletools
import tracemalloc
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datafetch.datasets.payload import pack
from datafetch.errors import ManifestError, ResourceError
from datafetch.model.kinds import Payload
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import Encoded, Failure, FailureKind
from datafetch.model.sample import Sample
from datafetch.output.formats import (
    FrameOffsets,
    PickleShardWriter,
    decode_row,
    encode_row,
    frame_sizes,
    read_count,
    read_frames,
)
from datafetch.output.formats.pickle_form import Piece, row_frame
from datafetch.output.formats.pickle_rows import stream_frames
from datafetch.output.row import OutputRow, placeholder
from datafetch.store.spool_format import ImageResult

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(["id", "text", "image", "image_info"]), VALUES), max_size=12)


def write(folder: Path, rows: list[dict[str, object]]) -> tuple[Path, Path]:
    """Write rows as a pickle shard."""
    with closing(PickleShardWriter(folder, "part-00000")) as writer:
        for row in rows:
            writer.copy_row((encode_row(row),))
        writer.finish()
    return folder / "part-00000.pkl", folder / "part-00000.count"


@pytest.mark.rotating
@given(rows=ROWS)
def test_a_shard_is_the_pickled_list_of_its_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    """``pickle.load`` returns exactly the rows, although they were never together in memory."""
    data, count = write(tmp_path_factory.mktemp("writer"), rows)
    assert pickle.loads(data.read_bytes()) == rows
    assert count.read_text() == str(len(rows))


@pytest.mark.parametrize("rows", [0, 1, 999, 1000, 1001, 2500])
def test_rows_are_appended_in_batches(tmp_path: Path, rows: int) -> None:
    """No batch of the stream, however the rows fall into them, loses or repeats a row."""
    expected = [{"id": number, "text": f"text {number}", "same": "same"} for number in range(rows)]
    data, count = write(tmp_path, list(expected))
    assert pickle.loads(data.read_bytes()) == expected
    assert int(count.read_text().strip()) == rows
    opcodes = [opcode.name for opcode, _, _ in pickletools.genops(data.read_bytes())]
    assert opcodes.count("APPENDS") == -(-rows // 1000)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    """A shard written again is the same file."""
    rows: list[dict[str, object]] = [{"id": number, "image": "…" * number} for number in range(50)]
    first = [path.read_bytes() for path in write(tmp_path, rows)]
    assert [path.read_bytes() for path in write(tmp_path, rows)] == first


def test_an_unfinished_writer_can_be_closed(tmp_path: Path) -> None:
    """An unfinished shard can be closed, even twice."""
    writer = PickleShardWriter(tmp_path, "part-00000")
    writer.copy_row((encode_row({"id": 1}),))
    writer.close()
    writer.close()


@pytest.mark.rotating
@given(rows=ROWS)
def test_rows_come_back_one_at_a_time(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]) -> None:
    """A shard's frames hold its rows, their sizes are known without reading them, and they are what a writer writes."""
    data, count = write(tmp_path_factory.mktemp("writer"), rows)
    frames = list(read_frames(data))
    assert [decode_row(frame) for frame in frames] == rows
    assert frames == [encode_row(row) for row in rows]
    assert list(frame_sizes(data)) == [len(frame) for frame in frames]
    assert read_count(count) == len(rows)


@pytest.mark.parametrize("rows", [1, 999, 1000, 1001, 2000, 2001])
def test_a_shard_can_be_written_in_any_order(tmp_path: Path, rows: int) -> None:
    """Frames at these offsets, with the pieces between them, are the same file."""
    data, _ = write(tmp_path, [{"id": number, "text": "x" * (number % 7)} for number in range(rows)])
    frames = list(read_frames(data))
    at = FrameOffsets(np.array([len(frame) for frame in frames], np.int64))
    content = bytearray(at.total_bytes)
    pieces = [Piece(int(offset), frame) for offset, frame in zip(at.offsets, frames, strict=True)]
    for piece in [*reversed(pieces), *at.pieces()]:
        content[piece.offset : piece.offset + len(piece.content)] = piece.content
    assert bytes(content) == data.read_bytes()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_third_party_pickles_are_read(tmp_path: Path, protocol: int) -> None:
    """Lists of any pickle protocol are read, also with NumPy numbers."""
    rows = [{"text": "同じ", "image": "abc", "clip_sim": np.float32(0.5)}, {"text": "同じ", "image": "def"}]
    path = tmp_path / "theirs.pkl"
    path.write_bytes(pickle.dumps(rows, protocol))
    frames = list(read_frames(path))
    assert [decode_row(frame) for frame in frames] == rows
    assert list(frame_sizes(path)) == [len(frame) for frame in frames]


def test_a_pickle_that_calls_something_is_refused(tmp_path: Path) -> None:
    """Reading rows executes no code, neither from a whole file nor from a frame."""
    trap = tmp_path / "sprung"
    attack = b"cposix\nmkdir\n" + pickle.dumps((str(trap),), 2)[2:-1] + b"R"
    path = tmp_path / "hostile.pkl"
    path.write_bytes(b"\x80\x04](" + attack + b"e.")
    with pytest.raises(ManifestError, match=r"posix\.mkdir"):
        list(read_frames(path))
    path.write_bytes(b"\x80\x04](\x95" + len(attack).to_bytes(8, "little") + attack + b"e.")
    (frame,) = read_frames(path)
    with pytest.raises(ValueError, match=r"posix\.mkdir"):
        decode_row(frame)
    assert not trap.exists()


def _laughing() -> list[Any]:
    """Return a row of a hundred objects that is written as a hundred million."""
    laughs: list[Any] = ["ha"]
    for _ in range(8):
        laughs = [laughs] * 10
    return [{"text": laughs}]


def _endless() -> list[Any]:
    row: dict[str, Any] = {}
    row["text"] = [row]
    return [row]


def _deep() -> list[Any]:
    deep: list[Any] = []
    for _ in range(400):
        deep = [deep]
    return [{"text": deep}]


@pytest.mark.parametrize("make", [_laughing, _endless])
def test_rows_that_would_never_end_are_refused(
    tmp_path: Path, make: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared values are written once per reference, but no row may become much larger than its file."""
    monkeypatch.setattr("datafetch.output.formats.pickle_rows._SPARE_ROW_BYTES", 100_000)
    path = tmp_path / "theirs.pkl"
    path.write_bytes(pickle.dumps(make()))
    for read in (read_frames, frame_sizes):
        tracemalloc.start()
        with pytest.raises(ManifestError, match=r"theirs\.pkl: has rows that are not plain values"):
            list(read(path))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()


def test_a_moderately_enlarged_row_is_accepted(tmp_path: Path) -> None:
    """A row that is somewhat larger than its file, and deeply nested, is accepted."""
    image = "x" * 200_000
    rows = [{"image_info": [image] * 5}, *_deep()]
    path = tmp_path / "theirs.pkl"
    path.write_bytes(pickle.dumps(rows))
    assert [decode_row(frame) for frame in read_frames(path)] == rows


MEGABYTES_OF_MEMO = (4 << 20).to_bytes(4, "little")  # an index, for which the unpickler would make room
BOMBS = [
    b"Nr" + MEGABYTES_OF_MEMO,
    b"Np4194304\n",
    b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x09\0\0\0S64000000\x85R\x85R",
    b"c_codecs\nencode\nX\x01\0\0\0a" + b"X\x03\0\0\0hex\x86R",
]


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_pickle_gets_no_more_memory_than_it_has_bytes(tmp_path: Path, bomb: bytes) -> None:
    """A few bytes that claim a large size are refused before memory is allocated, in whole files and in frames."""
    value = b"}X\x04\0\0\0text" + bomb + b"s"
    path = tmp_path / "hostile.pkl"
    path.write_bytes(b"\x80\x04](" + value + b"e.")
    tracemalloc.start()
    with pytest.raises(ManifestError):
        list(read_frames(path))
    with pytest.raises(ValueError, match="not a pickle"):
        decode_row(b"\x95" + len(value).to_bytes(8, "little") + value)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@given(cut=st.integers(0, 400), data=st.data())
def test_a_damaged_shard_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int, data: st.DataObject) -> None:
    """A shard that is cut anywhere is refused; if any byte changes, it is read or refused."""
    rows = [{"id": number, "text": "text" * number} for number in range(8)]
    path, _ = write(tmp_path_factory.mktemp("writer"), list(rows))
    content = path.read_bytes()
    path.write_bytes(content[: min(cut, len(content) - 1)])
    with pytest.raises(ManifestError):
        list(read_frames(path))
    offset = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(
        content[:offset] + bytes([content[offset] ^ data.draw(st.integers(1, 255))]) + content[offset + 1 :]
    )
    with suppress(ManifestError, ValueError):
        for frame in read_frames(path):
            decode_row(frame)


def images(jpegs: list[bytes]) -> list[ImageResult]:
    """Return images of one sample, all of which arrived."""
    sample = Sample(0, "0", tuple("http://example.org/" for _ in jpegs), {})
    encoded = [Encoded(jpeg, 1, 1, "JPEG") for jpeg in jpegs]
    return [
        ImageResult(LedgerLine.of(sample, number, Failure(FailureKind.TIMEOUT), one), one.jpeg)
        for number, one in enumerate(encoded)
    ]


@given(
    metadata=st.dictionaries(st.text(), VALUES, max_size=3),
    jpegs=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5),
    payload=st.sampled_from(Payload),
)
def test_a_row_in_pieces_is_the_row(metadata: dict[str, object], jpegs: list[bytes], payload: Payload) -> None:
    """A row written with one image at a time has the same bytes as when it is pickled as a whole."""

    def row(contents: list[bytes]) -> dict[str, object]:
        packed = [pack(content, payload) for content in contents]
        return {**metadata, "image": packed[0], "image_info": [{"image": one, "n": 1} for one in packed]}

    loaded = OutputRow(row([placeholder(number) for number in range(len(jpegs))]), images(jpegs)).load()
    assert loaded == row(jpegs)
    pieces = list(row_frame(OutputRow(row([placeholder(number) for number in range(len(jpegs))]), images(jpegs))))
    assert b"".join(pieces) == encode_row(row(jpegs))
    assert pieces[0] == b"".join(pieces)[:9]


@pytest.mark.parametrize("size", [1, 2, 3, 254, 255, 256, 257, 70_000])
def test_an_image_of_any_length_has_its_opcode(size: int) -> None:
    """Bytes have one opcode up to 255 of them and another from there on, and so has the row in pieces."""
    jpeg = bytes(size)
    for payload in Payload:
        frame = row_frame(OutputRow({"image": pack(placeholder(0), payload)}, images([jpeg])))
        assert b"".join(frame) == encode_row({"image": pack(jpeg, payload)})


@pytest.mark.rotating
@given(rows=ROWS.filter(bool))
def test_rows_are_streamed_as_they_stand(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    """Streamed frames are the frames, also if some of them are skipped."""
    data, _ = write(tmp_path_factory.mktemp("writer"), rows)
    frames = list(read_frames(data))
    assert [b"".join(frame) for frame in stream_frames(data)] == frames
    every_other = [b"".join(frame) for number, frame in enumerate(stream_frames(data)) if number % 2]
    assert every_other == frames[1::2]


def test_a_shard_that_differs_from_what_was_written_is_noticed(tmp_path: Path) -> None:
    """If any byte changes on the way to the disk, the check fails."""
    writer = PickleShardWriter(tmp_path, "part-00000")
    with closing(writer):
        writer.copy_row((encode_row({"id": 1, "image": "A" * 100}),))
        writer.finish()
        writer.check(1)
        path = tmp_path / "part-00000.pkl"
        content = bytearray(path.read_bytes())
        content[60] ^= 1
        path.write_bytes(content)
        with pytest.raises(ResourceError, match="check the disk"):
            writer.check(1)


def test_a_row_of_impossible_size_is_refused(tmp_path: Path) -> None:
    """A sparse file that claims a row of terabytes is refused without reading it."""
    path = tmp_path / "hostile.pkl"
    with path.open("wb") as file:
        file.write(b"\x80\x04](\x95" + (1 << 40).to_bytes(8, "little"))
        file.truncate(2 << 40)
    for read in (read_frames, frame_sizes):
        with pytest.raises(ManifestError, match="the limit is"):
            list(read(path))


@pytest.mark.parametrize("text", ["", "x", "9" * 101, " " * 1000 + "7"])
def test_a_count_is_a_short_number(tmp_path: Path, text: str) -> None:
    """A count that is not a number is refused, and a long file is not read for it."""
    path = tmp_path / "a.count"
    path.write_text(text)
    with pytest.raises(ManifestError, match="is not a number"):
        read_count(path)
