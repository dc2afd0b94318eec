"""What formats of lists say of a sample besides its images: the columns of img2dataset, by its names and types.

A row of such a format is what ``OutputRow`` has::

    {"key": str, "url": str or list of str, "caption": str or None, "columns": {name: value}, "types": {name: type}}

with ``caption`` only if the list has captions, and a type as in ``kept_columns`` for each kept column. What became of
the images is in the ledger lines that come with the row. If ``url`` is a list, whatever is said of an image is one,
too, with a value for each URL. In the parquet of a shard, all rows are of the same form (``with_lists``).

Rules: the columns come in img2dataset's order. A kept column that has one of its names gets another, so none is lost.

Source: img2dataset 1.47, ``downloader.py`` (columns, types, status, key), ``writer.py`` (caption, metadata),
``logger.py`` (statistics).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import TypeAlias

import orjson

from datafetch.datasets.filenames import why_refused
from datafetch.datasets.lists.kept_columns import kept_names
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import OK, FailureKind
from datafetch.model.sample import Row
from datafetch.output.row import OutputRow
from datafetch.store.ledger_format import escaped

SampleValues: TypeAlias = dict[str, object]
"""The columns of a sample: names → JSON-like values."""

CAPTION, IMAGE, KEY, URL, STATUS, ERROR_MESSAGE = "caption", "image", "key", "url", "status", "error_message"
OWN_COLUMNS = frozenset(
    {
        *(CAPTION, IMAGE, KEY, URL, STATUS, ERROR_MESSAGE),
        *("width", "height", "original_width", "original_height", "exif", "sha256"),
    }
)


class Status(StrEnum):
    """What became of an image, in img2dataset's words."""

    SUCCESS = "success"
    FAILED_TO_DOWNLOAD = "failed_to_download"
    FAILED_TO_RESIZE = "failed_to_resize"
    """It arrived, and could not be decoded, or is not wanted as it is."""

    @classmethod
    def of(cls, line: LedgerLine) -> Status:
        """The status of an image."""
        return cls.SUCCESS if line.outcome == OK else _status_of_failure(FailureKind(line.outcome))


def _status_of_failure(kind: FailureKind) -> Status:
    match kind:  # mypy sees when one is forgotten
        case (
            FailureKind.NOT_AN_IMAGE
            | FailureKind.TRUNCATED
            | FailureKind.TOO_MANY_PIXELS
            | FailureKind.TOO_SMALL
            | FailureKind.AREA_TOO_LARGE
            | FailureKind.ASPECT_RATIO_TOO_LARGE
            | FailureKind.CORRUPT
            | FailureKind.PLACEHOLDER
            | FailureKind.WORKER_CRASHED
        ):
            return Status.FAILED_TO_RESIZE
        case (
            FailureKind.BAD_URL
            | FailureKind.BLOCKED_ADDRESS
            | FailureKind.DNS_NOT_FOUND
            | FailureKind.DNS_FAILED
            | FailureKind.CONNECT
            | FailureKind.TLS
            | FailureKind.TIMEOUT
            | FailureKind.DISCONNECTED
            | FailureKind.HTTP_STATUS
            | FailureKind.TOO_MANY_REDIRECTS
            | FailureKind.TOO_LARGE
            | FailureKind.EMPTY
            | FailureKind.OPTED_OUT
            | FailureKind.HOST_DOWN
            | FailureKind.NOT_REQUESTED
            | FailureKind.MISSING_MEMBER
            | FailureKind.BAD_MEMBER
            | FailureKind.HASH_MISMATCH
        ):
            return Status.FAILED_TO_DOWNLOAD


def has_several(row: OutputRow) -> bool:
    """Whether the URLs of a row are a list, so that it may have several images, or none."""
    return is_list(row.values[URL])


def is_list(url: object) -> bool:
    """Whether the URLs of a row are a list."""
    return isinstance(url, list | tuple)


def with_lists(row: SampleValues) -> SampleValues:
    """The columns of a sample in a shard in which URLs are lists, also if its own are none, as where they are null."""
    return row if is_list(row[URL]) else {name: [one] if name in _LISTED else one for name, one in row.items()}


