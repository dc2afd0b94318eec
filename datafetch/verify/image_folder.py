"""A folder of images that a JSON list refers to, or will: the trainer must be able to open every file in it.

Rules: no link is followed out of the folder, and only regular files are opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from datafetch.errors import ConfigurationError, raise_if_exhausted
from datafetch.model.kinds import Loader
from datafetch.verify.findings import Examination, ImageToDecode, Location, Problem
from datafetch.verify.record_list import read_image


class ImageFolder:
    """The images of a folder and its subfolders.

    Args:
        folder: The folder.

    Raises:
        ConfigurationError: There is no file in it.
    """

    def __init__(self, folder: Path) -> None:
        self.loader = Loader.TORCH
        self._folder = folder
        self._real_folder = os.path.realpath(folder)
        # Unknown: reading the sizes of half a million files beforehand would take longer than it is worth.
        self.total_bytes = 0
        if next(self._files(), None) is None:
            raise ConfigurationError(f"{folder} holds no file; give a folder of images")

    def examine(self) -> Iterator[Examination]:
        """Examine the files, folder by folder, in the order of their names. A link to a folder is a problem."""
        for path in self._files():
            location = Location(str(path.relative_to(self._folder)))
            try:
                body = read_image(path, self._real_folder)
            except (OSError, ValueError) as error:
                raise_if_exhausted(error)
                reason = (isinstance(error, OSError) and error.strerror) or str(error)
                yield Examination(1, (Problem(location, f"can't be read: {reason}"),))
            else:
                yield Examination(1, images=(ImageToDecode(location, body),), read_bytes=len(body))

    def _files(self) -> Iterator[Path]:
        for folder, folders, files in os.walk(self._folder, onerror=raise_if_exhausted):
            folders.sort()
            links = [name for name in folders if (Path(folder) / name).is_symlink()]  # os.walk does not follow them
            yield from (Path(folder) / name for name in sorted([*files, *links]))
