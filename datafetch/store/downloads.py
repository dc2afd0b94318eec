"""Where published files are kept that were downloaded: in the user's cache folder, one folder for each source.

A download in progress is a hidden file with what is there of it, and another one that says of which version. A file is
complete once it has its name; a hidden file beside it says of which version it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from datafetch.errors import ConfigurationError
from datafetch.model.location import without_secrets
from datafetch.model.regular_file import open_regular
from datafetch.store.atomic import make_folder, publish, write_atomically

_UNSAFE = re.compile(r"[^\w.-]+", re.ASCII)
_MAX_NAME_CHARS = 100


def cache_folder() -> Path:
    """The folder in which what can be downloaded again is kept: ``$XDG_CACHE_HOME/datafetch``, mostly ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "datafetch"


def downloads_of(location: str) -> Path:
    """The folder for the files of a source; its name has no secrets."""
    shown = without_secrets(location)
    digest = hashlib.sha256(shown.encode()).hexdigest()[:8]
    return cache_folder() / "downloads" / f"{_UNSAFE.sub('_', shown)[:_MAX_NAME_CHARS]}-{digest}"


def keep_only(folder: Path, names: Collection[str]) -> None:
    """Delete the files of a folder that its source no longer has."""
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith(".") and path.name not in names:
            path.unlink()


class DownloadedFile:
    """A file that is downloaded, or has been.

    Args:
        folder: The folder of its source.
        name: Its name there, which is safe.

    Attributes:
        path: The complete file.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / name
        self._part = folder / f".{name}.part"
        self._version = folder / f".{name}.version"
        self._part_version = folder / f".{name}.part.version"

    def is_there(self, version: str) -> bool:
        """Whether it is complete, of this version, and as long as it was."""
        return self.path.is_file() and _read(self._version) == _stored_version(self.path, version)

    def open_part(self, version: str) -> BinaryIO:
        """Open what is there of it, to append to it; a part of another version is dropped.

        Args:
            version: What changes with its content; empty if that is not known, so that it can't be resumed.

        Returns:
            The file, at its end. No other process has it open here.

        Raises:
            BlockingIOError: Another process downloads it now.
            ConfigurationError: Something else is in its place.
            OSError: The disk is full, for example.
        """
        if self.path.is_dir() or self._part.is_dir() or self._part.is_symlink():
            raise ConfigurationError(f"{self.path} is to be a download, and is something else; delete what is there")
        make_folder(self._part.parent)
        part = self._open_locked()
        try:
            if not version or _read(self._part_version) != version:
                part.truncate(0)
                write_atomically(self._part_version, version.encode())
        except BaseException:
            part.close()
            raise
        return part

    def _open_locked(self) -> BinaryIO:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            part = os.fdopen(os.open(self._part, flags, 0o666), "ab")
            try:
                fcntl.flock(part.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Between opening and locking, another process may have completed it: then it has its name now.
                if os.path.samestat(os.fstat(part.fileno()), self._part.lstat()):
                    return part
            except FileNotFoundError:
                pass
            except BaseException:
                part.close()
                raise
            part.close()

    def complete(self, part: BinaryIO, version: str, is_sound: Callable[[BinaryIO, int], bool] | None = None) -> bool:
        """Give the file its name, once all of it is written to the opened part.

        Args:
            part: The opened part.
            version: What changes with its content; empty if that is not known.
            is_sound: Takes the file and its size, and returns whether it arrived unharmed; None takes it as it is.

        Returns:
            Whether it has its name now; otherwise it is dropped.
        """
        part.flush()
        with open_regular(self._part) as written:
            if is_sound is not None and not is_sound(written, os.fstat(written.fileno()).st_size):
                self._part_version.unlink(missing_ok=True)
                return False
        self._version.unlink(missing_ok=True)
        publish(self._part, self.path)
        write_atomically(self._version, _stored_version(self.path, version).encode())
        self._part_version.unlink(missing_ok=True)
        return True


def _stored_version(path: Path, version: str) -> str:
    """A version with the size of the file, so that one that was cut later does not count as complete."""
    return f"{path.stat().st_size} {version}"


def _read(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text()
    return ""
