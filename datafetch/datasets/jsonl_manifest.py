"""Datasets that are published as lines, JSON unless their format says otherwise: a folder of files, each a shard.

Rules: a file is read twice, as it is opened: once to see that every line is a record and which of them are wanted, and
once, line by line, for the samples. Memory holds a byte a line. What is wrong with a line is known before anything of
its file is fetched.
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
from datafetch.model.interfaces import Manifest, Samples
from datafetch.model.kinds import CounterName
from datafetch.model.sample import Row, Sample, Shard
from datafetch.model.untrusted import is_plain_name

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.zip")
_SNIFFED_LINES = 100
_SNIFFED_BYTES = 4 * 1024 * 1024  # a hundred of the longest lines would be gigabytes
_MAX_PARSED_BYTES = 512 * 1024 * 1024  # of one record; a line of 64 MiB can make two gigabytes of empty lists
_SHORT_LINE_BYTES = 1024 * 1024  # what is shorter can't come near that
_COMPRESSION = 4.0  # of text, about
_USUAL_LINE_BYTES = 1000.0  # where no line has been seen

JsonObject: TypeAlias = dict[str, Any]


class BadRecordError(ValueError):
    """A record that is not of its dataset's form. The text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class ParsedRecord:
    """A record as a sample that has no place yet.

    Attributes:
        urls: One image URL or more; none where it can't become a row.
        row: Its metadata.
        notes: What is to be counted of it.
    """

    urls: tuple[str, ...]
    row: Row
    notes: tuple[CounterName, ...] = ()


class RecordFormat(Protocol):
    """From a line to a record to a sample, for one dataset with its options.

    What is JSON inherits ``record``, and what has no filter ``wants``.
    """

    def record(self, line: bytes) -> JsonObject:
        """The record of a line.

        Raises:
            BadRecordError: It is none.
        """
        return parse_json_line(line)

    def wants(self, record: JsonObject) -> bool:  # noqa: ARG002 - for those that look at it
        """Whether the filters leave a record in; asked once, for it may cost more than reading.

        Raises:
            BadRecordError: It is not of the form.
        """
        return True

    def parsed(self, record: JsonObject) -> ParsedRecord:
        """The record as a sample.

        Raises:
            BadRecordError: It is not of the form.
            ManifestError: It lacks something that can't be skipped.
        """
        ...


def open_folder(source: Path, suffixes: Sequence[str] = SUFFIXES) -> dict[str, LineFile]:
    """All files of lines in a folder, by stem, in the order of the stems.

    Args:
        source: The folder; a single file stands for itself.
        suffixes: What the names of the files end with.

    Raises:
        ManifestError: There is none, one can't be read, two have the same stem, or one is a copy of another: there are
            no ids that would tell which records come twice.
    """
    files: dict[str, LineFile] = {}
    by_content: dict[str, Path] = {}
    for path in list_files(source, *suffixes):
        stem = reduce(str.removesuffix, suffixes, stem_of(path))
        if not is_plain_name(stem) or not stem.isprintable():
            raise ManifestError(f"{path} has a name that no shard can have; give it another")
        if stem in files:
            raise ManifestError(f"{path} and {files[stem].path} would both become {stem}.pkl; move one of them away")
        file = files[stem] = LineFile(path)
        original = by_content.setdefault(file.fingerprint, path)
        if original != path and file.size_bytes:
            raise ManifestError(
                f"{path} is a copy of {original}: both have the same size, beginning and end; move one of them away"
            )
    return dict(sorted(files.items()))


@dataclass(frozen=True, slots=True)
class FirstRecords:
    """The first records of a folder, and how long a line is, about."""

    records: list[JsonObject] = field(default_factory=list)
    line_bytes: float = _USUAL_LINE_BYTES