def without_lists(row: SampleValues) -> SampleValues:
    """The columns of a sample in a shard in which URLs are no lists.

    Of a list as URL, which a file may have after thousands of rows without, it has all URLs as JSON, and else what is
    said of the first.
    """
    if not is_list(row[URL]):
        return row
    own: SampleValues = {URL: metadata_json({URL: row[URL]}).decode()}
    for name in _LISTED & row.keys() - {URL}:
        values = row[name]
        if isinstance(values, list):
            own[name] = values[0] if values else _FAILED.get(name)
    return row | own


def sample_values(row: OutputRow) -> SampleValues:
    """The columns of a sample."""
    values = row.values
    columns = _columns(values)
    names = kept_names(columns, OWN_COLUMNS)
    lines = [image.line for image in row.images]
    of_images: SampleValues = (
        {name: [_of_image(line)[name] for line in lines] for name in _NAMES_OF_IMAGES}
        if has_several(row)
        else _of_image(lines[0] if lines else None)
    )
    return {
        **{names[name]: value for name, value in columns.items()},
        **({CAPTION: values[CAPTION]} if CAPTION in values else {}),
        URL: values[URL],
        KEY: values[KEY],
        **of_images,
    }


def kept_types(values: Row) -> dict[str, str]:
    """The types of the kept columns of a row, by their names in the output, as far as they are given."""
    names, types = kept_names(_columns(values), OWN_COLUMNS), values.get("types")
    assert types is None or isinstance(types, Mapping), "types are a mapping"
    return {names[name]: str(kind) for name, kind in (types or {}).items() if name in names}


def _columns(values: Row) -> Mapping[str, object]:
    columns = values.get("columns") or {}
    assert isinstance(columns, Mapping), "columns are a mapping"
    return columns


def _of_image(line: LedgerLine | None) -> SampleValues:
    """What is said of an image; None if the sample has no URL."""
    if line is None:
        return _FAILED | {ERROR_MESSAGE: FailureKind.BAD_URL.value}
    failure = line.failure
    if failure is not None:
        return _FAILED | {STATUS: Status.of(line).value, ERROR_MESSAGE: failure.reason}
    return {
        STATUS: Status.SUCCESS.value,
        ERROR_MESSAGE: None,
        "width": line.width,
        "height": line.height,
        "original_width": line.width if line.received_width is None else line.received_width,
        "original_height": line.height if line.received_height is None else line.received_height,
        "exif": None,
        "sha256": line.sha256,
    }


_NAMES_OF_IMAGES = (
    *(STATUS, ERROR_MESSAGE),
    *("width", "height", "original_width", "original_height", "exif", "sha256"),
)
_LISTED = frozenset({URL, IMAGE, *_NAMES_OF_IMAGES})
_FAILED: SampleValues = {**dict.fromkeys(_NAMES_OF_IMAGES), STATUS: Status.FAILED_TO_DOWNLOAD.value}


def caption_text(values: SampleValues) -> bytes | None:
    """The caption as a text file has it, empty where it is null; None if the list has no captions."""
    if CAPTION not in values:
        return None
    caption = values[CAPTION]
    return b"" if caption is None else str(escaped(caption)).encode()


def metadata_json(values: SampleValues) -> bytes:
    """The columns of a sample as valid JSON, whatever values a list has: NaN becomes null."""
    try:
        return orjson.dumps(values)
    except TypeError:  # a lone surrogate, or an integer of more than 64 bits
        return json.dumps(_without_nan(values)).encode("ascii")


def _without_nan(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _without_nan(element) for name, element in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(element) for element in value]
    return value


def image_name(key: str, number: int | None, suffix: str) -> str:
    """The name of the file of an image: ``<key>.jpg``, or ``<key>.0.jpg`` … if the URLs are a list.

    Args:
        key: The sample's key.
        number: The 0-based position of the image among the URLs; None if they are no list.
        suffix: Its suffix by its content, with the dot.
    """
    return f"{key}{suffix}" if number is None else f"{key}.{number}{suffix}"


def require_plain_key(values: SampleValues) -> str:
    """The key of a sample, which its dataset has made: a part of file names, in which a dot begins the suffix."""
    key = values[KEY]
    assert isinstance(key, str), "keys are text"
    assert not why_refused(key), why_refused(key)
    assert "/" not in key, "a key names no folder"
    assert "." not in key, "readers take what follows a dot for the suffix"
    assert not key.startswith("__"), "readers skip such names"
    return key
