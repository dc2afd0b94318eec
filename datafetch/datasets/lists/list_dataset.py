"""The dataset ``list``: any list of URLs, as the command ``get`` takes it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Self

from datafetch.datasets.dataset_defaults import DatasetDefaults
from datafetch.datasets.lists.columns import ALL, WantedColumns
from datafetch.datasets.lists.kept_columns import kept_names
from datafetch.datasets.lists.list_manifest import ListManifest, ListRules
from datafetch.datasets.lists.list_samples import CAPTION, COLUMNS, ID, IS_LIST, TYPES
from datafetch.datasets.lists.open_table import open_table
from datafetch.datasets.lists.table import InputFormat
from datafetch.datasets.lists.where import parse_conditions
from datafetch.datasets.payload import IMAGE_FIELDS, pack
from datafetch.datasets.readers.compression import COMPRESSED_SUFFIXES
from datafetch.model.fields import invalid
from datafetch.model.kinds import Loader, Payload
from datafetch.model.manifest import Manifest, RemoteFile
from datafetch.model.options import DatasetOptions, Effect, Option, OptionGroup, option
from datafetch.model.outcome import Encoded
from datafetch.model.sample import Record, Row, Sample

_SUFFIXES = (".parquet", ".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson")
_MAX_SHARD_SIZE = 1_000_000
_SIMILARITY_COLUMNS = ("clip_sim", "similarity")


class ListFormat(StrEnum):
    """The formats in which a list's images can be had."""

    WEBDATASET = "webdataset"
    PARQUET = "parquet"
    FILES = "files"
    PICKLE = "pickle"


def _column(what: str, unset: str) -> Option:
    return Option(help=what, metavar="COLUMN", unset=unset, effect=Effect.MANIFEST)


