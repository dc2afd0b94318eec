"""Images of an output that is there, found by their URLs."""

from __future__ import annotations

from datafetch.output.stored.results import StoredResults, can_read_images

__all__ = ["StoredResults", "can_read_images"]
