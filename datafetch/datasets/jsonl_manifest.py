"""Manifests of lines: a folder of files, each a shard, with one record a line. Lines are JSON by default.

Each file is read twice. When a shard is opened, ``LineSamples`` scans its file: it parses every line, applies the
filters and the id list, and keeps one byte a line that says whether the line becomes a sample. When the samples are
iterated over, only those lines are parsed again. So the number of samples and every bad line are known before anything
of the file is fetched, and memory does not hold the records. A file that changes between the two passes is detected
when a line no longer parses, or lines are missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from datafetch.datasets.readers import (
    MAX_NESTING,
    LineFile,
    explain_digit_limit,
    is_nested_deeply,
    list_files,
    max_parsed_bytes,
    stem_of,
)
from datafetch.errors import ManifestError
from datafetch.model import exact_json
from datafetch.model.kinds import CounterName
from datafetch.model.manifest import Manifest, Samples
from datafetch.model.sample import Row, Sample, Shard
from datafetch.model.untrusted import is_plain_name

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.zip")
_SNIFFED_LINES = 100
_SNIFFED_BYTES = 4 * 1024 * 1024  # a hundred of the longest lines would be gigabytes
_MAX_PARSED_BYTES = 512 * 1024 * 1024  # of one record; a line of 64 MiB can become two gigabytes of empty lists
_SHORT_LINE_BYTES = 1024 * 1024  # a line of this length can't become so large
_COMPRESSION_RATIO = 4.0  # typical of text
_DEFAULT_LINE_BYTES = 1000.0  # assumed if there is no record to measure

JsonObject: TypeAlias = dict[str, Any]


class BadRecordError(ValueError):
    """A record is not of the form that its dataset requires. The message says why, without file and line."""


@dataclass(frozen=True, slots=True)
class ParsedRecord:
    """The parts of a sample that come from its record; its key and position follow from its line.

    Attributes:
        urls: The image URLs; empty if the sample can't become a row whatever arrives.
        row: The metadata.
        notes: The counters that the record adds one to.
    """

    urls: tuple[str, ...]
    row: Row
    notes: tuple[CounterName, ...] = ()


class RecordFormat(Protocol):
    """How the lines of one dataset become records and samples, with the options of a run.

    A format of JSON lines inherits ``is_blank`` and ``parse_line``, and one without filters inherits ``selects``.
    """

    def is_blank(self, line: bytes) -> bool:
        """Whether a line is skipped without being counted; in a format with tabs between columns, not one of tabs."""
        return not line.strip()

    def parse_line(self, line: bytes) -> JsonObject:
        """Parse a line into a record.

        Raises:
            BadRecordError: The line is not a record.
        """
        return parse_json_line(line)

    def selects(self, record: JsonObject) -> bool:  # noqa: ARG002 - a filter looks at it
        """Whether the filters select a record. Called only during the scan, because a filter may be slow.

        Raises:
            BadRecordError: The record is not of the required form.
        """
        return True

    def parse_record(self, record: JsonObject) -> ParsedRecord:
        """Turn a record into the parts of a sample. The same record always gives the same result.

        Raises:
            BadRecordError: The record is not of the required form; ``--skip-bad-lines`` skips it.
            ManifestError: The record lacks something, and must not be skipped.
        """
        ...


def open_folder(source: Path, suffixes: Sequence[str] = SUFFIXES) -> dict[str, LineFile]:
    """Open all files of lines in a folder.

    Args:
        source: The folder, or a single file.
        suffixes: What the names of the files end with.

    Returns:
        The files by the names of their shards, which are the file names without suffixes, sorted by these.

    Raises:
        ManifestError: There is no such file, one can't be read, two would give the same shard, or one is a copy of
            another. Copies are refused because records of lines have no ids that would reveal duplicates.
    """
    files: dict[str, LineFile] = {}
    by_content: dict[str, Path] = {}
    for path in list_files(source, *suffixes):
        stem = reduce(str.removesuffix, suffixes, stem_of(path))
        if not is_plain_name(stem) or not stem.isprintable():
            raise ManifestError(f"{path} has a name that can't be the name of a shard; rename the file")
        if stem in files:
            raise ManifestError(f"{path} and {files[stem].path} would both become shard {stem}; move one of them away")
        file = files[stem] = LineFile(path)
        original = by_content.setdefault(file.fingerprint, path)
        if original != path and file.size_bytes:
            raise ManifestError(f"{path} is a copy of {original} (same size, beginning and end); move one of them away")
    return dict(sorted(files.items()))


@dataclass(frozen=True, slots=True)
class FirstRecords:
    """The first records of a folder, which show what all of them are like.

    Attributes:
        records: At most a hundred, from the first file that has any.
        line_bytes: The mean length of their lines.
    """

    records: list[JsonObject] = field(default_factory=list)
    line_bytes: float = _DEFAULT_LINE_BYTES


def first_records(files: Iterable[LineFile], parse: Callable[[bytes], JsonObject] | None = None) -> FirstRecords:
    """Read the first records of the first file that has any; lines that are not records are skipped.

    Args:
        files: The files, in order.
        parse: Parses a line, as ``RecordFormat.parse_line`` does; None parses JSON.
    """
    parse = parse or parse_json_line
    for file in files:
        found: list[JsonObject] = []
        read_bytes = 0
        for line in islice(file.lines(), _SNIFFED_LINES):
            try:
                found.append(parse(line))
                read_bytes += len(line)
            except BadRecordError:
                continue
            if read_bytes > _SNIFFED_BYTES:
                break
        if found:
            return FirstRecords(found, read_bytes / len(found))
    return FirstRecords()


@dataclass(frozen=True, slots=True)
class LinesManifest(Manifest):
    """Files of lines, all of one format.

    Attributes:
        files: The files by the names of their shards.
        record_format: How lines become samples.
        identity: What ``identity_fields`` returns.
        skips_bad_lines: Whether lines that are not valid records are skipped.
        line_bytes: The approximate length of a line.
    """

    files: Mapping[str, LineFile]
    record_format: RecordFormat
    identity: Mapping[str, object] = field(default_factory=dict)
    skips_bad_lines: bool = False
    line_bytes: float = _DEFAULT_LINE_BYTES

    def shards(self) -> list[Shard]:
        """One shard for each file; its size is that of the file, in bytes."""
        return [Shard(name, file.path, file.size_bytes, file.fingerprint) for name, file in self.files.items()]

    def max_samples(self) -> int:
        """The approximate number of lines, estimated from the sizes of the files and the length of a line."""
        text_bytes = sum(
            file.size_bytes * (_COMPRESSION_RATIO if file.is_compressed else 1.0) for file in self.files.values()
        )
        return round(text_bytes / max(1.0, self.line_bytes))

    def identity_fields(self) -> Mapping[str, object]:
        """What decides how records are read, such as the keys that were detected."""
        return self.identity

    def samples(self, shard: Shard) -> LineSamples:
        """Scan one file for its samples.

        Raises:
            ManifestError: As ``LineSamples`` does.
        """
        return LineSamples(
            self.files[shard.name], f"{shard.name}:", self.record_format, skips_bad_lines=self.skips_bad_lines
        )


@dataclass(frozen=True, slots=True)
class IdFilter:
    """What an id list selects from one file.

    Attributes:
        numbers: The selected numbers, counted from 0.
        are_rows: Whether they count the rows of the finished shard; otherwise they count the lines of the file.
    """

    numbers: frozenset[int]
    are_rows: bool


class LineSamples(Samples):
    """The samples of one file of lines, which is scanned when they are created.

    Args:
        file: The file.
        key_prefix: A sample's key is this prefix and the number of its line, counted from 0.
        record_format: How lines become samples.
        skips_bad_lines: Whether lines that are not valid records are skipped and counted.
        id_filter: What an id list selects from the file; None without a list. With a list, all records are counted.

    Raises:
        ManifestError: A line is not a valid record, and bad lines are not skipped; or the file can't be read.
    """

    def __init__(
        self,
        file: LineFile,
        key_prefix: str,
        record_format: RecordFormat,
        *,
        skips_bad_lines: bool,
        id_filter: IdFilter | None = None,
    ) -> None:
        self._id_filter = id_filter
        self._file = file
        self._key_prefix = key_prefix
        self._format = record_format
        self._skips_bad_lines = skips_bad_lines
        self._notes: Counter[str] = Counter()
        self._is_sample = bytearray()
        self._scan()
        self._samples = sum(self._is_sample)

    @property
    def row_numbers(self) -> frozenset[int] | None:
        """Which of the rows that they become are selected; None selects all."""
        return self._id_filter.numbers if self._id_filter is not None and self._id_filter.are_rows else None

    @property
    def notes(self) -> Mapping[str, int]:
        """What the scan counted, by ``CounterName``."""
        return dict(self._notes)

    def __len__(self) -> int:
        return self._samples

    def __iter__(self) -> Iterator[Sample]:
        position = 0
        for number, line in enumerate(self._file.lines()):
            if number >= len(self._is_sample):
                break
            if self._is_sample[number]:
                parsed = self._parse_scanned(number, line)
                yield Sample(position, f"{self._key_prefix}{number}", parsed.urls, parsed.row)
                position += 1
        if position < self._samples:
            raise self._change_error(len(self._is_sample))

    def _parse_scanned(self, number: int, line: bytes) -> ParsedRecord:
        """Parse a line that was valid when the file was scanned."""
        try:
            return self._format.parse_record(self._format.parse_line(line))
        except (BadRecordError, ManifestError) as error:
            raise self._change_error(number) from error

    def _change_error(self, number: int) -> ManifestError:
        return ManifestError(
            f"{self._file.path}, line {number + 1}: the file has changed since it was opened; restore it, or start "
            "over with --fresh"
        )

    def _scan(self) -> None:
        id_filter = self._id_filter
        selected = id_filter.numbers if id_filter is not None and not id_filter.are_rows else None
        records = 0
        for number, line in enumerate(self._file.lines()):
            is_record = not self._format.is_blank(line)
            records = number + 1 if is_record else records
            is_selected = is_record and (selected is None or number in selected)
            self._is_sample.append(is_selected and self._scan_line(number, line))
        if id_filter is not None:
            self._notes[CounterName.RECORDS.value] = records

    def _scan_line(self, number: int, line: bytes) -> bool:
        """Return whether a line becomes a sample, and count what is to be counted."""
        try:
            record = self._format.parse_line(line)
            parsed = self._format.parse_record(record) if self._format.selects(record) else None
        except BadRecordError as error:
            if b"\1" not in self._is_sample and (problem := self._file.explain_bad_line()):
                raise ManifestError(problem) from error  # not skipped, because the whole file is something else
            if not self._skips_bad_lines:
                raise ManifestError(
                    f"{self._file.path}, line {number + 1}: {error}; fix it, or skip such lines with --skip-bad-lines"
                ) from error
            self._notes[CounterName.BAD_LINES.value] += 1
            return False
        except ManifestError as error:
            raise ManifestError(f"{self._file.path}, line {number + 1}: {error}") from error
        if parsed is None:
            self._notes[CounterName.FILTERED.value] += 1
            return False
        self._notes.update(note.value for note in parsed.notes)
        return True


def parse_json_line(line: bytes) -> JsonObject:
    """Parse a line of JSON into a record.

    Raises:
        BadRecordError: The line is not a JSON object, would take too much memory, or is nested too deeply for some
            parser or writer that handles rows later.
    """
    if len(line) > _SHORT_LINE_BYTES and max_parsed_bytes(line) > _MAX_PARSED_BYTES:
        raise BadRecordError(f"it may take more than {_MAX_PARSED_BYTES:,} bytes of memory when it is parsed")
    try:
        record = exact_json.parse(line)
    except UnicodeDecodeError as error:
        raise BadRecordError(f"not UTF-8 at byte {error.start:,}") from error
    except ValueError as error:
        raise BadRecordError(explain_digit_limit(error) or f"not JSON ({error})") from error
    except RecursionError as error:
        raise BadRecordError(f"nested more than {MAX_NESTING} levels deep") from error
    if not isinstance(record, dict):
        raise BadRecordError("not a JSON object")
    if is_nested_deeply(record, line.count(b"[") + line.count(b"{")):
        raise BadRecordError(f"nested more than {MAX_NESTING} levels deep")
    return record
