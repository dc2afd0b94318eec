"""What is known of a dataset before anything is read: facts alone, with what is usual as their default."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Self

from datafetch.errors import ConfigurationError
from datafetch.model.kinds import Loader, Payload
from datafetch.model.options import DatasetOptions
from datafetch.model.sample import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetDefaults:
    """The facts of ``model.interfaces.Dataset``, and the options that were set.

    Attributes:
        name: As on the command line.
        summary: What it is, in a line of help.
        path: Where the trainer expects it, under the root.
        loader: Which of the trainer's loaders reads it; None where that is not known.
        output_format: The name of the format of its output.
        list_name: The JSON list beside the output folder that the trainer reads, where there is one.
        payloads: How a row may hold images.
        id_list: What a line of its id list holds; None where it takes no list.
        short_side_px: The recipe's limit for an image's short side; None leaves sizes alone.
        keeps_bodies: Whether images are kept as received, whatever their format.
        min_pixels: Images with fewer are placeholders for images that are gone.
        options: What was set for it.
    """

    name: str
    summary: str
    path: str
    loader: Loader | None = None
    output_format: str = "pickle"
    list_name: str | None = None
    payloads: frozenset[Payload] = frozenset({Payload.BASE64})
    id_list: str | None = None
    short_side_px: int | None = None
    keeps_bodies: bool = False
    min_pixels: int = 1
    options: DatasetOptions = field(default_factory=DatasetOptions)

    def with_options(self, options: DatasetOptions) -> Self:
        """The same dataset with other options.

        Raises:
            ConfigurationError: They are another dataset's.
        """
        if type(options) is not type(self.options):
            raise ConfigurationError(f"{self.name} takes {type(self.options).__name__}, not {type(options).__name__}")
        return replace(self, options=options)

    def is_lost(self, sample: Sample, failed: Collection[int]) -> bool:
        """Whether a sample can no longer become a row: here, because it needs all of its images."""
        return bool(failed) or not sample.urls

    def refuse_retry(self) -> None:
        """Refuse nothing: a row depends on its own images alone."""
