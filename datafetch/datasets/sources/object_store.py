"""Files in the object stores of S3 and Google Cloud, by Arrow's own clients.

They take logins, regions and endpoints from the environment, as the tools of these stores do (``AWS_ACCESS_KEY_ID``,
``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS`` …), and block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from datafetch.errors import ConfigurationError, ManifestError, ResourceError, raise_if_exhausted
from datafetch.model.location import without_secrets

_SCHEMES = ("s3://", "gs://")
_PIECE_BYTES = 4 << 20
_MAX_FILES = 100_000
_MAX_RETRY_S = 30


def is_object_store(location: str) -> bool:
    """Whether a location is in an object store."""
    return location.startswith(_SCHEMES)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in an object store.

    Attributes:
        path: Its path in the store, bucket included.
        size_bytes: Its size.
        version: Its size and the time at which it was written, which change with its content.
    """

    path: str
    size_bytes: int
    version: str


def list_stored(location: str) -> dict[str, StoredFile]:
    """The files of a folder in an object store, by their names in it; or the one file that the location is.

    Raises:
        ConfigurationError: It names no bucket.
        ManifestError: The store does not give them.
    """
    if not urlsplit(location).netloc.rpartition("@")[2]:
        raise ConfigurationError("a location in an object store has a bucket: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER")
    with _reading(location):
        store, path = _open(location)
        import pyarrow.fs as arrow  # noqa: PLC0415 - its clients take a tenth of a second to load

        (found,) = store.get_file_info([path])
        if found.type == arrow.FileType.NotFound:
            raise ManifestError(f"there is no {without_secrets(location)}; check its spelling, or your login")
        if found.is_file:
            return {found.base_name: _stored(found)}
        entries = store.get_file_info(arrow.FileSelector(path, recursive=True))
        files = [entry for entry in entries if entry.is_file]
    if len(files) > _MAX_FILES:
        raise ManifestError(f"{without_secrets(location)} has {len(files):,} files; give the folder of the manifest")
    return {entry.path.removeprefix(path).lstrip("/"): _stored(entry) for entry in files}


def copy_stored(location: str, file: StoredFile, target: BinaryIO, on_bytes: Callable[[int], None]) -> None:
    """Copy a file from an object store.

    Args:
        location: The location that it was listed from.
        file: The file.
        target: Where to.
        on_bytes: Called with the size of each piece that was copied.

    Raises:
        ManifestError: The store does not give it, or as another file than was listed.
        OSError: The target can't be written.
    """
    copied_bytes = 0
    for piece in _pieces(location, file):
        target.write(piece)
        on_bytes(len(piece))
        copied_bytes += len(piece)
    if copied_bytes != file.size_bytes:
        raise ManifestError(f"{file.path} has changed since it was listed; run the same command again")


def _pieces(location: str, file: StoredFile) -> Iterator[bytes]:
    with _reading(location):
        store, _ = _open(location)
        stream = store.open_input_stream(file.path)
    with stream:
        while True:
            with _reading(location):
                piece = stream.read(_PIECE_BYTES)
            if not piece:
                return
            yield piece


def _open(location: str) -> tuple[Any, str]:
    import pyarrow.fs as arrow  # noqa: PLC0415 - its clients take a tenth of a second to load

    if location.startswith("gs://") and "?" not in location:
        location += f"?retry_limit_seconds={_MAX_RETRY_S}"  # the client's own limit is 15 minutes
    store, path = arrow.FileSystem.from_uri(location)
    return store, str(path).rstrip("/")


def _stored(entry: Any) -> StoredFile:
    return StoredFile(entry.path, entry.size, f"{entry.size} {entry.mtime_ns}")


@contextmanager
def _reading(location: str) -> Iterator[None]:
    try:
        yield
    except (ManifestError, ResourceError):
        raise
    except (OSError, ValueError) as error:  # Arrow's errors are of these kinds
        raise_if_exhausted(error)
        text = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise ManifestError(f"{without_secrets(location)} can't be read: {text}; check its name and login") from error
