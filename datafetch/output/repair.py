"""Which images of a lost row are fetched again.

Rules: both the source of a repair's samples and the merge of its results decide by this module, so they can't disagree.
"""

from __future__ import annotations

from dataclasses import replace

from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import OK
from datafetch.store.spool_format import ImageResult, SpooledImage
from datafetch.store.spool_reader import SpooledSample


def images_to_keep(stored: SpooledSample | None, lines: tuple[LedgerLine, ...]) -> tuple[SpooledImage, ...]:
    """The results of those of a sample's images that need not be fetched to write its row again, unchanged.

    That is a failure, which a retry may fetch, and an image that was kept for a retry since another one had failed.

    Args:
        stored: The sample and its images that arrived, if it was kept for a retry.
        lines: The ledger lines of all of its images.
    """
    arrived = {} if stored is None else {image.line.image: image for image in stored.images}
    return tuple(
        replace(arrived[line.image], line=line) if line.image in arrived else ImageResult(line, b"")
        for line in lines
        if line.image in arrived or line.outcome != OK
    )
