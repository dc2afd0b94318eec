"""Dataset: what the other packages require of a published dataset, so that none of them knows which ones there are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol, Self

from datafetch.model.kinds import Loader, Payload
from datafetch.model.manifest import Manifest, RemoteFile
from datafetch.model.options import DatasetOptions
from datafetch.model.sample import Record, Row, Sample


class Dataset(Protocol):
    """A published dataset with its options. Instances are stateless and can be pickled."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        ...

    @property
    def path(self) -> str:
        """The path at which the trainer expects it, below its data root."""
        ...

    @property
    def summary(self) -> str:
        """A one-line description for the help."""
        ...

    @property
    def loader(self) -> Loader | None:
        """The trainer's loader that reads it; None if it is unknown, and the output is not adapted to one."""
        ...

    @property
    def output_format(self) -> str:
        """The name of the format of its output (``datafetch.output.formats``)."""
        ...

    @property
    def list_name(self) -> str | None:
        """File name of the JSON list next to the output folder that the trainer reads; None if there is none."""
        ...

    def select_published(self, names: Sequence[str]) -> Sequence[str]:
        """Which files of the repository in which it is published have to be downloaded.

        Args:
            names: The paths of all of its files, in order.

        Returns:
            Those that are needed; none if it can't be read from there.
        """
        ...

    @property
    def list_root(self) -> str:
        """The folder to which the paths in its list are relative, relative to the output."""
        ...

    @property
    def lists_images(self) -> bool:
        """Whether its samples are the images that the records of its list name, and not the records."""
        ...

    @property
    def makes_list(self) -> bool:
        """Whether its list is made from its manifest, because none is published."""
        ...

    @property
    def kept_list(self) -> str:
        """The path of a copy of its published list, to be read in place of the one in the source; mostly empty."""
        ...

    @property
    def payloads(self) -> frozenset[Payload]:
        """The ways in which its rows may hold images."""
        ...

    @property
    def id_list(self) -> str | None:
        """What a line of its id list contains; None if it takes no list."""
        ...

    @property
    def options(self) -> DatasetOptions:
        """The values of its options; their class declares which options it has."""
        ...

    @property
    def short_side_px(self) -> int | None:
        """The recipe's limit for the short side of an image; None keeps the sizes."""
        ...

    @property
    def keeps_bodies(self) -> bool:
        """Whether images are kept as received, in any format."""
        ...

    @property
    def keeps_originals(self) -> bool:
        """Whether images are kept as received where nothing has to be changed, unless a job says otherwise."""
        ...

    @property
    def has_hashes(self) -> bool:
        """Whether samples carry hashes that the received bodies must match (``model.sample.HASHES``)."""
        ...

    @property
    def min_pixels(self) -> int:
        """Images with fewer pixels are placeholders that sites serve for images that are gone."""
        ...

    @property
    def archives(self) -> tuple[str, ...]:
        """File names of the zip archives that hold its images; empty if it has none."""
        ...

    @property
    def adopts_files(self) -> bool:
        """Whether files that have the right content already are taken as they are, instead of being fetched."""
        ...

    @property
    def image_root(self) -> str | None:
        """The folder with the images that its records name, relative to the output; None if they are fetched."""
        ...

    def bind(self, source: Path, ids: Path | None) -> Manifest:
        """Open the manifest in a source folder.

        Args:
            source: The source folder or file.
            ids: The id list; None without one.

        Raises:
            ManifestError: No run with it could succeed, because files or columns are missing or wrong.
        """
        ...

    @property
    def reads_in_place(self) -> bool:
        """Whether its files on the hub are read where they are, as much of them as is needed, and not downloaded."""
        ...

    def bind_in_place(self, files: Sequence[RemoteFile], ids: Path | None) -> Manifest:
        """Open the manifest of a dataset that is read where it is. Blocks; never call it in the event loop's thread.

        Args:
            files: The files that ``select_published`` selects, in order.
            ids: The id list; None without one.

        Raises:
            ManifestError: No run with it could succeed, because files or columns are missing or wrong.
        """
        ...

    @property
    def takes_inputs(self) -> bool:
        """Whether it is given by any number of files, here or elsewhere, and not published as one source."""
        ...

    def bind_inputs(self, files: Sequence[Path | RemoteFile], refuse_stopped: Callable[[], None]) -> Manifest:
        """Open the files of a dataset that takes inputs. Blocks; never call it in the event loop's thread.

        Args:
            files: The files, in order.
            refuse_stopped: Called often while files are read, also later; it raises an exception to end that.

        Raises:
            ManifestError: No run with it could succeed, because files or columns are missing or wrong.
        """
        ...

    def archive_location(self, source: str) -> str:
        """Where its archives are: one of them, or the folder or URL of all.

        Args:
            source: What the job gives as its source.
        """
        ...

    def bind_archives(self, source: Path, copies: Sequence[Path]) -> Manifest:
        """Open the manifest of a dataset with archives.

        Args:
            source: The source folder or file, for a dataset that has more than archives.
            copies: Copies of the directories of its archives, in order.

        Raises:
            ManifestError: No run with it could succeed, because something is missing or damaged.
        """
        ...

    def with_kept_list(self, path: Path) -> Self:
        """The same dataset, which reads its published list from this path, and all else from the source."""
        ...

    def options_for_limit(self, limit: int) -> DatasetOptions:
        """The options for a miniature of the recipe, of which only the first samples are fetched.

        Args:
            limit: The number of samples.

        Returns:
            Its options, changed if it otherwise requires a number of samples.
        """
        ...

    def options_for_lists(self, lists: Sequence[str]) -> DatasetOptions:
        """The options with which only those images are fetched that training lists name.

        Args:
            lists: The paths of the lists; none for all images.

        Returns:
            Its options, changed if it is a set of images that lists name.
        """
        ...

    def list_images(self, record: object) -> Sequence[str]:
        """The names of the images of a record of its published list, which are keys of samples.

        Args:
            record: The record.

        Returns:
            The names; none for a record that is text only.

        Raises:
            ValueError: The trainer can't use the record; the message is the reason.
        """
        ...

    def list_text(self, text: str, record: object) -> str:
        """A record as the list that the trainer reads has it.

        Args:
            text: The record as it stands in the published list.
            record: The same record, parsed.
        """
        ...

    def is_lost(self, sample: Sample, failed: Collection[int]) -> bool:
        """Whether a sample can no longer become a row, even if all of its other images arrive.

        This is true if and only if ``to_row`` returns None when all other images have arrived.

        Args:
            sample: The sample.
            failed: The positions of its images that failed.
        """
        ...

    def with_options(self, options: DatasetOptions) -> Self:
        """The same dataset with other options.

        Raises:
            ConfigurationError: The options belong to another dataset.
        """
        ...

    def refuse_retry(self) -> None:
        """Check that a retry can add failed images without changing other rows.

        Raises:
            ConfigurationError: With one of the options, other rows depend on which images arrived.
        """
        ...

    def to_row(self, record: Record, payload: Payload) -> Row | None:
        """Build the row of a sample; None drops the sample. Defined for every combination of outcomes.

        Args:
            record: The sample with its outcomes.
            payload: How the row holds its images.
        """
        ...
