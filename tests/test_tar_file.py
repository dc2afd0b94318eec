"""Tar files have the bytes that ``tarfile`` would write, and are read without trusting them."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datafetch.output.formats.checksummed_file import ChecksummedFile
from datafetch.output.formats.tar_file import MTIME_S, TarMember, TarWriter, member_header, read_members

MEMBERS = [("a.jpg", b"x" * 1000), ("a.json", b"{}"), ("猫.txt", b""), ("b" * 130 + ".jpg", b"y" * 512)]


def reference_header(name: str, size_bytes: int) -> bytes:
    """Return the header that the standard library writes."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size_bytes, MTIME_S, 0o644
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8")


def write(path: Path) -> bytes:
    """Write all members, and return the bytes of the file."""
    with closing(ChecksummedFile(path)) as file:
        tar = TarWriter(file)
        for name, content in MEMBERS:
            tar.write(name, content)
        tar.finish()
        file.finish()
    return path.read_bytes()


def read(path: Path) -> list[TarMember]:
    """Read all members."""
    with path.open("rb") as file:
        return list(read_members(file))


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=150),
    st.integers(0, 2**36),
)
def test_headers_are_those_of_tarfile(name: str, size_bytes: int) -> None:
    """Whatever the name and the size are."""
    assert member_header(name, size_bytes) == reference_header(name, size_bytes)


def test_a_file_is_that_of_tarfile(tmp_path: Path) -> None:
    """With the same end, so that every tool reads it."""
    written = write(tmp_path / "x.tar")
    reference = io.BytesIO()
    with tarfile.open(fileobj=reference, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in MEMBERS:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), MTIME_S
            tar.addfile(member, io.BytesIO(content))
    assert written == reference.getvalue()
    tar_command = shutil.which("tar")
    assert tar_command is not None
    listed = subprocess.run([tar_command, "--list", "--file", tmp_path / "x.tar"], check=True, capture_output=True)
    assert not listed.stderr


def test_members_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Also those with a name that is long or not ASCII, and those of tarfile's other forms."""
    path = tmp_path / "x.tar"
    write(path)
    members = read(path)
    with path.open("rb") as file:
        assert [(member.name, member.read(file)) for member in members] == MEMBERS
    assert members[0].start == 0
    assert [member.stop for member in members[:-1]] == [member.start for member in members[1:]]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(__file__, "c" * 90 + "/" + "d" * 90)
    assert [member.name for member in read(path)] == ["c" * 90 + "/" + "d" * 90]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut in a content": lambda content: content[:600],
    "cut in a header": lambda content: content[:1800],
    "without its end": lambda content: content[: len(content) // 10240 * 10240 - 10240 + 2048],
    "a changed header": lambda content: b"z" + content[1:],
    "a checksum that is no number": lambda content: content[:148] + b"9" * 6 + content[154:],
    "a size with a sign": lambda content: _sized(b"-0000001000") + content,
    "a size with an underscore": lambda content: _sized(b"0000001_000") + content,
    "something else": lambda _: b"PK" * 1000,
    "a link": lambda content: _link() + content,
    "a large header": lambda content: _extended(b"path=" + b"x" * 100_000) + content,
    "a header without records": lambda content: _extended(b"path") + content,
    "a header with a wrong length": lambda content: _extended(b"99 path=x\n") + content,
    "a header with a number that is none": lambda content: _extended(b"13 size=9a9a\n") + content,
    "a header with a negative number": lambda content: _extended(b"12 size=-512\n") + content,
    "a header of no text": lambda content: _extended(b"11 path=\xff\xff\n") + content,
}


def _link() -> bytes:
    member = tarfile.TarInfo("a.jpg")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member.tobuf()


def _sized(size: bytes) -> bytes:
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf())
    header[124:136] = size + b"\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _extended(records: bytes) -> bytes:
    member = tarfile.TarInfo("././@PaxHeader")
    member.type, member.size = tarfile.XHDTYPE, len(records)
    return member.tobuf() + records + bytes(-len(records) % 512)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """Whatever it is, the reader says so, and takes no memory for what a header claims."""
    path = tmp_path / "x.tar"
    path.write_bytes(damage(write(path)))
    with pytest.raises(ValueError, match=r"is damaged|is cut short|something else|has a header of|a name that is not"):
        read(path)


@given(st.binary(max_size=3000), st.integers(0, 5000))
def test_rubbish_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, rubbish: bytes, offset: int) -> None:
    """Nothing but ``ValueError`` comes of any bytes."""
    path = tmp_path_factory.getbasetemp() / "rubbish.tar"
    content = write(path)
    path.write_bytes(content[:offset] + rubbish + content[offset + len(rubbish) :])
    try:
        read(path)
    except ValueError:
        return
