"""Rows on their way into a shard: complete but for their images, which stay in the spool until they are written.

A dataset builds a row from a sample and its images, and a sample may have 256 MiB of images. So the row is built with a
placeholder for each image, and whoever writes the row puts the images in the placeholders' place, one at a time.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import pybase64

from datafetch.model.sample import Row

NUMBER_BYTES = 3
# Random, so that nothing from the web can be taken for one; 24 bytes with the number, of which base64 leaves no rest.
PLACEHOLDER_PREFIX = os.urandom(21)
PLACEHOLDER_BYTES = len(PLACEHOLDER_PREFIX) + NUMBER_BYTES
PLACEHOLDER_PREFIX_TEXT = b64encode(PLACEHOLDER_PREFIX)


class StoredImage(Protocol):
    """An image whose size is known and whose bytes are loaded when they are needed."""

    @property
    def jpeg_bytes(self) -> int:
        """The size of the JPEG."""
        ...

    def load(self) -> LoadedImage:
        """The image with its JPEG."""
        ...


class LoadedImage(Protocol):
    """An image in memory."""

    @property
    def jpeg(self) -> bytes:
        """The JPEG."""
        ...


def placeholder(image: int) -> bytes:
    """What a row holds in place of a sample's image, as bytes or as the base64 of them.

    Args:
        image: The image's 0-based position in its sample.
    """
    return PLACEHOLDER_PREFIX + image.to_bytes(NUMBER_BYTES, "big")


@dataclass(frozen=True, slots=True)
class OutputRow:
    """A row to be written.

    Attributes:
        values: The row, with ``placeholder(n)`` where ``images[n]`` belongs.
        images: The images of the row's sample.
    """

    values: Row
    images: Sequence[StoredImage] = ()

    def load(self) -> Row:
        """The row with its images, all of them in memory at once; for formats that cannot be written in pieces."""
        return {name: self._filled(value) for name, value in self.values.items()}

    def _filled(self, value: object) -> object:
        if isinstance(value, bytes) and len(value) == PLACEHOLDER_BYTES and value.startswith(PLACEHOLDER_PREFIX):
            return self._jpeg(value)
        if isinstance(value, str) and value.isascii() and value.encode().startswith(PLACEHOLDER_PREFIX_TEXT):
            return pybase64.b64encode(self._jpeg(pybase64.b64decode(value))).decode("ascii")
        if isinstance(value, Mapping):
            return {name: self._filled(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(self._filled, value))
        return value

    def _jpeg(self, found: bytes) -> bytes:
        return self.images[int.from_bytes(found[-NUMBER_BYTES:], "big")].load().jpeg
