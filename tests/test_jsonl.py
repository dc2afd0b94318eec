"""Files of lines, plain or compressed, whole, cut short or hostile."""

import gzip
import io
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datafetch.datasets.readers import MAX_LINE_BYTES, LineFile, stem_of
from datafetch.errors import ManifestError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = "".join(f'{{"n": {number}, "text": "猫"}}\n' for number in range(5000)).encode()


def zipped(content: bytes, *names: str, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip with this content under these names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in names or ("a.jsonl",):
            archive.writestr(name, content)
    return buffer.getvalue()


def checked_zstd(content: bytes) -> bytes:
    """Return a Zstandard frame with a checksum."""
    return zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})


def encrypted(archive: bytes) -> bytes:
    """Return the same zip, marked as encrypted in its directory."""
    flags = archive.index(b"PK\x01\x02") + 8
    return archive[:flags] + b"\x01" + archive[flags + 1 :]


def _of_macos(text: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/", b"")
        archive.writestr("folder/a.jsonl", text)
        archive.writestr("__MACOSX/folder/._a.jsonl", b"\0\1")
    return buffer.getvalue()


PACKS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "gzip in members": lambda text: b"".join(gzip.compress(part) for part in (text[:999], text[999:])),
    "zstd": zstd.compress,
    "zstd in frames": lambda text: b"".join(zstd.compress(part) for part in (text[:999], text[999:])),
    "zstd behind a frame to skip": lambda text: b"\x50\x2a\x4d\x18\x04\0\0\0size" + zstd.compress(text),
    "zip": zipped,
    "zip of macOS": _of_macos,
}
every_pack = pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)


def write(folder: Path, content: bytes) -> Path:
    """Write a file whose name does not reveal its format."""
    (folder / "a.jsonl").write_bytes(content)
    return folder / "a.jsonl"


