"""mmc4-core: English documents from C4 with their images, as files of JSON lines with some 316 documents each.

The original files, ``docs_shard_{n}_v3.jsonl``, are no longer published. The variant with fewer faces,
``docs_no_face_shard_{n}_v3.jsonl``, is accepted in their place, and a message says so. Their numbers are not padded,
and some were never published. Images are shrunk as in VILA's data_prepare/mmc4.

Source: github.com/allenai/mmc4.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datafetch.datasets.dataset_defaults import DatasetDefaults
from datafetch.datasets.documents import DocumentFormat, DocumentOptions, document_row, is_document_lost
from datafetch.datasets.id_pairs import IdsIndex, IndexKindDetector, ShardIndices
from datafetch.datasets.jsonl_manifest import SUFFIXES, IdFilter, LineSamples, LinesManifest, first_records
from datafetch.datasets.readers import LineFile, list_files, read_id_pairs
from datafetch.errors import ConfigurationError, ManifestError
from datafetch.model.kinds import CounterName, Loader, Payload
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.manifest import Manifest
from datafetch.model.options import Effect, Option, option
from datafetch.model.sample import IdListResult, Record, Row, Sample, Shard
from datafetch.model.wording import counted

_NAME = re.compile(r"docs(?P<no_face>_no_face)?_shard_(?P<number>\d{1,5})_v3\.jsonl(?:\.gz|\.zst|\.zip)?")

_MAX_SHOWN = 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mmc4CoreOptions(DocumentOptions):
    """The options of ``mmc4-core``.

    Attributes:
        ids_index: What the index in the id list counts; None means the documents as published.
    """

    ids_index: IdsIndex | None = option(
        None,
        Option(
            help="What the index in the id list counts: documents as published, or those that were kept.",
            unset="document",
            effect=Effect.MANIFEST,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mmc4Core(DatasetDefaults):
    """The dataset ``mmc4-core``."""

    name: str = "mmc4-core"
    summary: str = "mmc4-core: 6M English interleaved documents, step 1."
    path: str = "mmc4-core/pkl-core-limit-tokens"
    loader: Loader = Loader.MMC4
    manifest_suffixes: tuple[str, ...] = SUFFIXES
    id_list: str | None = "shard,index"
    short_side_px: int | None = 336
    options: Mmc4CoreOptions = field(default_factory=Mmc4CoreOptions)

    def bind(self, source: Path, ids: Path | None) -> Mmc4Manifest:
        """Open the files of a folder that the id list names, or all of them.

        Raises:
            ManifestError: No file has a published name, one of them or the id list can't be read, or the id list names
                none of the shards.
        """
        indices = ShardIndices.of(read_id_pairs(ids)) if ids else None
        by_number = _files_by_number(source)
        selected = [number for number in sorted(by_number) if indices is None or number in indices]
        if indices is not None and not selected:
            raise ManifestError(
                f"{source} has none of the shards that {ids} names; --source takes the folder that does"
            )
        paths = {_shard_name(by_number[number], number): by_number[number] for number in selected}
        files = {name: LineFile(path) for name, path in sorted(paths.items())}
        _log_variant_and_gaps(files, None if indices is None else indices.shards.tolist())
        document_format = DocumentFormat.load("raw_url", self.options)
        identity = document_format.identity_fields()
        if indices is not None:
            identity["ids_index"] = self.options.ids_index or IdsIndex.DOCUMENT
        line_bytes = first_records(files.values()).line_bytes
        lines = LinesManifest(files, document_format, identity, self.options.skip_bad_lines, line_bytes)
        return Mmc4Manifest(lines, indices, is_of_kept=self.options.ids_index == IdsIndex.KEPT)

    def refuse_retry(self) -> None:
        """Refuse a retry if ids count rows, because a row that is added would renumber all rows after it.

        Raises:
            ConfigurationError: The option ``--ids-index kept`` is set.
        """
        if self.options.ids_index == IdsIndex.KEPT:
            raise ConfigurationError(
                "an output with --ids-index kept can't be retried, because each document that is added would renumber "
                "those after it; run the command that started it again with --fresh"
            )

    def to_row(self, record: Record, payload: Payload) -> Row | None:  # noqa: ARG002 - the loader accepts only one
        """The document as published, with its images; None if too few of them arrived."""
        return document_row(record, self.options.keep_at_least)

    def is_lost(self, sample: Sample, failed: Collection[int]) -> bool:
        """Whether too many of a document's images failed."""
        return is_document_lost(sample, failed, self.options.keep_at_least)


