"""Lists the manifest files of a source folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datafetch.errors import ManifestError, unreadable


def list_files(folder: Path, *suffixes: str) -> list[Path]:
    """List the files of a folder whose names end with one of the suffixes, sorted by name.

    Hidden files are left out. If the path is that of a file, it is the only one.

    Raises:
        ManifestError: There is no such folder, or no such file in it.
    """
    try:
        return _list_files(folder, suffixes)
    except OSError as error:
        raise unreadable(f"the folder {folder}", error) from error


def _list_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    if folder.is_file():
        return [folder]
    what = suffixes[0]
    if not folder.is_dir():
        raise ManifestError(f"there is no folder {folder}; --source takes the folder with the {what} files")
    paths = sorted(folder.iterdir())
    files = [path for path in paths if path.name.endswith(tuple(suffixes)) and not path.name.startswith(".")]
    if not files:
        raise ManifestError(f"the folder {folder} holds no {what} file; --source takes the folder that does")
    return files
