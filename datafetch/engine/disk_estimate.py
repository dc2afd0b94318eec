"""DiskEstimate: how much disk space an output will take, logged before a run begins.

Rules: the estimate follows from what is known without fetching anything: the maximum number of samples and the typical
size of an image. Once shards are published, the actual size of their rows is used instead.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datafetch.model.kinds import Payload
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.wording import counted, sized
from datafetch.store.layout import OutputLayout
from datafetch.store.shard_summary import sum_shard_counts
from datafetch.transcode import ImageFormat, ImageSpec, ResizeMode

_log = logging.getLogger(__name__)
_TYPICAL_PIXELS = 640_000  # of an image from the web that is not shrunk; the mean of 4,000 photographs
_TYPICAL_ASPECT_RATIO = 1.4  # long side to short side
_BYTES_PER_PIXEL = {ImageFormat.JPG: 0.17, ImageFormat.WEBP: 0.12, ImageFormat.PNG: 1.6}  # of quality 75
_BYTES_PER_ROW = 300  # without its images: text, URL and the pickle around them
MAX_COUNTED_SHARDS = 64
"""Of more published shards the counts are extrapolated from this many, since each has a file to be read."""


@dataclass(frozen=True, slots=True)
class DiskEstimate:
    """What the size of an output, or of a part of it, is estimated from.

    Attributes:
        samples: The maximum number of samples.
        spec: What an image becomes.
        payload: How a row holds its images.
        is_resharded: Whether the output is resharded, so that all rows are written twice.
        open_samples: About how many samples are in spools at the same time.
        is_part: Whether this is the part of the output that one of several processes writes.
    """

    samples: int
    spec: ImageSpec
    payload: Payload
    is_resharded: bool
    open_samples: int
    is_part: bool = False

    def part(self, share: float) -> DiskEstimate:
        """The estimate for a process that fetches a part of the shards and does not reshard.

        Args:
            share: The size of the part, from 0 to 1.
        """
        return replace(
            self,
            samples=round(self.samples * share),
            open_samples=min(self.open_samples, round(self.samples * share)),
            is_resharded=False,
            is_part=True,
        )


def log_disk_estimate(layout: OutputLayout, estimate: DiskEstimate, published: ShardCounts) -> None:
    """Log how much disk space the output will take; a warning if the disk has less.

    Args:
        layout: The paths of the output; its state folder exists.
        estimate: What the output will hold.
        published: What it holds already.
    """
    if layout.report.exists() or not estimate.samples:
        return  # the output was complete before or consists of a list, so hardly anything will be written
    needs = disk_needs(layout, estimate, published)
    part = " of this part of the output" if estimate.is_part else ""
    _log.log(logging.INFO if needs.is_enough else logging.WARNING, "estimated disk space%s: %s", part, needs.text())


@dataclass(frozen=True, slots=True)
class DiskNeeds:
    """What an output takes of the disk, and what there is.

    Attributes:
        result_bytes: Its size when it is done.
        needed_bytes: How much more than now is needed on the output's disk while it is made.
        free_bytes: How much of that disk is free.
        spool_bytes: The size of the spools.
        scratch: The scratch folder, if it is on another disk; otherwise None, and the spools are among what is needed.
        scratch_free_bytes: How much of the scratch folder's disk is free.
        keeps_earlier: Whether an earlier output, whose images are taken, lies there until this one is complete.
        is_begun: Whether a part of the output is there already.
        is_resharded: Whether its shards lie there twice for a while.
    """

    result_bytes: float
    needed_bytes: float
    free_bytes: int
    spool_bytes: float
    scratch: Path | None
    scratch_free_bytes: int
    keeps_earlier: bool
    is_begun: bool
    is_resharded: bool

    @property
    def is_enough(self) -> bool:
        """Whether there is as much as it takes, on both disks."""
        return self._is_enough_next_to_output and (self.scratch is None or self.scratch_free_bytes >= self.spool_bytes)

    @property
    def _is_enough_next_to_output(self) -> bool:
        return self.free_bytes >= self.needed_bytes

    def text(self) -> str:
        """All of this in one line for people, and what may happen if it is too little."""
        need, done, free, spools = map(sized, (self.needed_bytes, self.result_bytes, self.free_bytes, self.spool_bytes))
        more = "more " if self.is_begun else ""
        is_twice = self.is_resharded and not self._is_enough_next_to_output
        twice = " (shards lie there twice while they are resharded, not with --no-reshard)" if is_twice else ""
        earlier = " (the earlier output stays until then)" if self.keeps_earlier else ""
        in_scratch = ""
        if self.scratch is not None:
            in_scratch = (
                f"; spools may take up to {spools} in {self.scratch}, where {sized(self.scratch_free_bytes)} are free"
            )
        lack = "" if self.is_enough else "; the run may stop for lack of space, and can be resumed once there is enough"
        return (
            f"needs about {need} {more}while it works{twice}, {done} when done{earlier}; {free} free{in_scratch}{lack}"
        )


def disk_needs(layout: OutputLayout, estimate: DiskEstimate, published: ShardCounts) -> DiskNeeds:
    """What an output takes of the disk; the arguments are those of ``log_disk_estimate``."""
    left = max(0, estimate.samples - published.samples)
    row_bytes = published.written_bytes / published.rows if published.rows else _typical_row_bytes(estimate)
    result_bytes = published.written_bytes + left * row_bytes
    out_bytes = left * row_bytes + (result_bytes if estimate.is_resharded else 0)
    spool_bytes = min(left, estimate.open_samples) * row_bytes
    spools = layout.scratch or layout.state_folder
    is_shared = _device(spools) == _device(layout.state_folder)
    return DiskNeeds(
        result_bytes=result_bytes,
        needed_bytes=out_bytes + (spool_bytes if is_shared else 0),
        free_bytes=_free_bytes(layout.state_folder),
        spool_bytes=spool_bytes,
        scratch=None if is_shared else spools,
        scratch_free_bytes=_free_bytes(spools),
        keeps_earlier=layout.previous.exists(),
        is_begun=published.written_bytes > 0,
        is_resharded=estimate.is_resharded,
    )


def log_recipe_estimate(folder: Path, sizes: Mapping[str, int], planned: int) -> None:
    """Log how much disk space several datasets will take; a warning if the disk has less.

    Args:
        folder: A folder on that disk, which need not exist yet.
        sizes: About how many gigabytes each takes, by name.
        planned: The number of datasets that will be built, with those whose size is not known.
    """
    needed_bytes = sum(sizes.values()) * 10**9
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    free_bytes = _free_bytes(folder)
    is_enough = free_bytes >= needed_bytes
    _log.log(
        logging.INFO if is_enough else logging.WARNING,
        "%s will take about %s, downloads and caches included; %s are free%s",
        counted(planned, "dataset") if len(sizes) == planned else f"{len(sizes)} of {counted(planned, 'dataset')}",
        sized(needed_bytes),
        sized(free_bytes),
        ""
        if is_enough
        else f": the run may stop for lack of {sized(needed_bytes - free_bytes)}; take fewer datasets at "
        f"a time (the largest are {', '.join(largest)}), or another --root",
    )


def count_published(layout: OutputLayout, shards: Sequence[str]) -> ShardCounts:
    """Approximate counts of those shards that are published, extrapolated from at most 64 of their ledgers."""
    published = [shard for shard in shards if layout.ledger(shard).exists()]
    counted = sum_shard_counts(map(layout.ledger, published[:MAX_COUNTED_SHARDS]))
    scale = len(published) / max(1, min(len(published), MAX_COUNTED_SHARDS))
    return ShardCounts(
        samples=round(counted.samples * scale),
        rows=round(counted.rows * scale),
        outcomes={outcome: round(images * scale) for outcome, images in counted.outcomes.items()},
        written_bytes=round(counted.written_bytes * scale),
    )


def _typical_row_bytes(estimate: DiskEstimate) -> float:
    jpeg_bytes = _typical_pixels(estimate.spec) * _BYTES_PER_PIXEL[estimate.spec.image_format]
    return _BYTES_PER_ROW + jpeg_bytes * (4 / 3 if estimate.payload == Payload.BASE64 else 1)


def _typical_pixels(spec: ImageSpec) -> float:
    side_px = spec.short_side_px or spec.size_px
    if side_px is None:
        return _TYPICAL_PIXELS
    pixels: float = side_px**2
    if spec.resize_mode in (None, ResizeMode.KEEP_RATIO):
        pixels *= _TYPICAL_ASPECT_RATIO
    elif spec.resize_mode is ResizeMode.KEEP_RATIO_LARGEST:
        pixels /= _TYPICAL_ASPECT_RATIO
    enlarges = spec.resize_mode is not None and not spec.only_if_bigger
    return pixels if enlarges else min(_TYPICAL_PIXELS, pixels)


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(_existing(folder)).free


def _device(folder: Path) -> int:
    return _existing(folder).stat().st_dev


def _existing(folder: Path) -> Path:
    """The folder, or its nearest ancestor that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
