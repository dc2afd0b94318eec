"""Which columns of a file have the URLs, the captions and the rest: as the operator says, or by name and content."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from datafetch.datasets.lists.table import Column, InputFormat, ListRow, Table
from datafetch.datasets.lists.where import Condition, columns_of
from datafetch.datasets.readers import is_nested_deeply, max_parsed_bytes
from datafetch.errors import ManifestError, did_you_mean
from datafetch.model.untrusted import to_printable

ALL = "all"
"""The value of ``--keep-col`` for all columns."""
_URL_NAMES = (
    "url",
    "image_url",
    "img_url",
    "urls",
    "image_urls",
    "img_urls",
    "imageurl",
    "original_url",
    "photo_image_url",
    "image",
    "images",
    "src",
    "image_src",
    "link",
    "uri",
)
_CERTAIN_URL_NAMES = tuple(name for name in _URL_NAMES if "url" in name)
_CAPTION_NAMES = ("caption", "text", "alt", "alt_text", "alttext", "captions", "title", "description")
_URL_STARTS = ("http://", "https://", "//")
_LEAST_SHARE = 0.1  # of the first values of a single column
_MAX_SHOWN_NAMES = 30
_MAX_SHOWN_CHARS = 40
_MAX_COMPARED_NAMES = 1000  # in some milliseconds
_MAX_LIST_BYTES = 256 << 20  # of memory; text of 64 MiB can become two gigabytes of empty lists


@dataclass(frozen=True, slots=True)
class WantedColumns:
    """The columns that the operator names; None and an empty tuple leave them to the file.

    Attributes:
        url: The column of the URLs.
        caption: The column of the captions.
        keep: Columns to be kept, or ``all``.
        id: The column of the samples' ids.
        sha256: The column of the SHA-256 of bodies.
        md5: The column of the MD5 of bodies.
    """

    url: str | None = None
    caption: str | None = None
    keep: tuple[str, ...] = ()
    id: str | None = None
    sha256: str | None = None
    md5: str | None = None


@dataclass(frozen=True, slots=True)
class ChosenColumns:
    """The columns of one file; None where it has none.

    Attributes:
        url: The column of the URLs.
        caption: The column of the captions.
        keep: Columns to be kept, in the order of the file.
        id: The column of the samples' ids.
        sha256: The column of the SHA-256 of bodies.
        md5: The column of the MD5 of bodies.
    """

    url: str
    caption: str | None
    keep: tuple[str, ...]
    id: str | None
    sha256: str | None
    md5: str | None

    @property
    def needed(self) -> tuple[str, ...]:
        """All of them, each once."""
        named = (self.url, self.caption, self.id, self.sha256, self.md5, *self.keep)
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def describe(self) -> str:
        """Which columns have the URLs and the captions, for a message."""
        caption = "no captions" if self.caption is None else f"captions from {to_printable(self.caption)}"
        return f"URLs from column {to_printable(self.url)}, {caption}"


def choose_columns(table: Table, wanted: WantedColumns, conditions: Sequence[Condition]) -> ChosenColumns:
    """Choose the columns of a file.

    Raises:
        ManifestError: It lacks a column that is named, has it twice, or has no URLs in any.
    """
    named = (wanted.url, wanted.caption, wanted.id, wanted.sha256, wanted.md5, *columns_of(conditions))
    is_all = ALL in wanted.keep
    if is_all:
        _refuse_repeated(table, sorted(table.repeated))
    _refuse_missing(table, [*named, *(() if is_all else wanted.keep)])
    table.check(conditions)
    url = wanted.url or _find_url(table)
    caption = wanted.caption or _find_caption(table, url)
    used = {url, caption}
    names = [column.name for column in table.columns]
    keep = [name for name in names if (name not in used if is_all else name in wanted.keep)]
    return ChosenColumns(url, caption, tuple(keep), wanted.id, wanted.sha256, wanted.md5)


def _refuse_missing(table: Table, named: Sequence[str | None]) -> None:
    names = {column.name for column in table.columns}
    missing = [name for name in dict.fromkeys(named) if name is not None and name not in names]
    _refuse_repeated(table, missing)
    if missing:
        known = [to_printable(column.name[:_MAX_SHOWN_CHARS]) for column in table.columns[:_MAX_COMPARED_NAMES]]
        raise ManifestError(
            f"{table.name} has no column {', '.join(map(to_printable, missing))}; "
            f"{did_you_mean(to_printable(missing[0]), known)}it has {_shown(table)}; name another one, or leave that "
            "file out"
        )


def _refuse_repeated(table: Table, names: Sequence[str]) -> None:
    """Check that no column is meant that is there twice.

    Raises:
        ManifestError: One is.
    """
    twice = [name for name in dict.fromkeys(names) if name in table.repeated]
    if twice:
        named = ", ".join(to_printable(name) for name in twice if name)
        shown = f"named {named}" if named else "without a name"
        raise ManifestError(f"{table.name} has several columns {shown}; leave one of each, or name others")


def _find_url(table: Table) -> str:
    """The column of the URLs: the first with a usual name that has some, or else the only one that has nothing else.

    If there is a single column, it may have something else, too.

    Raises:
        ManifestError: There is none, or several might be it.
    """
    if table.input_format is InputFormat.TXT:
        return table.columns[0].name
    possible = [column for column in table.columns if column.may_be_text or column.may_be_lists]
    if table.input_format is InputFormat.PARQUET and (certain := _by_name(possible, _CERTAIN_URL_NAMES)):
        return certain[0].name  # its type says that it has texts, and reading some may mean to request megabytes
    rows = table.first_rows([column.name for column in possible]) if possible else []
    by_name = _by_name(possible, _URL_NAMES)
    if found := next((column.name for column in by_name if _url_share(rows, column.name) > 0), None):
        return found
    if by_name and not rows:
        return by_name[0].name
    least_share = 1 if len(table.columns) > 1 else _LEAST_SHARE
    by_content = [column.name for column in possible if _url_share(rows, column.name) >= least_share]
    if len(by_content) == 1:
        return by_content[0]
    if by_content:
        raise ManifestError(
            f"{table.name} has URLs in several columns: {', '.join(map(to_printable, by_content))}; name one of them "
            "with --url-col"
        )
    _refuse_repeated(table, sorted(name for name in table.repeated if name.strip().casefold() in _URL_NAMES))
    raise ManifestError(
        f"the first rows of {table.name} have no URLs that begin with http:// or https://; its columns: "
        f"{_shown(table)}; name the column with --url-col"
    )


def _find_caption(table: Table, url: str) -> str | None:
    possible = [column for column in table.columns if column.may_be_text and column.name != url]
    by_name = _by_name(possible, _CAPTION_NAMES)
    if by_name:
        return by_name[0].name
    names = [column.name for column in table.columns]
    is_without_header = names == [f"{number}" for number in range(1, len(names) + 1)]
    return possible[0].name if is_without_header and len(possible) == 1 else None


def _by_name(columns: Sequence[Column], names: Sequence[str]) -> list[Column]:
    """The columns that have one of some names, in the order of the names, whatever their case."""
    return [column for name in names for column in columns if column.name.strip().casefold() == name]


def _url_share(rows: Sequence[ListRow], name: str) -> float:
    """The share of the values of a column that are URLs, or lists of some."""
    values = [row.get(name) for row in rows]
    found = [value for value in values if value is not None and value != ""]
    return sum(map(_has_url, found)) / len(found) if found else 0.0


def _has_url(value: object) -> bool:
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_list(value)
    if isinstance(value, list | tuple):
        return any(_has_url(one) for one in value if isinstance(one, str) and not one.startswith("["))
    return isinstance(value, str) and value.strip().lower().startswith(_URL_STARTS)


def parse_list(text: str) -> list[object] | None:
    """The list that a text is as JSON, as CSV files have them; None if it is none, or beyond a limit."""
    if max_parsed_bytes(text) > _MAX_LIST_BYTES:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_list = isinstance(value, list) and not is_nested_deeply(value, text.count("[") + text.count("{"))
    return value if is_list else None


def _shown(table: Table) -> str:
    names = [to_printable(column.name[:_MAX_SHOWN_CHARS]) for column in table.columns]
    more = f" and {len(names) - _MAX_SHOWN_NAMES} more" if len(names) > _MAX_SHOWN_NAMES else ""
    return f"{', '.join(names[:_MAX_SHOWN_NAMES])}{more}" if names else "no others"