def _hash_column(algorithm: str) -> Option:
    what = f"Column with the {algorithm} of each image file; a file with another hash fails as hash_mismatch."
    return _column(what, "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOptions(DatasetOptions):
    """The options of ``list``.

    Attributes:
        more_inputs: The inputs besides the job's source, in order.
        format: The format of the output.
        input_format: The format of all files; None tells that of each by its content.
        url_col: The column of the URLs; None finds it by name and content. A column of lists of URLs makes samples
            with several images.
        caption_col: The column of the captions; None finds it by its name.
        keep_col: Columns that are kept with each sample; ``all`` keeps all.
        id_col: The column of the samples' ids; None numbers the rows. Rows of pickles have the ids as ``id``; in all
            other formats the column is kept.
        sha256_col: The column of the SHA-256 that each image file must have, as it arrives.
        md5_col: The column of the MD5 that each image file must have, as it arrives.
        where: Conditions that a row has to meet, all of them: ``COLUMN OP VALUE``.
        shard_size: The number of samples of a shard; a new file begins a new one.
    """

    more_inputs: tuple[str, ...] = ()
    format: ListFormat = option(
        ListFormat.WEBDATASET,
        Option(help="Format of the output.", group=OptionGroup.OUTPUT, effect=Effect.MANIFEST),
    )
    input_format: InputFormat | None = option(
        None, Option(help="Format of the files.", unset="detected from the content", effect=Effect.MANIFEST)
    )
    url_col: str | None = option(
        None,
        _column("Column of the URLs; one of lists makes samples with several images.", "found by name and content"),
    )
    caption_col: str | None = option(None, _column("Column of the captions.", "found by name"))
    keep_col: tuple[str, ...] = option(
        (),
        Option(
            help="Column to keep with each sample, or 'all' for every column besides those of URLs and captions. "
            "Repeatable.",
            metavar="COLUMN",
            unset="none",
            effect=Effect.MANIFEST,
        ),
    )
    id_col: str | None = option(
        None, _column("Column of the samples' ids. Without it, a pickle row has its number.", "none")
    )
    sha256_col: str | None = option(None, _hash_column("SHA-256"))
    md5_col: str | None = option(None, _hash_column("MD5"))
    where: tuple[str, ...] = option(
        (),
        Option(
            help="Only rows that meet this condition, with = != < <= > or >=, such as 'width >= 256' or 'lang = ja'. "
            "Repeatable: all have to be met.",
            metavar="'COLUMN OP VALUE'",
            unset="all rows",
            effect=Effect.MANIFEST,
        ),
    )
    shard_size: int = option(
        10_000, Option(help="Number of samples of a shard.", metavar="N", group=OptionGroup.OUTPUT, minimum=1)
    )

    def inputs(self, source: str) -> tuple[str, ...]:
        """The source of the job, and all other inputs."""
        return (source, *self.more_inputs)

    def __post_init__(self) -> None:
        """Check all values before anything is read.

        Raises:
            ConfigurationError: A value is not allowed.
        """
        super(ListOptions, self).__post_init__()
        parse_conditions(self.where)
        if self.shard_size > _MAX_SHARD_SIZE:
            raise invalid(self, f"{{shard_size}} must be from 1 to {_MAX_SHARD_SIZE:,}, not {self.shard_size:,}")
        if ALL in self.keep_col and len(self.keep_col) > 1:
            raise invalid(self, "{keep_col} is given as all, and with other columns; give one of the two")
        if "" in self.keep_col:
            raise invalid(self, "{keep_col} is empty; give the name of a column, or leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListDataset(DatasetDefaults):
    """The dataset ``list``."""

    name: str = "list"
    summary: str = "Any list of URLs."
    path: str = ""
    output_format: str = ListFormat.WEBDATASET.value
    takes_inputs: bool = True
    keeps_originals: bool = True
    options: ListOptions = field(default_factory=ListOptions)

    def with_options(self, options: DatasetOptions) -> Self:
        """The same dataset with other options, from which its format, payloads and loader follow.

        Raises:
            ConfigurationError: The options belong to another dataset.
        """
        changed = super(ListDataset, self).with_options(options)
        own = changed.options
        return replace(
            changed,
            output_format=own.format.value,
            payloads=frozenset(Payload) if own.format is ListFormat.PICKLE else self.payloads,
            loader=Loader.COYO if own.format is ListFormat.PICKLE else None,
            has_hashes=own.sha256_col is not None or own.md5_col is not None,
        )

    def select_published(self, names: Sequence[str]) -> Sequence[str]:
        """The files whose names are those of lists; all if their format is given."""
        visible = [name for name in names if not name.rpartition("/")[2].startswith((".", "_"))]
        return visible if self.options.input_format is not None else [name for name in visible if _is_list(name)]

    def bind(self, source: Path, ids: Path | None) -> Manifest:
        """Open a single file.

        Raises:
            ManifestError: It can't be read, or lacks a column.
        """
        del ids
        return self.bind_inputs([source], lambda: None)

    def bind_inputs(self, files: Sequence[Path | RemoteFile], refuse_stopped: Callable[[], None]) -> Manifest:
        """Open the files of a list.

        Raises:
            ManifestError: One can't be read, or lacks a column.
        """
        own = self.options
        tables = []
        for file in files:
            refuse_stopped()
            tables.append(open_table(file, own.input_format))
        keep = own.keep_col
        if own.id_col is not None and own.format is not ListFormat.PICKLE and ALL not in keep:
            keep = (*keep, own.id_col)  # a row of a pickle has an id of its own
        wanted = WantedColumns(own.url_col, own.caption_col, keep, own.id_col, own.sha256_col, own.md5_col)
        rules = ListRules(own.where, own.shard_size, own.format.value, has_one_image=own.format is ListFormat.PICKLE)
        return ListManifest(tables, wanted, rules, refuse_stopped)

    def is_lost(self, sample: Sample, failed: Collection[int]) -> bool:
        """Whether a row could not be read; or, in a format whose rows have one image, whether that failed."""
        return not sample.urls or (self.options.format is ListFormat.PICKLE and bool(failed))

    def to_row(self, record: Record, payload: Payload) -> Row | None:
        """The row of a sample, whatever became of its images; a pickle row needs its image."""
        sample = record.sample
        if not sample.urls:
            return None
        if self.options.format is ListFormat.PICKLE:
            return self._pair_row(record, payload)
        row: dict[str, object] = {
            "key": sample.key,
            "url": list(sample.urls) if sample.row.get(IS_LIST) else sample.urls[0],
        }
        if CAPTION in sample.row:
            row["caption"] = sample.row[CAPTION]
        columns = sample.row.get(COLUMNS, {})
        types = {"types": sample.row[TYPES]} if TYPES in sample.row else {}
        return {**row, "columns": columns, **types}

    def _pair_row(self, record: Record, payload: Payload) -> Row | None:
        """The row of a pair as COYO's has it, with the kept columns; a sample without a caption has an empty one."""
        match record.outcomes:
            case (Encoded(jpeg=jpeg),):
                row = record.sample.row
                columns = row.get(COLUMNS, {})
                assert isinstance(columns, Mapping), "samples are made here"
                similarity = next((columns[name] for name in _SIMILARITY_COLUMNS if name in columns), None)
                own = {
                    "id": row[ID],
                    "url": record.sample.urls[0],
                    "text": row.get(CAPTION) or "",
                    "clip_sim": similarity,
                }
                names = kept_names(columns, {*own, *IMAGE_FIELDS.values()})
                is_there = {"clip_sim", *({"id"} if self.options.id_col == "id" else ())}
                others = {names[name]: value for name, value in columns.items() if name not in is_there}
                return {**own, **others, IMAGE_FIELDS[payload]: pack(jpeg, payload)}
        return None


def _is_list(name: str) -> bool:
    name = name.lower()
    for suffix in COMPRESSED_SUFFIXES:
        name = name.removesuffix(suffix)
    return name.endswith(_SUFFIXES)
