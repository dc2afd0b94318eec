"""What most datasets have in common: the base class of all datasets, with defaults that a dataset overrides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from datafetch.errors import ConfigurationError
from datafetch.model.kinds import Loader, Payload
from datafetch.model.manifest import Manifest, RemoteFile
from datafetch.model.options import DatasetOptions
from datafetch.model.sample import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetDefaults:
    """The properties of ``model.dataset.Dataset`` as fields, and its methods where most datasets agree.

    A dataset derives from it, gives the fields new defaults, and adds ``bind`` and ``to_row``.

    Attributes:
        name: Its name on the command line.
        summary: A one-line description for the help.
        path: The path at which the trainer expects it, below its data root.
        loader: The trainer's loader that reads it; None if it is unknown.
        output_format: The name of the format of its output.
        manifest_suffixes: What the names of the files of its manifest end with; empty if that is one file, its list.
        list_name: File name of the JSON list next to the output folder that the trainer reads; None if there is none.
        list_root: The folder to which the paths in its list are relative, relative to the output.
        lists_images: Whether its samples are the images that the records of its list name, and not the records.
        makes_list: Whether its list is made from its manifest, because none is published.
        kept_list: The path of a copy of its published list, to be read in place of the one in the source; mostly empty.
        payloads: The ways in which its rows may hold images.
        id_list: What a line of its id list contains; None if it takes no list.
        short_side_px: The recipe's limit for the short side of an image; None keeps the sizes.
        keeps_bodies: Whether images are kept as received, in any format.
        min_pixels: Images with fewer pixels are placeholders that sites serve for images that are gone.
        archives: File names of the zip archives that hold its images; empty if it has none.
        adopts_files: Whether files that have the right content already are taken as they are.
        image_root: The folder with the images that its records name, relative to the output; None if they are fetched.
        reads_in_place: Whether its files on the hub are read where they are, and not downloaded.
        takes_inputs: Whether it is given by any number of files, and not published as one source.
        keeps_originals: Whether images are kept as received where nothing has to be changed, unless a job says else.
        has_hashes: Whether samples carry hashes that the received bodies must match (``model.sample.HASHES``).
        options: The values of its options.
    """

    name: str
    summary: str
    path: str
    loader: Loader | None = None
    output_format: str = "pickle"
    manifest_suffixes: tuple[str, ...] = ()
    list_name: str | None = None
    list_root: str = "."
    lists_images: bool = False
    makes_list: bool = False
    kept_list: str = ""
    payloads: frozenset[Payload] = frozenset({Payload.BASE64})
    id_list: str | None = None
    short_side_px: int | None = None
    keeps_bodies: bool = False
    min_pixels: int = 1
    archives: tuple[str, ...] = ()
    adopts_files: bool = False
    image_root: str | None = None
    reads_in_place: bool = False
    takes_inputs: bool = False
    keeps_originals: bool = False
    has_hashes: bool = False
    options: DatasetOptions = field(default_factory=DatasetOptions)

    def with_options(self, options: DatasetOptions) -> Self:
        """The same dataset with other options.

        Raises:
            ConfigurationError: The options belong to another dataset.
        """
        if type(options) is not type(self.options):
            own = type(self.options)
            raise ConfigurationError(
                f"{self.name} takes {own.__name__}, not {type(options).__name__}; write options={own.__name__}(…), "
                f"which is in {own.__module__}"
            )
        return replace(self, options=options)

    def select_published(self, names: Sequence[str]) -> Sequence[str]:
        """By default its list, if that is published, or the files of its manifest, in whatever folder they are."""
        if self.manifest_suffixes:
            return [name for name in names if name.endswith(self.manifest_suffixes)]
        if self.makes_list:
            return []
        return [name for name in names if name == self.list_name] or [
            name for name in names if name.rpartition("/")[2] == self.list_name
        ]

    def bind_in_place(self, files: Sequence[RemoteFile], ids: Path | None) -> Manifest:
        """Open the manifest of a dataset that is read where it is; others are never asked to."""
        raise AssertionError(f"{self.name} is not read in place, from {files} with {ids}")

    def bind_inputs(self, files: Sequence[Path | RemoteFile], refuse_stopped: Callable[[], None]) -> Manifest:
        """Open the files of a list; others are never asked to."""
        raise AssertionError(f"{self.name} takes no inputs, not {files} with {refuse_stopped}")

    def archive_location(self, source: str) -> str:
        """Where its archives are: by default, they are the source."""
        return source

    def bind_archives(self, source: Path, copies: Sequence[Path]) -> Manifest:
        """Open the manifest of a dataset with archives; others are never asked to."""
        raise AssertionError(f"{self.name} has no archives, not {source} with {copies}")

    def with_kept_list(self, path: Path) -> Self:
        """The same dataset, which reads a copy of its published list."""
        return replace(self, kept_list=str(path))

    def options_for_limit(self, limit: int) -> DatasetOptions:  # noqa: ARG002 - for those that require a number
        """The options for the first samples alone: by default, its options."""
        return self.options

    def options_for_lists(self, lists: Sequence[str]) -> DatasetOptions:  # noqa: ARG002 - for image sets
        """The options with which only images that lists name are fetched: by default, its options."""
        return self.options

    def list_images(self, record: object) -> Sequence[str]:
        """The names of a record's images; a dataset whose records are samples is never asked for them."""
        raise AssertionError(f"the records of {self.name} are samples themselves, such as {record}")

    def list_text(self, text: str, record: object) -> str:  # noqa: ARG002 - for those that change it
        """A record as the trainer's list has it: by default, exactly as it is published."""
        return text

    def is_lost(self, sample: Sample, failed: Collection[int]) -> bool:
        """Whether a sample can no longer become a row: by default, a row needs at least one image, and all of them."""
        return bool(failed) or not sample.urls

    def refuse_retry(self) -> None:
        """Accept every retry: by default, a row depends only on its own images."""
