"""Read JSON files of the state folder into typed, validated values.

Rules: files of the state folder may contain anything, so a value is checked against the bounds of its type before it is
used. Keys that the type does not have, which a later version may have written, are ignored.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from datafetch.errors import ConfigurationError, raise_if_exhausted
from datafetch.model.regular_file import NotRegularFileError, open_regular

_T = TypeVar("_T")
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}
_building = threading.Lock()  # two threads that are the first to decode a type can crash msgspec (0.22)
_MAX_BYTES = 1 << 30  # equal.json has 1.25 bits per sample; no other state file grows with the samples


def read_state_file(
    path: Path, kind: type[_T], damaged: ConfigurationError, *, max_bytes: int | None = None
) -> _T | None:
    """Read the value in a JSON file.

    Args:
        path: The file.
        kind: The type of the value, with its bounds (``model.bounds``).
        damaged: The error to raise if the file holds anything else; its message names the file and what to do.
        max_bytes: The size of the largest file that is read; None for that of any state file.

    Returns:
        The value; None if the file does not exist.

    Raises:
        ConfigurationError: The file is damaged, or can't be read.
        ResourceError: This machine has run out of descriptors or memory.
    """
    try:
        return _decode(path, kind, _MAX_BYTES if max_bytes is None else max_bytes)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError, NotRegularFileError, ConfigurationError) as error:
        raise damaged from error
    except OSError as error:
        raise_if_exhausted(error)
        raise ConfigurationError(
            f"cannot read {path} ({error.strerror or error}); fix this and run the same command again"
        ) from error


def read_if_sound(path: Path, kind: type[_T]) -> _T | None:
    """Read the value in a JSON file that the work can do without; None if it is missing or damaged.

    Raises:
        ResourceError: This machine has run out of descriptors or memory.
    """
    try:
        return _decode(path, kind, _MAX_BYTES)
    except (ValueError, RecursionError, OSError, ConfigurationError) as error:
        raise_if_exhausted(error)
        return None


def _decode(path: Path, kind: type[_T], max_bytes: int) -> _T:
    with open_regular(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"more than {max_bytes:,} bytes")
    return _decoder_of(kind).decode(content)


def _decoder_of(kind: type[_T]) -> msgspec.json.Decoder[_T]:
    with _building:
        if kind not in _decoders:
            _decoders[kind] = msgspec.json.Decoder(kind)
        return _decoders[kind]
