"""An output that is looked at: its job, its heartbeats, and where the spools of its open shards lie.

Rules: nothing is locked or written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from datafetch.datasets import dataset_of_output
from datafetch.monitor.heartbeat import ProgressSnapshot, read_snapshots
from datafetch.monitor.output_counts import list_folder
from datafetch.monitor.outputs_below import no_output
from datafetch.store.job_file import JobFile, read_job_file
from datafetch.store.layout import OutputLayout, output_of


@dataclass(frozen=True, slots=True)
class ObservedOutput:
    """An output that a run writes to, or has written to.

    Attributes:
        layout: Its paths.
        job: Its job.
        snapshots: The last heartbeats of its processes.
    """

    layout: OutputLayout
    job: JobFile
    snapshots: tuple[ProgressSnapshot, ...]

    @property
    def spool_folders(self) -> tuple[Path, ...]:
        """The folders of jobs with the spools of open shards: where its processes say, or else in the state folder.

        An output that was moved has them there, and no longer where a heartbeat says.
        """
        folders = set(filter(Path.exists, (Path(one.spools) for one in self.snapshots)))
        return tuple(sorted(folders)) or tuple(list_folder(self.layout.all_spools))


def observe_output(out: Path | str) -> ObservedOutput:
    """Open an output for looking at it.

    Args:
        out: The output folder, or its state folder.

    Raises:
        ConfigurationError: There is no run, or the file in place of its job is something else.
    """
    layout = OutputLayout(output_of(Path(out)))
    job = read_job_file(layout)
    if job is None:
        raise no_output(layout)
    layout = replace(layout, output_format=dataset_of_output(job.dataset, job.identity).output_format)
    return ObservedOutput(layout, job, read_snapshots(layout))
