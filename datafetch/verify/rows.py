"""What the trainer's loaders demand of one row of a shard.

Rules: pure functions of a row that nobody vouches for; the names of its keys are VILA's. Whether an image decodes is
not for here, only whether there are bytes to decode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import pybase64

from datafetch.model.kinds import Loader

_MOST_IMAGES = 4096  # that are looked at in a document: a few bytes of each may be hundreds of what is said about it


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that a row holds: bytes of an image, or what is wrong.

    Attributes:
        body: The image as it is to be decoded; None where there is a fault.
        fault: In words.
        image: Its 0-based place in a row that may have several; -1 for what is no image of those.
    """

    body: bytes | None = None
    fault: str = ""
    image: int = -1


def examine_pair(row: Mapping[str, Any]) -> Iterator[Part]:
    """What the loader of pairs would meet: a text and an image, of either name the first that is there."""
    text = "text" if "text" in row else "caption"
    if text not in row:
        yield Part(fault="there is neither text nor caption")
    elif not isinstance(row[text], str):
        yield Part(fault=f"{text} is {_kind(row[text])}, not a str")
    if "image" in row:
        yield _from_base64("image", row["image"], image=-1)
    elif not isinstance(row.get("rawbytes"), bytes):
        yield Part(fault=f"rawbytes is {_kind(row['rawbytes'])}, not bytes" if "rawbytes" in row else "has no image")
    else:
        yield Part(row["rawbytes"])


def examine_document(row: Mapping[str, Any]) -> Iterator[Part]:
    """What the loader of documents would meet: texts, images that point at them, and a similarity row an image."""
    texts, images, similarities = row.get("text_list"), row.get("image_info"), row.get("similarity_matrix")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        yield Part(fault="text_list is not a list of str")
        texts = None
    if not isinstance(images, list) or not images:
        yield Part(fault="image_info is not a list with at least one image")
        images = []
    elif not isinstance(similarities, list):
        yield Part(fault=f"similarity_matrix is {_kind(similarities)}, not a list")
    elif len(similarities) != len(images):
        yield Part(fault=f"similarity_matrix has {len(similarities)} rows for {len(images)} images")
    if len(images) > _MOST_IMAGES:
        yield Part(fault=f"image_info has {len(images):,} images, of which the first {_MOST_IMAGES:,} are looked at")
    for number, image in enumerate(images[:_MOST_IMAGES]):
        yield from _examine_image(number, image, None if texts is None else len(texts))


def _examine_image(number: int, image: object, texts: int | None) -> Iterator[Part]:
    if not isinstance(image, dict):
        yield Part(fault=f"is {_kind(image)}, not a dict", image=number)
        return
    index = image.get("matched_text_index")
    if isinstance(index, bool) or not isinstance(index, Integral):
        yield Part(fault=f"matched_text_index is {_kind(index)}, not an int", image=number)
    elif texts is not None and not 0 <= int(index) < texts:
        yield Part(fault=f"matched_text_index does not point into the text_list of {texts}", image=number)
    yield _from_base64("image_base64", image.get("image_base64"), number)


def _from_base64(name: str, text: object, image: int) -> Part:
    if not isinstance(text, str):
        return Part(fault=f"{name} is {_kind(text)}, not a str", image=image)
    try:
        return Part(_decoded(text), image=image)
    except ValueError as error:
        return Part(fault=f"{name} is not base64 ({error})", image=image)


def _decoded(text: str) -> bytes:
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:  # some encoders break lines, and the trainer's decoder passes over that
        return pybase64.b64decode("".join(text.split()), validate=True)


def _kind(value: object) -> str:
    return "missing or None" if value is None else f"of type {type(value).__name__}"


def loader_of(row: Mapping[str, Any]) -> Loader:
    """Which loader a row is meant for, by its keys."""
    return Loader.MMC4 if {"text_list", "image_info"} & row.keys() else Loader.COYO


def key_of(row: Mapping[str, Any]) -> str:
    """A row's name among those of its dataset: its id, or where it comes from."""
    for name in ("id", "url"):
        value = row.get(name)
        # A whole number of millions of digits takes minutes to write.
        if isinstance(value, str) or (isinstance(value, int) and -(2**63) <= value < 2**64):
            return f"{name} {value}"
    return ""


EXAMINERS: Mapping[Loader, Callable[[Mapping[str, Any]], Iterator[Part]]] = {
    Loader.COYO: examine_pair,
    Loader.MMC4: examine_document,
}
