"""mmc4-core: English documents from C4 with their images, as JSON lines, some 316 documents a file.

Source: github.com/allenai/mmc4. The original files ``docs_shard_{n}_v3.jsonl`` are no longer published; the variant
with fewer faces, ``docs_no_face_shard_{n}_v3.jsonl``, may stand in and is then named as what it is. Numbers are not
padded, and some are missing everywhere. Images are shrunk as in VILA's data_prepare/mmc4.
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
from datafetch.model.interfaces import Manifest
from datafetch.model.kinds import CounterName, Loader, Payload
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.options import Effect, Option, option
from datafetch.model.sample import IdListResult, Record, Row, Sample, Shard

_NAME = re.compile(r"docs(?P<no_face>_no_face)?_shard_(?P<number>\d{1,5})_v3\.jsonl(?:\.gz|\.zst|\.zip)?")

_MAX_SHOWN = 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mmc4CoreOptions(DocumentOptions):
    """What may be set for ``mmc4-core``.

    Attributes:
        ids_index: What the index in the id list counts; None is the documents as published.
    """

    ids_index: IdsIndex | None = option(
        None,
        Option(
            help="What the index in the id list counts: documents as published, or those that were kept.",
            unset="document",
            effect=Effect.MANIFEST,
        ),
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is read; the index may be given as its plain word."""
        DocumentOptions.__post_init__(self)
        if self.ids_index is not None and self.ids_index not in tuple(IdsIndex):
            raise ConfigurationError(f"--ids-index must be {' or '.join(IdsIndex)}, not {self.ids_index!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mmc4Core(DatasetDefaults):
    """The dataset ``mmc4-core``."""

    name: str = "mmc4-core"
    summary: str = "mmc4-core: 6M English interleaved documents, step 1."
    path: str = "mmc4-core/pkl-core-limit-tokens"
    loader: Loader = Loader.MMC4
    id_list: str | None = "shard,index"
    short_side_px: int | None = 336
    options: Mmc4CoreOptions = field(default_factory=Mmc4CoreOptions)

    def bind(self, source: Path, ids: Path | None) -> Mmc4Manifest:
        """Open the files of a folder that the id list names, or all of them.

        Raises:
            ManifestError: No file of the published names, one that can't be read, or an unreadable id list.
        """
        indices = ShardIndices.of(read_id_pairs(ids)) if ids else None
        numbers = _files_by_number(source)
        wanted = [number for number in sorted(numbers) if indices is None or number in indices]
        if indices is not None and not wanted:
            raise ManifestError(
                f"{source} has none of the shards that {ids} names; --source takes the folder that does"
            )
        paths = {_shard_name(numbers[number], number): numbers[number] for number in wanted}
        files = {name: LineFile(path) for name, path in sorted(paths.items())}
        _log_variant_and_gaps(files, None if indices is None else indices.shards.tolist())
        form = DocumentFormat.load("raw_url", self.options)
        identity_fields = form.identity_fields()
        if indices is not None:
            identity_fields["ids_index"] = self.options.ids_index or IdsIndex.DOCUMENT
        lines = LinesManifest(
            files, form, identity_fields, self.options.skip_bad_lines, first_records(files.values()).line_bytes
        )
        return Mmc4Manifest(lines, indices, is_of_kept=self.options.ids_index == IdsIndex.KEPT)

    def refuse_retry(self) -> None:
        """Refuse one where rows are counted: an image that arrives would move all rows behind its own."""
        if self.options.ids_index == IdsIndex.KEPT:
            raise ConfigurationError(
                "--ids-index kept counts the documents that were kept, so that one more would move all behind it; "
                "to retry, run the command that started it with --fresh"
            )

    def to_row(self, record: Record, payload: Payload) -> Row | None:  # noqa: ARG002 - the loader knows one alone
        """The document as published with its images, or None where too few of them arrived."""
        return document_row(record, self.options.keep_at_least)

    def is_lost(self, sample: Sample, failed: Collection[int]) -> bool:
        """Whether too few of a document's images may still arrive."""
        return is_document_lost(sample, failed, self.options.keep_at_least)


@dataclass(frozen=True, slots=True)
class Mmc4Manifest(Manifest):
    """The files of mmc4-core, with the choice of documents.

    Attributes:
        lines: The files, and how they are read.
        indices: Which documents are wanted; None is all.
        is_of_kept: Whether they are counted among those that became a row.
    """

    lines: LinesManifest
    indices: ShardIndices | None
    is_of_kept: bool

    def shards(self) -> list[Shard]:
        """One shard a file, in the order of their numbers; those with fewer faces, where there are both, come first."""
        return self.lines.shards()

    def max_samples(self) -> int:
        """As many as there are ids, or about as many as there are lines."""
        return self.lines.max_samples() if self.indices is None else len(self.indices)

    def identity_fields(self) -> Mapping[str, object]:
        """How documents are read, and what indices count."""
        return self.lines.identity_fields()

    def samples(self, shard: Shard) -> LineSamples:
        """The wanted documents of one file; where it is the kept ones that are counted, all of them."""
        file, number = self.lines.files[shard.name], _number(shard.name)
        wanted = self.indices.of_shard(number) if self.indices is not None else None
        return LineSamples(
            file,
            f"{number},",
            self.lines.form,
            skips_bad_lines=self.lines.skips_bad_lines,
            listed=None if wanted is None else IdFilter(frozenset(wanted.tolist()), are_rows=self.is_of_kept),
        )

    def id_list_result(self, keys: Iterable[str], counts: Mapping[str, ShardCounts]) -> IdListResult | None:
        """What became of the id list."""
        if self.indices is None:
            return None
        which = IndexKindDetector()
        for shard, of_shard in counts.items():
            which.see(self.indices.of_shard(_number(shard)), of_shard.notes.get(CounterName.RECORDS.value, 0))
        rows = sum(of_shard.rows for of_shard in counts.values())
        found = rows if self.is_of_kept else self.indices.count(keys)
        there = {_number(name) for name in self.lines.files}
        return IdListResult(
            wanted=len(self.indices),
            duplicates=self.indices.duplicates,
            not_found=len(self.indices) - found,
            missing_files=int(np.sum([number not in there for number in self.indices.shards])),
            out_of_range=which.out_of_range,
            remark=which.remark(is_of_kept=self.is_of_kept),
        )


def _files_by_number(source: Path) -> dict[int, Path]:
    """The files of a folder that have the published names.

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
            f"{source} has no file docs_shard_<number>_v3.jsonl (or .gz, .zip, .zst), nor docs_no_face_shard_…; "
            "--source takes the folder that does"
        )
    return files


def _log_variant_and_gaps(files: Mapping[str, LineFile], wanted: Sequence[int] | None) -> None:
    """Say which variant it is, and how many shards are missing: those of the id list, or gaps in the numbers."""
    if any("no_face" in name for name in files):
        _log.info("the source is mmc4-core-ff, the variant with fewer faces, in place of mmc4-core")
    there = {_number(name) for name in files}
    missing = [number for number in wanted or range(max(there) + 1) if number not in there]
    if missing:
        shown = ", ".join(map(str, missing[:_MAX_SHOWN])) + (" …" if len(missing) > _MAX_SHOWN else "")
        _log.warning("%d shards are missing: %s", len(missing), shown)


def _shard_name(path: Path, number: int) -> str:
    """The published name with its number padded, so that names sort as numbers do."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, "it has been looked at"
    return f"docs{match['no_face'] or ''}_shard_{number:05d}_v3"


def _number(shard: str) -> int:
    return int(shard.split("_")[-2])
