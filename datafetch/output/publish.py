"""What a published shard left in the output, whether it is there, and what its failed samples are worth.

Rules: what lies in the state folder is files, and anything may be in them: no name of an index leads out of the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from datafetch.errors import ConfigurationError
from datafetch.model.outcome import OK
from datafetch.output.formats import SavedFile, read_index
from datafetch.store.atomic import make_folder, move, sync
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger import read_samples, read_shard_counts
from datafetch.store.spool_format import ImageResult


def saved_files(layout: OutputLayout, shard: str) -> Iterator[tuple[Path, SavedFile]]:
    """The files of a shard whose output holds files, each with its place."""
    for saved in read_index(layout.saved(shard)):
        yield _place(layout, saved), saved


def shard_files(layout: OutputLayout, shard: str) -> list[Path]:
    """All files that a shard has in the output, counts first."""
    if layout.saved(shard).exists():
        return [place for place, _ in saved_files(layout, shard)]
    return [layout.out / f"{shard}{suffix}" for suffix in (".count", ".pkl")]


def is_in_place(layout: OutputLayout, shard: str) -> bool:
    """Whether the files of a shard that has a ledger are there as they were written; not asked of equal shards."""
    if layout.saved(shard).exists():
        return all(_size_bytes(place) == saved.size_bytes for place, saved in saved_files(layout, shard))
    there_bytes = sum(_size_bytes(path) for path in shard_files(layout, shard))
    return read_shard_counts(layout.ledger(shard)).written_bytes == there_bytes


def salvage(layout: OutputLayout, shard: str) -> Iterator[ImageResult]:
    """What is still there of a shard that lost a file, as its spool would have it; what is damaged is deleted."""
    sound = {}
    for place, saved in saved_files(layout, shard):
        if _size_bytes(place) == saved.size_bytes:
            sound[saved.sample] = place
        else:
            place.unlink(missing_ok=True)
    for lines in read_samples(layout.ledger(shard)):
        for line in lines:
            if line.outcome == OK and line.sample in sound:
                yield ImageResult(line, sound[line.sample].read_bytes())


def put_files_in_place(layout: OutputLayout, ready: Path, index: Path) -> None:
    """Give files their names: all of them, or those that a run that was killed here left.

    Args:
        layout: Of the output.
        ready: Where they lie, under their numbers.
        index: What each is called.
    """
    folders = set()
    for saved in read_index(index):
        numbered = ready / saved.number
        if numbered.exists():
            place = _place(layout, saved)
            if place.parent not in folders:
                _refuse_links_above(place, layout.out)
                make_folder(place.parent)
            move(numbered, place)
            folders.add(place.parent)
    for folder in folders:
        sync(folder)


def _refuse_links_above(place: Path, out: Path) -> None:
    """Check that a file's folders in the output are folders, and not links that lead out of it."""
    for folder in place.parents:
        if folder == out:
            return
        if folder.is_symlink():
            raise ConfigurationError(
                f"{folder} is a symbolic link, and datafetch does not write through links; replace it by a folder"
            )


def _place(layout: OutputLayout, saved: SavedFile) -> Path:
    parts = PurePosixPath(saved.name).parts
    if not parts or ".." in parts or parts[0] == "/" or "\0" in saved.name or "/" in saved.number:
        raise ConfigurationError(f"{layout.saved_folder} names a file outside of {layout.out}; --fresh starts over")
    return layout.out.joinpath(*parts)


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
