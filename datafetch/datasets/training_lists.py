"""Training lists whose images are in image sets: LLaVA-1.5's subset, Japanese LLaVA-Instruct and Visual Genome's VQA.

The trainer opens each image with no error handling, so one that is missing or does not decode ends the training. So
each image is looked for where the trainer will look, and decoded; the list that the trainer reads has the records of
which all images passed, exactly as they are published. Images are not fetched here: the image sets do that.

Sources: huggingface.co/datasets/llm-jp/llava-instruct-v1_5-en-subset-358k, llava-instruct-ja, ja-vg-vqa-conversation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datafetch.datasets.archive_members import ListedFiles
from datafetch.datasets.dataset_defaults import DatasetDefaults
from datafetch.datasets.named_images import find_file
from datafetch.datasets.readers import replace_value
from datafetch.datasets.referenced import image_names, read_image_names
from datafetch.model.kinds import Loader, Payload
from datafetch.model.manifest import Manifest
from datafetch.model.outcome import Failure
from datafetch.model.sample import Record, Row

_FOLDER_AND_NAME = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingList(DatasetDefaults):
    """A training list. A sample is an image that it names.

    Attributes:
        images_below: The folder of its images, relative to the image root; its records may call it something else, and
            only the last two components of their paths count. Empty if the paths are right as they are.
    """

    images_below: str = ""
    loader: Loader = Loader.TORCH
    output_format: str = "image_files"
    list_root: str = "../.."
    lists_images: bool = True
    keeps_bodies: bool = True
    image_root: str | None = "../.."

    def bind(self, source: Path, ids: Path | None) -> Manifest:  # noqa: ARG002 - it takes no id list
        """Open the published list, given as a file or as the folder that holds it, and read all of it once.

        Raises:
            ManifestError: There is no such file, it is not a JSON list, or names no image.
        """
        path = find_file(source, self.list_name or "")
        return ListedFiles(path, read_image_names(path, self._placed))

    def to_row(self, record: Record, payload: Payload) -> Row | None:  # noqa: ARG002 - its images are files already
        """A row with the image's place, and no content, if the image is there and decodes."""
        if any(isinstance(outcome, Failure) for outcome in record.outcomes):
            return None
        return {"name": f"{self.image_root}/{record.sample.key}", "sample": record.sample.position}

    def list_images(self, record: object) -> list[str]:
        """The paths of a record's images, relative to the image root.

        Raises:
            ValueError: The trainer can't use the record.
        """
        return image_names(record, self._placed)

    def list_text(self, text: str, record: object) -> str:
        """A record as published, but with the paths at which its images are."""
        if not self.images_below or not isinstance(record, dict) or "image" not in record:
            return text
        named = record["image"]
        placed = [self._placed(name) for name in named] if isinstance(named, list) else self._placed(named)
        return text if placed == named else replace_value(text, "image", placed)

    def _placed(self, name: str) -> str:
        """Where an image is that a record names, relative to the image root."""
        parts = name.split("/")
        if not self.images_below or len(parts) < _FOLDER_AND_NAME:
            return name
        return "/".join((self.images_below, *parts[-_FOLDER_AND_NAME:]))


LLAVA_V15_SUBSET = TrainingList(
    name="llava-v1.5-subset",
    summary="LLaVA-1.5's instructions: a list of 358K.",
    path="LLaVA-Instruct-150K/llava_v1_5_subset_358k",
    list_name="llava_v1_5_subset_358k.json",
)
LLAVA_INSTRUCT_JA = TrainingList(
    name="llava-instruct-ja",
    summary="LLaVA-Instruct in Japanese: a list of 156K.",
    path="llava_instruct_ja/llava_instruct_ja_156k",
    list_name="llava_instruct_ja_156k.json",
)
JA_VG_VQA = TrainingList(
    name="ja-vg-vqa",
    summary="Japanese VQA about Visual Genome: a list of 99K.",
    path="ja-vg-vqa/ja-vg-vqa_instruct_99k",
    list_name="ja-vg-vqa_instruct_99k.json",
    images_below="vg",
)
