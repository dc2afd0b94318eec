"""What is known of a dataset before anything is read: facts alone, with what is usual as their default."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from datafetch.datasets.choices import Choices
from datafetch.model.kinds import Loader, Payload
from datafetch.model.sample import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The facts of ``model.Dataset``, and what was chosen.

    Attributes:
        name: As on the command line.
        path: Where the trainer expects it, under the root.
        loader: Which of the trainer's loaders reads it.
        output_format: The name of the format of its output.
        list_name: The JSON list beside the output folder that the trainer reads, where there is one.
        payloads: How a row may hold images.
        supported_options: What may be chosen of it: fields of ``Choices``, and ``ids``.
        short_side_px: The recipe's limit for an image's short side; None leaves sizes alone.
        keeps_bodies: Whether images are kept as received, whatever their format.
        least_pixels: Images with fewer are stand-ins for images that are gone.
        choices: What was chosen.
    """

    name: str
    path: str
    loader: Loader
    output_format: str = "pickle"
    list_name: str | None = None
    payloads: frozenset[Payload] = frozenset({Payload.BASE64})
    supported_options: frozenset[str] = frozenset()
    short_side_px: int | None = None
    keeps_bodies: bool = False
    least_pixels: int = 1
    choices: Choices = field(default_factory=Choices)

    def is_lost(self, sample: Sample, failed: Collection[int]) -> bool:
        """Whether a sample can no longer become a row: here, because it needs all of its images."""
        return bool(failed) or not sample.urls
