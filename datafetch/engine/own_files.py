"""Which files of an output folder datafetch wrote, so that it may delete or move them."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from datafetch.datasets import dataset_of_output
from datafetch.errors import ConfigurationError
from datafetch.output.formats import PickleFormat, format_of
from datafetch.output.reshard.record import read_reshard_record
from datafetch.store.atomic import refuse_links_above
from datafetch.store.job_file import Identity, JobFile
from datafetch.store.layout import OutputLayout

_RESHARDED_FILE = re.compile(rf"part-\d{{5,}}({'|'.join(map(re.escape, PickleFormat.suffixes))})")


def in_own_format(layout: OutputLayout, job: JobFile | None) -> OutputLayout:
    """The paths of an output in the format of the job that it has, if any; another job of a list may want another one.

    Raises:
        ConfigurationError: No dataset has the name of the job's.
    """
    if job is None:
        return layout
    return replace(layout, output_format=dataset_of_output(job.dataset, job.identity).output_format)


def shard_files(layout: OutputLayout, identity: Identity) -> list[Path]:
    """The files that the output may have; of each shard the count first."""
    record = read_reshard_record(layout)
    shards = {*identity.get("shards", ()), *(record.files if record else ())}
    return [path for shard in sorted(shards) for path in format_of(layout).files_of(layout, shard)]


def written_files(layout: OutputLayout, identity: Identity) -> list[Path]:
    """All files of the output that datafetch wrote, even if its record of resharding is damaged.

    Raises:
        ConfigurationError: There are other files too.
    """
    output_format = format_of(layout)
    if output_format.allows_other_files:
        return [path for shard in identity["shards"] for path in output_format.files_of(layout, shard)]
    try:
        files = shard_files(layout, identity)
    except ConfigurationError:
        files = [path for path in layout.out.glob("part-*") if _RESHARDED_FILE.fullmatch(path.name)]
    own_names = {path.name for path in files}
    for folder in (layout.out, layout.replaced):
        refuse_other_names(folder, own_names)
    return files


def removable_files(layout: OutputLayout, identity: Identity) -> list[Path]:
    """All files of the output that datafetch wrote, if they may be deleted or moved.

    Raises:
        ConfigurationError: There are other files too, or files behind a link, which may belong to others.
    """
    files = written_files(layout, identity)
    if format_of(layout).allows_other_files:
        refuse_links_above(files, layout.out)
    return files


def refuse_other_names(folder: Path, own_names: Collection[str]) -> None:
    """Check that a folder has no other files than these.

    Raises:
        ConfigurationError: It has.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in own_names:
            raise ConfigurationError(
                f"{path} was not written by this job, and would count as a part of the output; move it away, or choose "
                "another folder"
            )
