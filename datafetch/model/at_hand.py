"""AtHand: what has the content of a file of published rows on this machine while they are read.

Of an output in a bucket, files of rows may have no content on this machine (``store.buckets.local_files``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeAlias

AtHand: TypeAlias = Callable[[Path], AbstractContextManager[None]]
"""Has the content of a file of published rows on this machine while they are read."""


def is_at_hand(_: Path) -> AbstractContextManager[None]:
    """For files that are on this machine."""
    return nullcontext()