@every_pack
def test_lines_are_those_of_the_text(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """The content of the file decides, not its name."""
    path = write(tmp_path, pack(TEXT))
    assert list(LineFile(path).lines()) == TEXT.splitlines()
    assert LineFile(path).size_bytes == path.stat().st_size


@every_pack
def test_blank_lines_count_and_ends_do_not_matter(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Line numbers are those that an editor shows. A byte order mark is not part of the first line."""
    path = write(tmp_path, pack(b"\xef\xbb\xbfa\r\n\n\r\nb \n\xef\xbb\xbfc"))
    assert list(LineFile(path).lines()) == [b"a", b"", b"", b"b ", b"\xef\xbb\xbfc"]


@settings(max_examples=50)
@given(st.binary(max_size=300), st.sampled_from(sorted(PACKS)))
def test_any_content_can_be_read(tmp_path_factory: pytest.TempPathFactory, text: bytes, name: str) -> None:
    """Whatever a file contains, its lines joined again give the text."""
    text = b"x" + text.replace(b"\r", b"")  # or a plain text might begin as a compressed one does
    path = write(tmp_path_factory.mktemp("lines"), PACKS[name](text))
    lines = list(LineFile(path).lines())
    assert b"\n".join(lines) == text.removesuffix(b"\n")


@pytest.mark.parametrize("pack", [PACKS["gzip"], PACKS["zstd"], PACKS["zip"]])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_is_cut_short_is_named(tmp_path: Path, pack: Callable[[bytes], bytes], share: float) -> None:
    """A truncated file is an error that names it, and is not read as a shorter file."""
    packed = pack(TEXT)
    path = write(tmp_path, packed[: int(len(packed) * share)])
    with pytest.raises(ManifestError, match=r"cannot read .*a\.jsonl: "):
        list(LineFile(path).lines())


@pytest.mark.parametrize("pack", [PACKS["gzip"], PACKS["zip"]])
def test_a_file_that_is_damaged_is_named(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """A wrong checksum is an error that names the file."""
    packed = bytearray(pack(TEXT))
    packed[len(packed) // 2] ^= 0xFF
    with pytest.raises(ManifestError, match=r"cannot read .*a\.jsonl: "):
        list(LineFile(write(tmp_path, bytes(packed))).lines())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (zipped(b"a\n", "a.jsonl", "b.jsonl"), "holds 2 files; give a zip with one, or unpack it"),
        (zipped(b"", "folder/"), "holds 0 files"),
        (zipped(b"a\n", method=zipfile.ZIP_BZIP2), "uses a compression method that is not supported"),
        (encrypted(zipped(b"a\n")), "is encrypted; unpack it"),
    ],
)
def test_a_zip_without_exactly_one_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    """It is refused before anything in it is unpacked."""
    with pytest.raises(ManifestError, match=reason):
        LineFile(write(tmp_path, content))


@pytest.mark.parametrize(
    "pack", [gzip.compress, checked_zstd, lambda text: zipped(text, "猫.jsonl")], ids=["gzip", "zstd", "zip"]
)
def test_a_damaged_byte_never_gives_other_lines(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """If any byte after the first four is changed, the lines are unchanged, or an error names the file."""
    text = TEXT[:400]
    packed = pack(text)
    refused = 0
    for offset in range(4, len(packed)):
        path = write(tmp_path, packed[:offset] + bytes([packed[offset] ^ 0xFF]) + packed[offset + 1 :])
        try:
            assert list(LineFile(path).lines()) == text.splitlines()
        except ManifestError as error:
            assert str(path) in str(error)  # noqa: PT017 - one of the two must hold, not this one
            refused += 1
    assert refused > len(packed) // 2


@pytest.mark.rotating
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_line_of_the_maximum_length_is_read(tmp_path: Path, end: bytes) -> None:
    """The line end does not count. A line one byte longer is refused."""
    longest = bytes(MAX_LINE_BYTES)
    assert list(LineFile(write(tmp_path, longest + end)).lines()) == [longest]
    with pytest.raises(ManifestError, match="line 1: longer than 67,108,864 bytes"):
        list(LineFile(write(tmp_path, longest + b"x" + end)).lines())


@pytest.mark.rotating
@pytest.mark.parametrize("pack", [PACKS["gzip"], PACKS["zstd"], PACKS["zip"]], ids=["gzip", "zstd", "zip"])
def test_an_endless_line_takes_no_more_memory_than_the_longest_one(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    """A few hundred kilobytes may have a line of any length. What is read of it is held twice for a moment."""
    path = write(tmp_path, pack(b"{}\n" + bytes(3 * MAX_LINE_BYTES)))
    assert path.stat().st_size < 1 << 20
    # Not by the resident set of a new process: that begins at the most that its parent ever had.
    tracemalloc.start()
    try:
        with pytest.raises(ManifestError, match="line 2: longer than 67,108,864 bytes"):
            list(LineFile(path).lines())
        assert tracemalloc.get_traced_memory()[1] < 2.5 * MAX_LINE_BYTES
    finally:
        tracemalloc.stop()


def test_other_content_has_another_fingerprint(tmp_path: Path) -> None:
    """A change of size, beginning or end changes the fingerprint; the same content has the same one."""
    path = write(tmp_path, TEXT)
    before = LineFile(path).fingerprint
    assert LineFile(write(tmp_path, TEXT)).fingerprint == before
    middle = len(TEXT) // 2
    others = [TEXT[:middle] + TEXT[middle + 1 :], b"[" + TEXT[1:], TEXT[:-2] + b"]\n"]
    assert before not in {LineFile(write(tmp_path, other)).fingerprint for other in others}


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The error is the same as for any file that can't be read."""
    with pytest.raises(ManifestError, match=r"cannot read .*nowhere: No such file"):
        LineFile(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.jsonl", "a"),
        ("a.b.jsonl.gz", "a.b"),
        ("docs_shard_3_v3.jsonl.zip", "docs_shard_3_v3"),
        ("a.jsonl.zst", "a"),
        ("a", "a"),
        (".jsonl", ".jsonl"),
    ],
)
def test_a_stem_is_a_name_without_its_suffixes(name: str, stem: str) -> None:
    """Shards are named after stems."""
    assert stem_of(Path(name)) == stem
