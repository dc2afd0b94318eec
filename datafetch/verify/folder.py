"""A folder of images that some list names, or will name: every file in it is one that the trainer can open.

Rules: nothing is followed out of the folder, and only ordinary files are opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from datafetch.errors import ConfigurationError, raise_want
from datafetch.model.kinds import Loader
from datafetch.verify.findings import Examined, FoundImage, Place, Problem
from datafetch.verify.torch import read_image


class ImageFolder:
    """The images of a folder and of those in it.

    Raises:
        ConfigurationError: There is none.
    """

    def __init__(self, folder: Path) -> None:
        self.loader = Loader.TORCH
        self._folder = folder
        self._real_folder = os.path.realpath(folder)
        # The sizes are not asked for beforehand: half a million files take longer to be asked than to be counted.
        self.total_bytes = 0
        if next(self._files(), None) is None:
            raise ConfigurationError(f"{folder} holds no file; give a folder of images")

    def examine(self) -> Iterator[Examined]:
        """Examine the files, folder by folder, in the order of their names; a link to a folder is a problem."""
        for path in self._files():
            place = Place(str(path.relative_to(self._folder)))
            try:
                body = read_image(path, self._real_folder)
            except (OSError, ValueError) as error:
                raise_want(error)
                reason = (isinstance(error, OSError) and error.strerror) or str(error)
                yield Examined(1, (Problem(place, f"can't be read: {reason}"),))
            else:
                yield Examined(1, images=(FoundImage(place, body),), read_bytes=len(body))

    def _files(self) -> Iterator[Path]:
        for folder, folders, files in os.walk(self._folder, onerror=raise_want):
            folders.sort()
            links = [name for name in folders if (Path(folder) / name).is_symlink()]  # which are not walked into
            yield from (Path(folder) / name for name in sorted([*files, *links]))
