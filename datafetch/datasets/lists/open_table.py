"""Recognises the format of a file by its content, and opens it as a table.

A name is only asked where the content leaves it open: a file of lines with one URL each may be a text file, or a CSV
file with one column and no header.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from datafetch.datasets.lists.json_table import JsonTable
from datafetch.datasets.lists.parquet_table import ParquetTable
from datafetch.datasets.lists.record_blocks import FieldSplitter, RecordSplitter, RecordTooLongError
from datafetch.datasets.lists.table import InputFormat, Table
from datafetch.datasets.lists.text_file import EDGE_BYTES, TextFile
from datafetch.datasets.lists.text_table import FieldParser, JsonParser, TextTable, UrlParser
from datafetch.datasets.readers import MAX_LINE_BYTES
from datafetch.datasets.readers.file_kind import describe_non_data
from datafetch.errors import ManifestError, unreadable
from datafetch.model.manifest import RemoteFile
from datafetch.model.regular_file import open_regular
from datafetch.model.untrusted import short_repr

PARQUET_SUFFIX = ".parquet"
_PARQUET_MAGIC = b"PAR1"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_DELIMITERS = (b",", b"\t", b";", b"|")
_TAB = b"\t"
_UNIT_SEPARATOR = b"\x1f"  # no text has it: there is one field a line
_CSV_SUFFIXES = {".csv", ".tsv"}
_MIN_URL_SHARE = 0.9  # of the first lines of a text file; others fail as URLs
_SNIFFED_LINES = 50
_MAX_FIELDS = 1000
_URL_STARTS = (b"http://", b"https://", b"//", b"www.")
_ADVICE = "give the list itself, or its format with --input-format"


def open_table(file: Path | RemoteFile, input_format: InputFormat | None = None) -> Table:
    """Open a file of a list.

    Args:
        file: The file; one on a server is parquet.
        input_format: Its format; None tells it by its content.

    Raises:
        ManifestError: It can't be read, is empty, or not of that format, or of none that is known.
    """
    if not isinstance(file, Path):
        return ParquetTable(file)
    try:
        with open_regular(file) as opened:
            start = opened.read(len(_PARQUET_MAGIC))
    except OSError as error:
        raise unreadable(file, error) from error
    if input_format is InputFormat.PARQUET or (input_format is None and start == _PARQUET_MAGIC):
        return ParquetTable(file)
    text = TextFile(file)
    _refuse_non_text(text)
    found = input_format or _format_of(text)
    try:
        return _open_text(text, found, is_given=input_format is not None)
    except RecordTooLongError as error:
        raise ManifestError(f"{file} has a line of more than {MAX_LINE_BYTES:,} bytes; {_ADVICE}") from error


def _open_text(file: TextFile, found: InputFormat, *, is_given: bool) -> Table:
    match found:
        case InputFormat.TXT:
            return TextTable(file, UrlParser(file), found)
        case InputFormat.JSONL:
            return TextTable(file, JsonParser(file), found)
        case InputFormat.JSON:
            return JsonTable(file)
        case _:
            lines = _first_lines(file)
            is_certain = is_given or not _CSV_SUFFIXES.isdisjoint(_suffixes(file))
            delimiter = _TAB if found is InputFormat.TSV else _delimiter_of(file, is_certain=is_certain)
            is_quoted = found is not InputFormat.TSV or _is_quoted(lines, delimiter)
            header = _header_of(lines[0], delimiter, is_quoted=is_quoted)
            return TextTable(file, FieldParser(file, delimiter, is_quoted=is_quoted, header=header), found)


def _refuse_non_text(file: TextFile) -> None:
    """Check that a file may be a list.

    Raises:
        ManifestError: It is empty, a web page, binary, or text in another encoding.
    """
    if not file.start.strip():
        raise ManifestError(f"{file.path} has no rows: it is empty; leave it out")
    if description := describe_non_data(file.start):
        raise ManifestError(f"{file.path} is no list of URLs: {description}; {_ADVICE}")
    if file.start.startswith(_UTF_16):
        raise ManifestError(f"{file.path} is text in UTF-16; write it as UTF-8 ('iconv -f UTF-16 -t UTF-8')")
    if file.start.startswith(_PARQUET_MAGIC):
        raise ManifestError(f"{file.path} is parquet that is compressed as a whole; unpack it first")
    if b"\0" in file.start:
        shown = short_repr(file.start[:20].decode("latin-1"))
        raise ManifestError(f"{file.path} is no list of URLs: it is binary and begins with {shown}; {_ADVICE}")
    if b"\r" in file.start and b"\n" not in file.start:
        raise ManifestError(f"{file.path} has line ends of a carriage return alone; write them as line feeds")


def _format_of(file: TextFile) -> InputFormat:
    """The format of a text, by its content."""
    start = file.start.lstrip()
    if start.startswith(b"["):
        return InputFormat.JSON
    if start.startswith(b"{"):
        first = start.split(b"\n", 1)[0]
        if not _is_json(first) and b"\n" in start:
            raise ManifestError(
                f"{file.path} is one JSON object, or damaged; lists of URLs are a JSON list of objects, or an object a "
                "line"
            )
        return InputFormat.JSONL
    return _format_of_lines(_first_lines(file), _suffixes(file))


def _suffixes(file: TextFile) -> set[str]:
    return {suffix.lower() for suffix in file.path.suffixes}


def _format_of_lines(lines: Sequence[bytes], suffixes: set[str]) -> InputFormat:
    """The format of lines that are not JSON."""
    urls = sum(line.strip().lower().startswith(_URL_STARTS) and b" " not in line.strip() for line in lines)
    are_urls = urls >= _MIN_URL_SHARE * len(lines)
    tabs = {line.count(_TAB) for line in lines}
    if len(tabs) == 1 and 0 not in tabs:
        return InputFormat.TSV
    if are_urls and not suffixes & _CSV_SUFFIXES:
        return InputFormat.TXT
    if lines[0].count(_TAB) or ".tsv" in suffixes:
        return InputFormat.TSV
    if ".txt" in suffixes and not any(line.count(b",") for line in lines):
        return InputFormat.TXT
    return InputFormat.CSV


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _first_lines(file: TextFile) -> list[bytes]:
    """The first lines that are not empty; the last one may be cut short, if it is the only one."""
    lines = [line.removesuffix(b"\r") for line in file.start.split(b"\n")]
    found = [line for line in lines if line.strip()]
    is_cut = len(file.start) >= EDGE_BYTES // 2 and found[-1] == lines[-1]
    return found[: max(1, len(found) - is_cut)][:_SNIFFED_LINES]


def _delimiter_of(file: TextFile, *, is_certain: bool) -> bytes:
    """What separates the fields of a CSV file: what its first record has most, outside of quotes.

    If nothing but its content says that it is CSV, one column is a URL a line below a header, and URLs may have commas.
    """
    text = file.start.lstrip(b"\r\n")
    counts = {}
    for delimiter in _DELIMITERS:
        ends = RecordSplitter(delimiter).find_ends(text)
        fields = FieldSplitter(delimiter, is_quoted=True, max_fields=_MAX_FIELDS)
        counts[delimiter] = len(fields.split(text[: ends[0]] if len(ends) else text))
    if max(counts.values()) == 1 and not is_certain:
        return _UNIT_SEPARATOR
    return max(_DELIMITERS, key=lambda one: counts[one])


def _is_quoted(lines: Sequence[bytes], delimiter: bytes) -> bool:
    """Whether a file with tabs has fields in quotes: more are quoted as a whole than have a quote in any other way.

    Files with tabs are often written without quotes, so that a quote is a character like any other.
    """
    content = b"\n".join(lines) + b"\n"
    if b'"' not in content:
        return False
    fields = FieldSplitter(delimiter, is_quoted=True, max_fields=_MAX_FIELDS)
    ends = RecordSplitter(delimiter).find_ends(content).tolist()
    counts = [fields.count_quoted(content[start:end].rstrip(b"\r\n")) for start, end in pairwise([0, *ends])]
    return sum(whole for whole, _ in counts) > sum(other for _, other in counts)


def _header_of(first: bytes, delimiter: bytes, *, is_quoted: bool) -> list[str] | None:
    """Names for the columns of a file without a header, whose first line has a URL; None if it has a header."""
    fields = FieldSplitter(delimiter, is_quoted=is_quoted, max_fields=_MAX_FIELDS).split(first)
    if not any(field.strip().lower().startswith(_URL_STARTS) for field in fields):
        return None
    return [f"{number}" for number in range(1, len(fields) + 1)]
