"""Rows to be written, whose images stay in the spool until the moment of writing.

A dataset builds a row from a sample and its images, and the images of one sample may take 256 MiB. So the row is built
with a placeholder for each image, and the writer replaces the placeholders by the images, one at a time.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pybase64

from datafetch.model.sample import Row
from datafetch.store.spool_format import SpooledImage

NUMBER_BYTES = 3
# Random, so that nothing from the web can be mistaken for one; with the number 24 bytes, for base64 without padding.
PLACEHOLDER_PREFIX = os.urandom(21)
PLACEHOLDER_BYTES = len(PLACEHOLDER_PREFIX) + NUMBER_BYTES
PLACEHOLDER_PREFIX_TEXT = b64encode(PLACEHOLDER_PREFIX)


def placeholder(image: int) -> bytes:
    """What a row holds in place of a sample's image, as bytes or as their base64.

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
    images: Sequence[SpooledImage] = ()

    def load(self, *, as_text: bool = False) -> Row:
        """The row with all of its images in memory at once, for formats that can't be written in pieces.

        Args:
            as_text: Whether images that the row holds as bytes become base64, for formats without bytes.
        """
        return {name: self._fill(value, as_text) for name, value in self.values.items()}

    def _fill(self, value: object, as_text: bool) -> object:
        if isinstance(value, bytes) and len(value) == PLACEHOLDER_BYTES and value.startswith(PLACEHOLDER_PREFIX):
            jpeg = self._jpeg(value)
            return pybase64.b64encode_as_string(jpeg) if as_text else jpeg
        if isinstance(value, str) and value.isascii() and value.encode().startswith(PLACEHOLDER_PREFIX_TEXT):
            return pybase64.b64encode_as_string(self._jpeg(pybase64.b64decode(value)))
        if isinstance(value, Mapping):
            return {name: self._fill(element, as_text) for name, element in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._fill(element, as_text) for element in value)
        return value

    def _jpeg(self, found_placeholder: bytes) -> bytes:
        return self.images[int.from_bytes(found_placeholder[-NUMBER_BYTES:], "big")].load().jpeg
