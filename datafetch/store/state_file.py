"""How files of the state folder are read: whole, and into a type that says what may be in them.

Rules: what lies in the state folder is files, and anything may be in them. The type's bounds are checked before a
value is passed on; keys that it does not have, which a later version may have written, are skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from datafetch.errors import ConfigurationError, raise_want

_T = TypeVar("_T")
_MAX_BYTES = 1 << 30  # equal.json has a bit and a quarter for each sample, and nothing else grows like it


def read_state_file(path: Path, kind: type[_T], damaged: ConfigurationError) -> _T | None:
    """The value that a JSON file holds.

    Args:
        path: The file.
        kind: Type of the value, with its bounds (``model.bounds``).
        damaged: Raised where the file holds something else; says which file it is and what to do.

    Returns:
        The value; None where there is no such file.

    Raises:
        ConfigurationError: The file is damaged, or can't be read.
        ResourceError: This machine has no descriptor or memory left to read it.
    """
    try:
        return _decode(path, kind)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError, IsADirectoryError, ConfigurationError) as error:
        raise damaged from error
    except OSError as error:
        raise_want(error)
        raise ConfigurationError(
            f"cannot read {path} ({error.strerror or error}); fix this and run the same command again"
        ) from error


def read_if_sound(path: Path, kind: type[_T]) -> _T | None:
    """The value that a JSON file holds, where the work goes on without it; None where there is none.

    Raises:
        ResourceError: This machine has no descriptor or memory left to read it.
    """
    try:
        return _decode(path, kind)
    except (ValueError, RecursionError, OSError, ConfigurationError) as error:
        raise_want(error)
        return None


def _decode(path: Path, kind: type[_T]) -> _T:
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES:,} bytes")
    return msgspec.json.decode(content, type=kind)
