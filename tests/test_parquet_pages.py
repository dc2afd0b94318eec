"""Headers of the pages of a parquet file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datafetch.datasets.readers import ColumnType, ParquetFile
from datafetch.datasets.readers.parquet_pages import DamagedPageError, Page, read_pages
from datafetch.errors import ManifestError

TEXTS = [None, *(f"text {number % 700}" for number in range(5_000))]


def pages_of(path: Path) -> list[Page]:
    """Return the pages of the first column of a file's first row group."""
    chunk = pq.read_metadata(path).row_group(0).column(0)
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    with path.open("rb") as file:
        return list(read_pages(file, start, chunk.total_compressed_size))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize("encoding", [None, "PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_all_values_are_in_pages(tmp_path: Path, version: str, compression: str, encoding: str | None) -> None:
    """For both page versions and all encodings, the sizes add up to those of the footer."""
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"text": TEXTS}),
        path,
        compression=compression,
        data_page_version=version,
        data_page_size=2_000,
        write_batch_size=100,
        write_page_index=True,
        write_page_checksum=True,
        use_dictionary=encoding is None,
        column_encoding=None if encoding is None else {"text": encoding},
    )
    pages = pages_of(path)
    assert sum(page.values for page in pages) == len(TEXTS)
    assert (
        sum(page.size_bytes for page in pages) < pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size
    )
    assert all(page.shares_prefixes == (encoding == "DELTA_BYTE_ARRAY") for page in pages)
    assert any(page.is_dictionary_encoded for page in pages) == (encoding is None)
    assert len(pages) > 3


def varint(value: int) -> bytes:
    """Encode a number as Thrift does."""
    value = value << 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_a_page_that_claims_more_than_the_footer_is_refused(tmp_path: Path) -> None:
    """Arrow relies on the page header, and would allocate two gigabytes."""
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a" * 2_000_000] * 3}), path, compression="zstd", use_dictionary=False)
    content = path.read_bytes()
    size = pages_of(path)[0].size_bytes
    honest, locked_output = b"\x15" + varint(size), b"\x15" + varint((1 << 27) - 1)
    assert content.count(honest) == 1
    assert len(honest) == len(locked_output)
    path.write_bytes(content.replace(honest, locked_output))
    file = ParquetFile(path, {"text": ColumnType.STRING})
    with pytest.raises(ManifestError, match=r"x\.parquet: column text has a page of 134,217,727 bytes"):
        list(file.batches(["text"]))


@example(b"\x01\x00(\x80\x80\x80\x80\x80\x80\x04")  # a text of 2**44 bytes
@given(st.binary(max_size=60))
def test_garbage_is_reported_as_damaged(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Any bytes in place of a page give pages or the error for damaged ones."""
    path = tmp_path_factory.mktemp("pages") / "x"
    path.write_bytes(content)
    with path.open("rb") as file:
        try:
            pages = list(read_pages(file, 0, len(content)))
        except DamagedPageError:
            return
    assert all(page.size_bytes >= 0 for page in pages)


@pytest.mark.parametrize("field", [b"\x11", b"\x1c\x11\x00", b"\x19\x3c\x11\x00\x11\x00\x11\x00"])
def test_a_header_with_endless_fields_is_refused(field: bytes, tmp_path: Path) -> None:
    """The memory for any struct or list of a header does not grow with the file."""
    path = tmp_path / "x"
    path.write_bytes(field * 100_000)
    with path.open("rb") as file, pytest.raises(DamagedPageError, match="too many fields"):
        list(read_pages(file, 0, len(field) * 100_000))


def test_a_header_with_endless_nesting_is_refused(tmp_path: Path) -> None:
    """Nesting of any depth is refused in the same way, without exhausting the stack."""
    path = tmp_path / "x"
    path.write_bytes(b"\x1c" * 100_000)
    with path.open("rb") as file, pytest.raises(DamagedPageError, match="nested too deeply"):
        list(read_pages(file, 0, 100_000))
