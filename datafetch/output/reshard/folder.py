"""The command ``reshard``: write a folder of pickle shards again as shards for a number of ranks.

Rules: the source is never changed, and an existing output is never overwritten. The first row tells whether the rows
are pairs or documents, and so which loader reads them and which defaults apply.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET, UnsetType

from datafetch.errors import (
    ConfigurationError,
    ManifestError,
    ResourceError,
    raise_if_exhausted,
    unreadable,
)
from datafetch.model.fields import check_types, require_in_range
from datafetch.model.kinds import Loader
from datafetch.model.options import Option, OptionGroup, option
from datafetch.model.untrusted import short_repr
from datafetch.output.formats import COUNT_SUFFIX, ROWS_SUFFIX, decode_row, read_count, read_frames
from datafetch.output.reshard.copy import ProgressMonitor, reshard_rows
from datafetch.output.reshard.plan import Plan, Source, fingerprint, permutation
from datafetch.output.reshard.ranks import (
    BATCH,
    DEFAULT_BATCH,
    DEFAULT_WORLD_SIZE,
    GROUP,
    GROUP_OF,
    SHUFFLE_OF,
    WORLD_SIZE,
    Epoch,
    Ranks,
    epoch,
    shard_sizes,
)
from datafetch.output.reshard.record import ReshardRecord, read_reshard_record
from datafetch.output.reshard.swap import complete_swap
from datafetch.store.atomic import LINK_ADVICE, leads_out, make_folder, refuse_links
from datafetch.store.layout import OutputLayout
from datafetch.store.lock import NO_LOCK, Lock, locks_where_possible
from datafetch.store.state_file import read_if_sound

_MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ReshardRequest:
    """A request to reshard a folder.

    Attributes:
        source: A folder of shards, written by datafetch or by VILA's own scripts.
        out: The output folder: new, empty, or written for an equal request.
        world_size: The number of ranks.
        batch: The number of groups that a rank takes in one step.
        group: The number of samples that the loader takes together; None for the default of the rows' loader.
        shuffle: The seed of the order of the rows; None keeps their order, and unset takes the default of their loader.
        no_lock: Run without a lock; the operator makes sure that no other run uses the output.
    """

    source: Path
    out: Path
    world_size: int = option(DEFAULT_WORLD_SIZE, WORLD_SIZE)
    batch: int = option(DEFAULT_BATCH, BATCH)
    group: int | None = option(None, GROUP)
    shuffle: int | UnsetType | None = option(
        UNSET,
        Option(
            help="Shuffle all rows.",
            group=OptionGroup.BEHAVIOUR,
            metavar="SEED|none",
            unset="0 for pairs, none for documents",
            none_word="none",
        ),
    )
    no_lock: bool = option(False, NO_LOCK)

    def __post_init__(self) -> None:
        """Refuse values of other types; a path may be given as a string."""
        check_types(self)

    def plan(self, loader: Loader) -> Plan:
        """The plan for rows that a loader reads, whose defaults are used for what was not set.

        Raises:
            ConfigurationError: A value is out of range.
        """
        ranks = Ranks(self.world_size, self.batch, GROUP_OF[loader] if self.group is None else self.group)
        seed = SHUFFLE_OF[loader] if self.shuffle is UNSET else self.shuffle
        if seed is not None:
            require_in_range(self, "shuffle", 0, _MAX_SEED, seed)
        return Plan(ranks, seed)


@dataclass(frozen=True, slots=True)
class Resharded:
    """The new shards of a request, and what the ranks read of them.

    Attributes:
        out: The folder that holds them.
        plan: How they were made.
        epoch: What the ranks read in one epoch.
        shards: The number of shards.
        total_bytes: The size of all shards, without their counts.
        is_new: Whether this call made them; False if they existed already.
    """

    out: Path
    plan: Plan
    epoch: Epoch
    shards: int
    total_bytes: int
    is_new: bool

    def summary(self) -> dict[str, Any]:
        """The JSON object that ``--json`` prints."""
        return {
            "out": str(self.out),
            "rows": self.epoch.samples,
            "shards": self.shards,
            **self.plan.identity_fields(),
            "samples_per_rank": self.epoch.groups * self.plan.ranks.group,
            "used": self.epoch.used,
            "lost_share": self.epoch.lost_share,
            "bytes": self.total_bytes,
        }


def reshard(request: ReshardRequest, monitor: ProgressMonitor | None = None) -> Resharded | None:
    """Reshard a folder of shards; an interrupted attempt is resumed.

    Args:
        request: What to make.
        monitor: Observes the work, and can stop it.

    Returns:
        The shards; None if ``monitor`` stopped the work, which the same request resumes.

    Raises:
        ConfigurationError: The request is not possible, or the output holds something else.
        ManifestError: The source is not a folder of complete shards.
        ResourceError: The disk is full or can't be written; the same request resumes the work.
    """
    if not isinstance(request, ReshardRequest):
        raise ConfigurationError(
            f"a ReshardRequest is needed, not {short_repr(request)}; write ReshardRequest(source, out)"
        )
    layout = OutputLayout(_absolute(request.out))
    _refuse_overlap(request.source, layout)
    paths = _shards(request.source)
    counts = [_count(path) for path in paths]
    plan = request.plan(_loader(paths, counts))
    made_from = [fingerprint(path) for path in paths]
    shard_sizes(sum(counts), plan.ranks)  # refuses too few before anything is written
    if not layout.state_folder.exists():
        _refuse_existing(layout)
    with _locked_output(layout, is_alone=request.no_lock):
        complete_swap(layout)
        made = _find_made(layout, plan, made_from)
        if made is not None:
            return _resharded(layout, made, is_new=False)
        _refuse_existing(layout)
        sources = _sources(paths, counts, plan)
        if not reshard_rows(layout, sources, plan=plan, made_from=made_from, monitor=monitor):
            return None
    made = read_reshard_record(layout)
    assert made is not None  # reshard_rows ends with it
    return _resharded(layout, made, is_new=True)


def _absolute(path: Path) -> Path:
    # Links are not resolved, because the state folder of a link is next to the link.
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps ".."
    if not absolute.name:
        raise ConfigurationError(f"{path} can't be an output; choose a folder below it")
    return absolute


def _refuse_overlap(source: Path, layout: OutputLayout) -> None:
    """Refuse an output or state folder inside of the source, or the reverse, because the source must not change."""
    read = source.resolve()
    for written in (layout.out.resolve(), layout.state_folder.resolve()):
        if read.is_relative_to(written) or written.is_relative_to(read):
            raise ConfigurationError(f"{layout.out} and {source} overlap; choose an output outside of the source")


def _shards(folder: Path) -> list[Path]:
    """The files with the rows of a folder of shards, in the order in which the loader takes them.

    Raises:
        ManifestError: The folder does not exist, or does not consist of complete shards alone.
    """
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise_if_exhausted(error)
        raise ManifestError(f"cannot read the folder {folder}: {error.strerror}; give a folder of shards") from error
    if not names:
        raise ManifestError(f"{folder} is empty; give a folder of {ROWS_SUFFIX} and {COUNT_SUFFIX} files")
    real_folder = os.path.realpath(folder)
    for name in sorted(names):
        stem, dot, suffix = name.rpartition(".")
        if dot + suffix not in (ROWS_SUFFIX, COUNT_SUFFIX):
            raise ManifestError(f"{folder / name} is not part of a shard; move it away")
        for path in (folder / f"{stem}{ROWS_SUFFIX}", folder / f"{stem}{COUNT_SUFFIX}"):
            if not path.is_file():
                raise ManifestError(
                    f"{path} is missing or not a file; a shard is a pair of a {ROWS_SUFFIX} and a {COUNT_SUFFIX} file"
                )
            if leads_out(path, real_folder):
                raise ManifestError(
                    f"{path} is a link that leads out of its folder, and is not followed; {LINK_ADVICE}"
                )
    return [folder / name for name in sorted(names) if name.endswith(ROWS_SUFFIX)]


def _count(path: Path) -> int:
    """The number of rows that a shard should hold, checked against its size before memory is allocated for it."""
    count = path.with_suffix(COUNT_SUFFIX)
    try:
        rows = read_count(count)
        total_bytes = path.stat().st_size
    except OSError as error:
        raise unreadable(count, error) from error
    if not 0 <= rows <= total_bytes:  # a row has at least one byte
        raise ManifestError(f"{count} says {rows:,} rows, which {path.name} can't hold; recreate it")
    return rows


def _loader(paths: Sequence[Path], counts: Sequence[int]) -> Loader:
    path = next((path for path, rows in zip(paths, counts, strict=True) if rows), None)
    if path is None:
        raise ManifestError(f"the shards in {paths[0].parent} have no rows; give a folder of shards with rows")
    try:
        row = decode_row(next(read_frames(path), b""))
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: {error}") from error
    if "image" in row or "rawbytes" in row:
        return Loader.COYO
    if "image_info" in row and "text_list" in row:
        return Loader.MMC4
    raise ManifestError(
        f"{path} holds neither pairs (image or rawbytes) nor documents (image_info and text_list); "
        f"its first row has {', '.join(sorted(map(str, row))) or 'nothing'}"
    )


@contextmanager
def _locked_output(layout: OutputLayout, *, is_alone: bool) -> Iterator[None]:
    """Hold the lock of the output; if the filesystem has none, ``is_alone`` allows the work to proceed without."""
    lock = Lock(layout.lock, layout.out, layout.real_lock)
    try:
        make_folder(layout.state_folder)
        with locks_where_possible(is_alone=is_alone):
            lock.acquire()
        refuse_links(layout.state_folder)
        yield
    except OSError as error:
        raise ResourceError.from_disk_error(error, f"write to {layout.state_folder}") from error
    finally:
        lock.release()


def _find_made(layout: OutputLayout, plan: Plan, made_from: list[list[str | int]]) -> ReshardRecord | None:
    """The record of the output if an equal request made its shards and they have not changed since; else None."""
    made = read_if_sound(layout.reshard_record, ReshardRecord)
    if made is None or (made.plan, made.made_from) != (plan, made_from) or not layout.out.is_dir():
        return None
    names = {f"{name}{suffix}" for name in made.files for suffix in (ROWS_SUFFIX, COUNT_SUFFIX)}
    is_whole = {path.name for path in layout.out.iterdir()} == names and all(
        (layout.out / f"{name}{ROWS_SUFFIX}").stat().st_size == file.size_bytes for name, file in made.files.items()
    )
    return made if is_whole else None


def _refuse_existing(layout: OutputLayout) -> None:
    if layout.job.exists():
        raise ConfigurationError(f"{layout.out} belongs to a run of datafetch prepare; choose another folder")
    if layout.out.is_dir() and not any(layout.out.iterdir()):
        return
    if layout.out.exists() or layout.out.is_symlink():
        raise ConfigurationError(f"{layout.out} exists already; choose another folder, or delete it to start over")


def _sources(paths: Sequence[Path], counts: Sequence[int], plan: Plan) -> list[Source]:
    positions = permutation(sum(counts), plan.shuffle)
    sources = []
    first = 0
    for path, rows in zip(paths, counts, strict=True):
        sources.append(Source(path, rows, positions[first : first + rows]))
        first += rows
    return sources


def _resharded(layout: OutputLayout, made: ReshardRecord, *, is_new: bool) -> Resharded:
    return Resharded(
        out=layout.out,
        plan=made.plan,
        epoch=epoch([file.rows for file in made.files.values()], made.plan.ranks),
        shards=len(made.files),
        total_bytes=sum(file.size_bytes for file in made.files.values()),
        is_new=is_new,
    )