@dataclass(frozen=True, slots=True)
class Mmc4Manifest(Manifest):
    """The files of mmc4-core, with the documents that an id list selects.

    Attributes:
        lines: The files, and how they are read.
        indices: The selected documents; None selects all.
        is_of_kept: Whether the indices count only the documents that became a row.
    """

    lines: LinesManifest
    indices: ShardIndices | None
    is_of_kept: bool

    def shards(self) -> list[Shard]:
        """One shard for each file, in the order of their names: files with fewer faces first, then by number."""
        return self.lines.shards()

    def max_samples(self) -> int:
        """The number of ids; without an id list, the approximate number of lines."""
        return self.lines.max_samples() if self.indices is None else len(self.indices)

    def choices(self) -> list[str]:
        """That all documents are taken, if there is no id list."""
        if self.indices is not None:
            return []
        choice = f"no --ids: all documents of the source are taken, about {self.max_samples():,}"
        return [f"{choice}; the recipe takes those of a list"]

    def identity_fields(self) -> Mapping[str, object]:
        """How documents are read, and what the indices count."""
        return self.lines.identity_fields()

    def samples(self, shard: Shard) -> LineSamples:
        """The selected documents of one file; all of them if the indices count only those that became a row."""
        file, number = self.lines.files[shard.name], _number(shard.name)
        selected = self.indices.of_shard(number) if self.indices is not None else None
        return LineSamples(
            file,
            f"{number},",
            self.lines.record_format,
            skips_bad_lines=self.lines.skips_bad_lines,
            id_filter=None if selected is None else IdFilter(frozenset(selected.tolist()), are_rows=self.is_of_kept),
        )

    def id_list_result(self, keys: Iterable[str], counts: Mapping[str, ShardCounts]) -> IdListResult | None:
        """How the pairs of the id list were found in the files; None without a list."""
        if self.indices is None:
            return None
        detector = IndexKindDetector()
        for shard, of_shard in counts.items():
            detector.add_shard(self.indices.of_shard(_number(shard)), of_shard.notes.get(CounterName.RECORDS.value, 0))
        rows = sum(of_shard.rows for of_shard in counts.values())
        found = rows if self.is_of_kept else self.indices.count_found(keys)
        present = {_number(name) for name in self.lines.files}
        return IdListResult(
            wanted=len(self.indices),
            duplicates=self.indices.duplicates,
            not_found=len(self.indices) - found,
            missing_files=int(np.sum([number not in present for number in self.indices.shards])),
            out_of_range=detector.out_of_range,
            remark=detector.remark(is_of_kept=self.is_of_kept),
        )


def _files_by_number(source: Path) -> dict[int, Path]:
    """Find the files of a folder that have published names, by their numbers.

    Raises:
        ManifestError: There is none, or two have the same number.
    """
    files: dict[int, Path] = {}
    for path in list_files(source, *SUFFIXES):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        number = int(match["number"])
        if number in files:
            raise ManifestError(f"{path} and {files[number]} are both shard {number}; move one of them away")
        files[number] = path
    if not files:
        raise ManifestError(
            f"{source} has no file docs_shard_<number>_v3.jsonl or docs_no_face_shard_<number>_v3.jsonl (plain, .gz, "
            ".zip or .zst); --source takes the folder that does"
        )
    return files


def _log_variant_and_gaps(files: Mapping[str, LineFile], listed: Sequence[int] | None) -> None:
    """Log whether the files are the variant with fewer faces, and which shards are missing.

    Args:
        files: The files by the names of their shards.
        listed: The shards that the id list names; None, without a list, looks for gaps in the numbers.
    """
    if any("no_face" in name for name in files):
        _log.info("the source is mmc4-core-ff, the variant with fewer faces, in place of mmc4-core")
    present = {_number(name) for name in files}
    missing = [number for number in listed or range(max(present) + 1) if number not in present]
    if missing:
        shown = ", ".join(map(str, missing[:_MAX_SHOWN])) + (" …" if len(missing) > _MAX_SHOWN else "")
        _log.warning(
            "%s missing: %s", f"{counted(len(missing), 'shard')} {'is' if len(missing) == 1 else 'are'}", shown
        )


def _shard_name(path: Path, number: int) -> str:
    """The published name with its number padded, so that names sort by number."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, "_files_by_number has checked this"
    return f"docs{match['no_face'] or ''}_shard_{number:05d}_v3"


def _number(shard: str) -> int:
    return int(shard.split("_")[-2])
