"""Training lists that are published together with an archive of their images: LLaVA-Pretrain, and Japanese photos.

A sample is an image that the list names, saved under the name that the list uses. The list that the trainer reads has
the records of which all images arrived, exactly as they are published.

Sources: huggingface.co/datasets/liuhaotian/LLaVA-Pretrain, llm-jp/japanese-photos-conversation,
ThePioneer/japanese-photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urljoin

from datafetch.datasets.archive_members import ArchiveMembers, NameOf, UnpackedFiles
from datafetch.datasets.conversations import why_no_pair
from datafetch.datasets.dataset_defaults import DatasetDefaults
from datafetch.datasets.fallback_urls import FallbackUrls
from datafetch.datasets.named_images import find_file, image_file_row
from datafetch.datasets.readers import ZipDirectory
from datafetch.datasets.referenced import image_names, read_image_names
from datafetch.datasets.sources.hub import HubPlace, is_hub
from datafetch.model.kinds import Loader, Payload
from datafetch.model.location import is_url
from datafetch.model.manifest import Manifest
from datafetch.model.options import DatasetOptions, Effect, Option, option
from datafetch.model.sample import Record, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedListOptions(DatasetOptions):
    """The options of a list with an archive.

    Attributes:
        archive: The archive, its folder or URL, or the folder to which it was unpacked; None looks next to the list.
    """

    archive: str | None = option(
        None,
        Option(
            help="The archive of the images, or its folder.",
            metavar="PATH|URL",
            unset="next to the list",
            effect=Effect.NONE,
            is_file=True,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedList(DatasetDefaults):
    """A training list with an archive of its images.

    Attributes:
        is_matched_by_name: Whether an image may lie anywhere in the archive, so that only its file name counts;
            otherwise the folder right above it counts, too.
        is_pairs: Whether each record must be a pair of turns.
        fallback_name: File name of the list with URLs of the images; empty if there is none.
        archive_place: Where on the hub its archive is; empty if it is next to the list.
    """

    is_matched_by_name: bool = False
    is_pairs: bool = False
    fallback_name: str = ""
    archive_place: str = ""
    loader: Loader = Loader.TORCH
    output_format: str = "image_files"
    lists_images: bool = True
    keeps_bodies: bool = True
    adopts_files: bool = True
    options: ArchivedListOptions = field(default_factory=ArchivedListOptions)

    def select_published(self, names: Sequence[str]) -> Sequence[str]:
        """The list, and that with URLs; not the archive, whose members are read where they are."""
        return [name for name in names if name in (self.list_name, self.fallback_name)]

    def archive_location(self, source: str) -> str:
        """Where the archive is: as the option says, or where the list is."""
        if self.options.archive is not None:
            return self.options.archive
        if is_hub(source):
            return HubPlace.parse(self.archive_place or source).url(self.archives[0])
        if is_url(source):
            return urljoin(source, quote(self.archives[0]))
        path = Path(source)
        return str(path if path.is_dir() else path.parent)

    def bind(self, source: Path, ids: Path | None) -> Manifest:  # noqa: ARG002 - it takes no id list
        """Open the published list, and take its images from a folder to which the archive was unpacked.

        Raises:
            ManifestError: The list is missing or not of the published form, or the folder has none of its images.
        """
        names = self._names(source)
        folder = Path(self.archive_location(str(source)))
        advice = f"put {' and '.join(self.archives)} next to the list, or give --archive"
        return UnpackedFiles(folder, self._name_of(names), names, self._fallback(source), advice=advice)

    def bind_archives(self, source: Path, copies: Sequence[Path]) -> Manifest:
        """Open the published list, and take its images from the archive.

        Raises:
            ManifestError: The list is missing or not of the published form, or the archive has none of its images.
        """
        names = self._names(source)
        directories = [ZipDirectory(copy, number) for number, copy in enumerate(copies)]
        return ArchiveMembers(directories, self._name_of(names), names, self._fallback(source))

    def to_row(self, record: Record, payload: Payload) -> Row | None:  # noqa: ARG002 - files hold bytes
        """The file of one image; None if it did not arrive."""
        return image_file_row(record)

    def list_images(self, record: object) -> list[str]:
        """The names of a record's images.

        Raises:
            ValueError: The trainer can't use the record.
        """
        if self.is_pairs and (reason := why_no_pair(record)):
            raise ValueError(reason)
        return image_names(record)

    def _names(self, source: Path) -> frozenset[str]:
        path = Path(self.kept_list) if self.kept_list else find_file(source, self.list_name or "")
        return read_image_names(path)

    def _fallback(self, source: Path) -> FallbackUrls | None:
        path = (source if source.is_dir() else source.parent) / self.fallback_name
        return FallbackUrls(path) if self.fallback_name and path.is_file() else None

    def _name_of(self, names: frozenset[str]) -> NameOf:
        parts = 1 if self.is_matched_by_name else 2
        by_end: dict[str, str | None] = {}
        for name in names:
            end = _last(name, parts)
            by_end[end] = name if end not in by_end else None  # two records mean two images by one name: take neither

        def name_of(path: str) -> str | None:
            return None if "__MACOSX/" in path else by_end.get(_last(path, parts))

        return name_of


def _last(path: str, parts: int) -> str:
    return "/".join(PurePosixPath(path).parts[-parts:])


LLAVA_PRETRAIN = ArchivedList(
    name="llava-pretrain",
    summary="LLaVA-Pretrain: 558K pairs, step 0, as files.",
    path="LLaVA-Pretrain/images",
    list_name="blip_laion_cc_sbu_558k.json",
    archives=("images.zip",),
    fallback_name="blip_laion_cc_sbu_558k_meta.json",
    is_pairs=True,
)
JAPANESE_PHOTOS = ArchivedList(
    name="japanese-photos-conv",
    summary="Conversations about 12K Japanese photos, as files.",
    path="japanese-photos/images",
    list_name="japanese_photos_conv_12k.json",
    archives=("photo data.zip",),
    is_matched_by_name=True,
    archive_place="hf://datasets/ThePioneer/japanese-photos@e5b2bb9",
)