def first_records(files: Iterable[LineFile], parse: Callable[[bytes], JsonObject] | None = None) -> FirstRecords:
    """The records of the first file that has any; lines that are no record are skipped.

    Args:
        files: In order.
        parse: Makes a record of a line, as ``RecordFormat.record``; None for JSON.
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
    """Files of lines, and how their lines are read.

    Attributes:
        files: By shard.
        form: From a record to a sample.
        reading: What decides the rows of how they are read, as JSON.
        skips_bad_lines: Whether lines that are no record are skipped.
        line_bytes: Of a line, about.
    """

    files: Mapping[str, LineFile]
    form: RecordFormat
    reading: Mapping[str, object] = field(default_factory=dict)
    skips_bad_lines: bool = False
    line_bytes: float = _USUAL_LINE_BYTES

    def shards(self) -> list[Shard]:
        """One shard a file."""
        return [Shard(name, file.path, file.size_bytes, file.fingerprint) for name, file in self.files.items()]

    def max_samples(self) -> int:
        """About as many as there are lines, by the size of the files and of the first lines."""
        text_bytes = sum(
            file.size_bytes * (_COMPRESSION if file.is_compressed else 1.0) for file in self.files.values()
        )
        return round(text_bytes / max(1.0, self.line_bytes))

    def identity_fields(self) -> Mapping[str, object]:
        """How records are read."""
        return self.reading

    def samples(self, shard: Shard) -> LineSamples:
        """All samples of one file."""
        return LineSamples(self.files[shard.name], f"{shard.name}:", self.form, skips_bad_lines=self.skips_bad_lines)


@dataclass(frozen=True, slots=True)
class IdFilter:
    """What an id list names of one file.

    Attributes:
        numbers: Counted from 0.
        are_rows: Whether it is the rows that are counted, and not the lines.
    """

    numbers: frozenset[int]
    are_rows: bool


class LineSamples(Samples):
    """The samples of one file of lines.

    Args:
        file: The file.
        key_prefix: What stands before the number of a record's line, counted from 0, in its key.
        form: From a record to a sample.
        skips_bad_lines: Whether lines that are no record are skipped and counted.
        listed: What an id list names of it; None where there is no list. The number of records is noted then.

    Raises:
        ManifestError: A line is no record, and bad lines are not skipped; or the file can't be read.
    """

    def __init__(
        self,
        file: LineFile,
        key_prefix: str,
        form: RecordFormat,
        *,
        skips_bad_lines: bool,
        listed: IdFilter | None = None,
    ) -> None:
        self._listed = listed
        self._file = file
        self._key_prefix = key_prefix
        self._form = form
        self._skips_bad_lines = skips_bad_lines
        self._notes: Counter[str] = Counter()
        self._is_sample = bytearray()
        self._scan()
        self._samples = sum(self._is_sample)

    @property
    def row_numbers(self) -> frozenset[int] | None:
        """Which of the rows that they become are wanted; None is all."""
        return self._listed.numbers if self._listed is not None and self._listed.are_rows else None

    @property
    def notes(self) -> Mapping[str, int]:
        """What was counted."""
        return dict(self._notes)

    def __len__(self) -> int:
        return self._samples

    def __iter__(self) -> Iterator[Sample]:
        position = 0
        for number, line in enumerate(self._file.lines()):
            if number >= len(self._is_sample):
                break
            if self._is_sample[number]:
                parsed = self._parse_again(number, line)
                yield Sample(position, f"{self._key_prefix}{number}", parsed.urls, parsed.row)
                position += 1
        if position < self._samples:
            raise self._has_changed(len(self._is_sample))

    def _parse_again(self, number: int, line: bytes) -> ParsedRecord:
        """The sample that a line became when the file was looked through."""
        try:
            return self._form.parsed(self._form.record(line))
        except (BadRecordError, ManifestError) as error:
            raise self._has_changed(number) from error

    def _has_changed(self, number: int) -> ManifestError:
        return ManifestError(
            f"{self._file.path}, line {number + 1}: the file has changed since it was opened; put back what it was, or "
            "start over with --fresh"
        )

    def _scan(self) -> None:
        wanted = self._listed.numbers if self._listed is not None and not self._listed.are_rows else None
        records = 0
        for number, line in enumerate(self._file.lines()):
            records = number + 1 if line.strip() else records
            is_sample = (wanted is None or number in wanted) and bool(line.strip()) and self._scan_line(number, line)
            self._is_sample.append(is_sample)
        if self._listed is not None:
            self._notes[CounterName.RECORDS.value] = records

    def _scan_line(self, number: int, line: bytes) -> bool:
        """Whether a line becomes a sample."""
        try:
            record = self._form.record(line)
            parsed = self._form.parsed(record) if self._form.wants(record) else None
        except BadRecordError as error:
            if b"\1" not in self._is_sample and (what := self._file.explain_bad_line()):
                raise ManifestError(what) from error  # never skipped: nothing in the file is a record
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
    """The record of a line of JSON.

    Raises:
        BadRecordError: It is none, takes too much memory, or is nested too deeply for every parser and writer that
            handles rows.
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
