"""What a run will need of the disk, said before it begins.

Rules: an estimate from what is known without fetching anything: so many images at most, of about such a size. Once
shards are published, their rows' real size is what is counted with.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datafetch.model.kinds import Payload
from datafetch.model.ledger_line import ShardCounts
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger import sum_shard_counts
from datafetch.transcode import ImageSpec

_log = logging.getLogger(__name__)
_TYPICAL_PIXELS = 640_000  # of an image of the web that is not shrunk; mean of 4,000 photographs
_TYPICAL_SHAPE = 1.4  # long side by short side
_BYTES_A_PIXEL = 0.17  # of a JPEG of quality 75
_SHARDS_LOOKED_AT = 64
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")
_BYTES_A_ROW = 300  # its text, its URL, and what they are wrapped in


@dataclass(frozen=True, slots=True)
class DiskEstimate:
    """What a run is going to write.

    Attributes:
        samples: At most so many.
        images_a_sample: About.
        is_part: Whether it is a part of the output, that one of several processes writes.
        spec: What an image becomes.
        payload: How a row holds it.
        is_resharded: Whether all rows are written once more.
        open_samples: Samples in the spools at once, about.
    """

    samples: int
    spec: ImageSpec
    payload: Payload
    is_resharded: bool
    open_samples: int
    images_a_sample: float = 1.0
    is_part: bool = False

    def part(self, share: float) -> DiskEstimate:
        """What a process will write that fetches a share of the shards; others reshard them."""
        return replace(
            self,
            samples=round(self.samples * share),
            open_samples=min(self.open_samples, round(self.samples * share)),
            is_resharded=False,
            is_part=True,
        )


def log_disk_estimate(layout: OutputLayout, need: DiskEstimate, published: ShardCounts) -> None:
    """Log what the result will take of the disk; as a warning where it can't hold it.

    Args:
        layout: Of the output; its folder is there.
        need: What all of it takes.
        published: What is there already.
    """
    if layout.report.exists():
        return  # it was complete: whatever there is to do, hardly anything will be written
    left = max(0, need.samples - published.samples)
    row_bytes = published.written_bytes / published.rows if published.rows else _typical_row_bytes(need)
    result_bytes = published.written_bytes + left * row_bytes
    out_bytes = left * row_bytes + (result_bytes if need.is_resharded else 0)
    spool_bytes = min(left, need.open_samples) * row_bytes
    spools = layout.scratch or layout.folder
    is_shared = _device(spools) == _device(layout.folder)
    _say(layout.folder, need, result_bytes, out_bytes + (spool_bytes if is_shared else 0))
    free_bytes = _free_bytes(spools)
    if not is_shared and free_bytes < spool_bytes:
        _log.warning("spools may take up to %s in %s, where %s are free", _size(spool_bytes), spools, _size(free_bytes))


def count_published(layout: OutputLayout, shards: Sequence[str]) -> ShardCounts:
    """About what is there already of some shards, by the ledgers of a few of them: there may be tens of thousands."""
    published = [shard for shard in shards if layout.ledger(shard).exists()]
    looked_at = sum_shard_counts(map(layout.ledger, published[:_SHARDS_LOOKED_AT]))
    scale = len(published) / max(1, min(len(published), _SHARDS_LOOKED_AT))
    return ShardCounts(
        samples=round(looked_at.samples * scale),
        rows=round(looked_at.rows * scale),
        written_bytes=round(looked_at.written_bytes * scale),
    )


def _say(folder: Path, need: DiskEstimate, result_bytes: float, needed_bytes: float) -> None:
    free_bytes = _free_bytes(folder)
    is_enough = free_bytes >= needed_bytes
    _log.log(
        logging.INFO if is_enough else logging.WARNING,
        "%s will take up to about %s%s; %s more are needed and %s are free%s",
        "this part of the output" if need.is_part else "the output",
        _size(result_bytes),
        ", and its shards lie there twice while they are resharded (not with --no-reshard)"
        if need.is_resharded
        else "",
        _size(needed_bytes),
        _size(free_bytes),
        "" if is_enough else ": the run may stop for lack of space, and can be resumed once there is enough",
    )


def _size(size_bytes: float) -> str:
    """In decimal units, as disks are sold and ``df -H`` prints them."""
    thousands = min(int(math.log10(max(size_bytes, 1))) // 3, len(_UNITS) - 1)
    return f"{size_bytes / 1000**thousands:.{min(thousands, 1)}f} {_UNITS[thousands]}"


def _typical_row_bytes(need: DiskEstimate) -> float:
    short_side_px = need.spec.short_side_px
    pixels = _TYPICAL_PIXELS if short_side_px is None else min(_TYPICAL_PIXELS, short_side_px**2 * _TYPICAL_SHAPE)
    jpeg_bytes = pixels * _BYTES_A_PIXEL * need.images_a_sample
    return _BYTES_A_ROW + jpeg_bytes * (4 / 3 if need.payload == Payload.BASE64 else 1)


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(_existing(folder)).free


def _device(folder: Path) -> int:
    return _existing(folder).stat().st_dev


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
