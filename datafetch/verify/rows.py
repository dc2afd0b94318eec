"""What the trainer's loaders require of one row of a shard.

Rules: pure functions of an untrusted row, whose keys are named as in VILA. They check that there are bytes of an image,
but not whether these can be decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import pybase64

from datafetch.model.kinds import Loader

_MAX_IMAGES = 4096  # per document; a problem takes hundreds of bytes, and its cause in the row only a few


@dataclass(frozen=True, slots=True)
class RowPart:
    """One finding in a row: an encoded image, or a problem.

    Attributes:
        body: The encoded image; None if this is a problem.
        problem: A description of the problem.
        image: The 0-based position of the image in a row that may have several; -1 otherwise.
    """

    body: bytes | None = field(default=None, repr=False)
    problem: str = ""
    image: int = -1


def examine_pair(row: Mapping[str, Any]) -> Iterator[RowPart]:
    """Examine a row as the loader of pairs reads it: a text or caption, and an image or raw bytes."""
    text = "text" if "text" in row else "caption"
    if text not in row:
        yield RowPart(problem="has neither text nor caption")
    elif not isinstance(row[text], str):
        yield RowPart(problem=f"{text} is {_type_name(row[text])}, not a str")
    if "image" in row:
        yield _from_base64("image", row["image"], image=-1)
    elif "rawbytes" not in row:
        yield RowPart(problem="has no image")
    elif not isinstance(row["rawbytes"], bytes):
        yield RowPart(problem=f"rawbytes is {_type_name(row['rawbytes'])}, not bytes")
    else:
        yield RowPart(row["rawbytes"])


def examine_document(row: Mapping[str, Any]) -> Iterator[RowPart]:
    """Examine a row as the loader of documents reads it: texts, images that point at them, and similarities."""
    texts, images, similarities = row.get("text_list"), row.get("image_info"), row.get("similarity_matrix")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        yield RowPart(problem="text_list is not a list of str")
        texts = None
    if not isinstance(images, list) or not images:
        yield RowPart(problem="image_info is not a list with at least one image")
        images = []
    elif not isinstance(similarities, list):
        yield RowPart(problem=f"similarity_matrix is {_type_name(similarities)}, not a list")
    elif len(similarities) != len(images):
        yield RowPart(problem=f"similarity_matrix has {len(similarities)} rows for {len(images)} images")
    if len(images) > _MAX_IMAGES:
        yield RowPart(problem=f"image_info has {len(images):,} images; only the first {_MAX_IMAGES:,} were checked")
    for number, image in enumerate(images[:_MAX_IMAGES]):
        yield from _examine_image(number, image, None if texts is None else len(texts))


def _examine_image(number: int, image: object, texts: int | None) -> Iterator[RowPart]:
    if not isinstance(image, dict):
        yield RowPart(problem=f"is {_type_name(image)}, not a dict", image=number)
        return
    index = image.get("matched_text_index")
    if isinstance(index, bool) or not isinstance(index, Integral):
        yield RowPart(problem=f"matched_text_index is {_type_name(index)}, not an int", image=number)
    elif texts is not None and not 0 <= int(index) < texts:
        yield RowPart(problem=f"matched_text_index does not point into the text_list of {texts}", image=number)
    yield _from_base64("image_base64", image.get("image_base64"), number)


def _from_base64(name: str, text: object, image: int) -> RowPart:
    if not isinstance(text, str):
        return RowPart(problem=f"{name} is {_type_name(text)}, not a str", image=image)
    try:
        return RowPart(_decoded(text), image=image)
    except ValueError as error:
        return RowPart(problem=f"{name} is not base64 ({error})", image=image)


def _decoded(text: str) -> bytes:
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:  # some encoders insert line breaks, which the trainer's decoder ignores
        return pybase64.b64decode("".join(text.split()), validate=True)


def _type_name(value: object) -> str:
    return "missing or None" if value is None else f"of type {type(value).__name__}"


def detect_loader(row: Mapping[str, Any]) -> Loader:
    """Determine by its keys which loader a row is meant for."""
    return Loader.MMC4 if {"text_list", "image_info"} & row.keys() else Loader.COYO


def row_key(row: Mapping[str, Any]) -> str:
    """Return what identifies a row within its dataset: its id or its URL; empty if it has neither."""
    for name in ("id", "url"):
        value = row.get(name)
        # Formatting an integer of millions of digits takes minutes.
        if isinstance(value, str) or (isinstance(value, int) and -(2**63) <= value < 2**64):
            return f"{name} {value}"
    return ""


EXAMINERS: Mapping[Loader, Callable[[Mapping[str, Any]], Iterator[RowPart]]] = {
    Loader.COYO: examine_pair,
    Loader.MMC4: examine_document,
}
