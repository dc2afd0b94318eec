"""RecordedFiles: compares the files of an output with what was recorded when they were written, as after a move.

Rules: nothing is decoded. No link is followed out of the output, and only regular files of the recorded size are read.
What was recorded is in ``equal.json``, in the ledgers, and in the indexes of image files; it is typed when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from datafetch.errors import ConfigurationError, raise_if_exhausted
from datafetch.model.at_hand import AtHand, is_at_hand
from datafetch.model.checksum import crc32
from datafetch.model.dataset import Dataset
from datafetch.model.kinds import Loader
from datafetch.model.wording import command_that_made
from datafetch.output.formats import COUNT_SUFFIX, ROWS_SUFFIX, PickleFormat, PublishedFile, format_of
from datafetch.output.reshard.record import ReshardRecord, read_reshard_record
from datafetch.output.training_list import recorded_sha256, sha256_of, trainers_list
from datafetch.store.atomic import leads_out
from datafetch.store.layout import OutputLayout
from datafetch.store.shard_summary import read_shard_counts
from datafetch.verify.findings import Examination, Location, Problem
from datafetch.verify.intended_ranks import read_sound_job
from datafetch.verify.sample_shards import FORMATS_OF_SAMPLES, format_of_samples
from datafetch.verify.shards import ShardFolder

_STEP_BYTES = 64 << 20  # what is read between two reports of progress, or before Ctrl-C has an effect
_STEP_FILES = 256
_CHUNK_BYTES = 1 << 20


class RecordedFiles:
    """The files that an output was left with.

    Args:
        layout: The paths of the output.
        dataset: The dataset of its job; None if it has no job.
        loader: The loader that the caller names; None takes that of the dataset, or determines it from the first row.
        at_hand: Has the content of a file of rows on this machine while it is read.

    Attributes:
        out: The output.
        row_counts: The number of rows of each pickle shard, in the order of the names, as recorded.
        has_job: Whether a run made the output, so that it can make it again.
        without_checksum: How many files had nothing but a size recorded, or not even that.

    Raises:
        ConfigurationError: Nothing was recorded, or the record is damaged.
    """

    def __init__(
        self, layout: OutputLayout, dataset: Dataset | None, loader: Loader | None, at_hand: AtHand = is_at_hand
    ) -> None:
        self.without_checksum = 0
        self.out = layout.out
        self._at_hand = at_hand
        own_format = layout.output_format if dataset is None else dataset.output_format
        has_samples = dataset is None or dataset.loader is None
        sample_format = format_of_samples(layout.out, at_hand) if has_samples else None
        self._layout = replace(layout, output_format=sample_format or own_format)
        self._list_name = None if dataset is None else dataset.list_name
        self._record: ReshardRecord | None = read_reshard_record(layout)
        job = read_sound_job(layout)
        if self._record is None and job is None:
            raise ConfigurationError(
                f"nothing says how the files of {layout.out} were written, since {layout.state_folder} has no record "
                "of it; leave out --quick, or move that folder along with the output"
            )
        self.has_job = job is not None
        shards = () if job is None or self._record is not None else job.shards
        self._shards = [shard for shard in shards if layout.ledger(shard).exists()]
        self._ledgers_of = self._shards if self._record is None else list(self._record.samples)
        if job is not None and self._record is None and job.limit is None and layout.report.exists():
            self._ledgers_of = list(job.shards)  # as the run was complete
        own = None if dataset is None else dataset.loader
        self.loader: Loader | None = loader or own
        if self.loader is None and not self._has_image_files:
            self.loader = ShardFolder(layout.out).loader if layout.out.is_dir() else Loader.COYO
        if self._record is not None:
            self.row_counts = [file.rows for file in self._record.files.values()]
        else:
            self.row_counts = [] if self._has_image_files else [rows for rows in self._rows() if rows]

    @property
    def shards(self) -> int | None:
        """The number of pickle shards; None for an output without."""
        return None if self._has_image_files else len(self.row_counts)

    @property
    def total_bytes(self) -> int:
        """The size of all files, as recorded."""
        return sum(file.size_bytes or 0 for file in self._files() if isinstance(file, PublishedFile))

    def examine(self) -> Iterator[list[Examination]]:
        """Compare all files, in steps that take a second or less."""
        step: list[Examination] = []
        step_bytes = 0
        for examination in self._examine():
            step.append(examination)
            step_bytes += examination.read_bytes
            if step_bytes >= _STEP_BYTES or len(step) >= _STEP_FILES:
                yield step
                step, step_bytes = [], 0
        yield step

    def lost_shards(self) -> Iterator[Problem]:
        """The shards of which nothing is there, for a check that examines the files present."""
        if self._layout.output_format in FORMATS_OF_SAMPLES:
            yield from self._lost_sample_shards()
            return
        for file in self._files():
            if isinstance(file, Problem) or file.path.suffix != ROWS_SUFFIX or file.path.exists():
                continue
            if not file.path.with_suffix(COUNT_SUFFIX).exists():
                message = (
                    f"is missing, and its {COUNT_SUFFIX}; the command that made the output makes it again; "
                    f"{command_that_made(self._layout.out)}"
                )
                yield Problem(Location(file.path.name), message)

    def _lost_sample_shards(self) -> Iterator[Problem]:
        for shard in self._shards:
            with suppress(ConfigurationError):  # which is reported where the files are compared
                files = list(format_of(self._layout).published_files(self._layout, shard))
                if files and not any(file.path.exists() for file in files):
                    message = (
                        "all of its files are missing; the command that made the output makes it again; "
                        f"{command_that_made(self._layout.out)}"
                    )
                    yield Problem(Location(shard), message)

    @property
    def output_format(self) -> str:
        """The format of shards of a list's samples; empty for others."""
        return self._layout.output_format if self._layout.output_format in FORMATS_OF_SAMPLES else ""

    @property
    def _has_image_files(self) -> bool:
        return self._layout.output_format != PickleFormat.name

    def _rows(self) -> Iterator[int]:
        for shard in self._shards:
            try:
                yield read_shard_counts(self._layout.ledger(shard)).rows
            except ConfigurationError:  # which is reported where the files are compared
                yield 0

    def _files(self) -> Iterator[PublishedFile | Problem]:
        """The files as they were written; a problem in place of those of a shard whose ledger or index is damaged."""
        if self._record is not None:
            yield from self._record.published_files(self._layout)
            return
        for shard in self._shards:
            try:
                yield from format_of(self._layout).published_files(self._layout, shard)
            except ConfigurationError as error:
                yield Problem(Location(shard), str(error))

    def _examine(self) -> Iterator[Examination]:
        out = self._layout.out
        real_out = os.path.realpath(out)
        for shard in self._ledgers_of:
            yield Examination(problems=tuple(self._missing_state(shard)))
        names: set[str] = set()
        for file in self._files():
            if isinstance(file, Problem):
                yield Examination(problems=(file,))
                continue
            if not self._has_image_files:
                names.add(file.path.name)
            is_inside = file.path.is_relative_to(out)
            location = Location(str(file.path.relative_to(out) if is_inside else file.path))
            self.without_checksum += file.crc32 is None
            with self._at_hand(file.path) if is_inside else nullcontext():
                yield from _compare(file, location, None if file.is_elsewhere else real_out)
        for path in sorted(out.iterdir()) if out.is_dir() and not self._has_image_files else ():
            if path.name not in names:
                message = "does not belong to a shard, but what reads the folder counts every file"
                yield Examination(problems=(Problem(Location(path.name), message),))
        for rows in self.row_counts if not self._has_image_files else self._rows():
            yield Examination(samples=rows)
        if self._list_name is not None:
            yield from self._examine_list(trainers_list(self._layout, self._list_name))

    def _missing_state(self, shard: str) -> Iterator[Problem]:
        """What the state folder lacks of a published shard: its ledger, or what a retry of its failures needs."""
        ledger, kept = self._layout.ledger(shard), self._layout.kept_for_retry(shard)
        try:
            counts = read_shard_counts(ledger)
        except ConfigurationError:
            if not ledger.exists():
                yield self._of_state(
                    ledger, "is missing; put it back, since nothing else says what became of its images"
                )
            elif self._record is not None:  # otherwise its files are looked for, and that says so
                yield self._of_state(ledger, "is not a ledger of datafetch; put back a copy")
            return
        if counts.failed and not kept.is_file():
            yield self._of_state(kept, "is missing; put it back, since 'datafetch retry' needs it")

    def _of_state(self, path: Path, message: str) -> Problem:
        return Problem(Location(str(path.relative_to(self._layout.state_folder.parent))), message)

    def _examine_list(self, path: Path) -> Iterator[Examination]:
        """Compare the list that the trainer reads."""
        recorded = recorded_sha256(self._layout)
        if recorded is None:
            self.without_checksum += 1
        elif not path.is_file():
            yield Examination(problems=(Problem(Location(path.name), "is missing"),))
        elif sha256_of(path) != recorded:
            yield Examination(problems=(Problem(Location(path.name), "is not the list that was written"),))


def _compare(file: PublishedFile, location: Location, real_out: str | None) -> Iterator[Examination]:
    """Compare a file with what was recorded of it, in several steps if it is large."""
    message = ""
    try:
        if not os.path.lexists(file.path):
            message = "is missing"
        elif real_out is not None and leads_out(file.path, real_out):
            message = "is a link that leads out of its folder and is not followed"
        elif not file.path.is_file():
            message = "is not a regular file"
        elif file.size_bytes is not None and (found := file.path.stat().st_size) != file.size_bytes:
            message = f"has {found:,} bytes, and was written with {file.size_bytes:,}"
        elif file.crc32 is not None:
            checksum = 0
            with file.path.open("rb", buffering=0) as opened:
                while piece := opened.read(_CHUNK_BYTES):
                    checksum = crc32(piece, checksum)
                    yield Examination(read_bytes=len(piece))
            if checksum != file.crc32:
                message = "has other bytes than it was written with"
    except OSError as error:
        raise_if_exhausted(error)
        message = f"can't be read: {error.strerror or error}"
    if message:
        yield Examination(problems=(Problem(location, message),))
