"""Image sets that training lists share: COCO, GQA, Visual Genome and TextVQA, published as zip archives.

Each member becomes a file with the bytes that the archive has. Where it lies in the archive does not matter, but for
the folder directly above it: mirrors pack the same folders into others.

Sources: cocodataset.org, cs.stanford.edu/people/dorarad/gqa, homes.cs.washington.edu/~ranjay/visualgenome, textvqa.org.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from datafetch.datasets.archive_members import ArchiveMembers, NameOf, UnpackedFiles, by_last_folder
from datafetch.datasets.dataset_defaults import DatasetDefaults
from datafetch.datasets.named_images import image_file_row
from datafetch.datasets.readers import ZipDirectory
from datafetch.datasets.referenced import read_referenced
from datafetch.errors import ManifestError
from datafetch.model.fields import invalid
from datafetch.model.kinds import Loader, Payload
from datafetch.model.manifest import Manifest
from datafetch.model.options import DatasetOptions, Effect, Option, option
from datafetch.model.sample import Record, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSetOptions(DatasetOptions):
    """The options of an image set.

    Attributes:
        only_referenced: The paths of JSON training lists; only images that one of them names are fetched.
        all: Fetch all images; so it is without a list, too.
    """

    only_referenced: tuple[str, ...] = option(
        (),
        Option(
            help="Fetch only the images that this JSON training list names. Repeatable.",
            metavar="FILE",
            unset="all",
            effect=Effect.MANIFEST,
            is_file=True,
        ),
    )
    all: bool = option(
        False, Option(help="Fetch all images of the set, as is done without a training list.", effect=Effect.NONE)
    )

    def __post_init__(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            ConfigurationError: Both are given.
        """
        DatasetOptions.__post_init__(self)
        if self.all and self.only_referenced:
            raise invalid(self, "{all} and {only_referenced} contradict each other; leave one of them out")
        if "" in self.only_referenced:
            raise invalid(self, "{only_referenced} is empty; give a value, or leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet(DatasetDefaults):
    """An image set.

    Attributes:
        folders: The names of the folders in the archives that hold its images.
    """

    folders: tuple[str, ...]
    loader: Loader = Loader.TORCH
    output_format: str = "image_files"
    keeps_bodies: bool = True
    adopts_files: bool = True
    options: ImageSetOptions = field(default_factory=ImageSetOptions)

    def bind(self, source: Path, ids: Path | None) -> Manifest:  # noqa: ARG002 - it takes no id list
        """Take the files of a folder to which the archives were unpacked.

        Raises:
            ManifestError: There is no such folder, or it has none of the images.
        """
        if not source.is_dir():
            raise ManifestError(f"there is no folder {source}; --source takes {self.source_help}")
        advice = f"--source takes {self.source_help}"
        files = UnpackedFiles(source, self._name_of, self._wanted(), advice=advice)
        if missing := next((name for name in self.folders if name not in files.folders), None):
            raise ManifestError(f"{source} has no images in a folder {missing}; --source takes the folder above it")
        return files

    def bind_archives(self, source: Path, copies: Sequence[Path]) -> Manifest:  # noqa: ARG002 - the archives are all
        """Take the members of the archives.

        Raises:
            ManifestError: A directory is damaged, or the archives have none of the images.
        """
        directories = [ZipDirectory(copy, number) for number, copy in enumerate(copies)]
        return ArchiveMembers(directories, self._name_of, self._wanted())

    def to_row(self, record: Record, payload: Payload) -> Row | None:  # noqa: ARG002 - files hold bytes
        """The file of one image; None if it did not arrive."""
        return image_file_row(record)

    def options_for_lists(self, lists: Sequence[str]) -> ImageSetOptions:
        """The options with which only images that lists name are fetched."""
        return replace(self.options, only_referenced=tuple(lists))

    @property
    def source_help(self) -> str:
        """What ``--source`` takes."""
        return f"{' and '.join(self.archives)}: a path or a URL, or the folder of either, also unpacked"

    @property
    def _name_of(self) -> NameOf:
        return by_last_folder(self.folders, keeps_folder=self._keeps_folder)

    @property
    def _keeps_folder(self) -> bool:
        return PurePosixPath(self.path).name not in self.folders

    def _wanted(self) -> frozenset[str] | None:
        lists = [Path(one) for one in self.options.only_referenced]
        if not lists:
            return None
        # Folders with names of their own tell an image by themselves, whatever a list calls what is above them.
        return read_referenced(lists, PurePosixPath(self.path), self._name_of if self._keeps_folder else None)


COCO = ImageSet(
    name="coco-train2017",
    summary="COCO train2017: 118,287 images as files.",
    path="coco/train2017",
    archives=("train2017.zip",),
    folders=("train2017",),
)
GQA = ImageSet(
    name="gqa",
    summary="GQA: 148,854 images as files.",
    path="gqa/images",
    archives=("images.zip",),
    folders=("images",),
)
VISUAL_GENOME = ImageSet(
    name="visual-genome",
    summary="Visual Genome: 108,249 images as files.",
    path="vg",
    archives=("images.zip", "images2.zip"),
    folders=("VG_100K", "VG_100K_2"),
)
TEXTVQA = ImageSet(
    name="textvqa",
    summary="TextVQA: 25,119 training images as files.",
    path="textvqa/train_images",
    archives=("train_val_images.zip",),
    folders=("train_images",),
)
