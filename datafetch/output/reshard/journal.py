"""The journal of a copy: the number of sources that are copied already, so that the copy can be resumed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from datafetch.model.bounds import Count
from datafetch.output.reshard.plan import Plan, Source, fingerprint
from datafetch.store.atomic import write_atomically
from datafetch.store.state_file import read_if_sound


@dataclass(frozen=True, slots=True)
class _JournalFile:
    """The content of the journal.

    Attributes:
        made_of: Everything that decides the bytes of the new shards.
        done: The number of sources that are copied.
    """

    made_of: dict[str, Any]
    done: Count


class Journal:
    """How many sources have been copied.

    Args:
        folder: The folder of the new shards and the journal. It is emptied if its journal is that of another copy.
        made_of: The identity of this copy (``copy_identity``).
    """

    def __init__(self, folder: Path, made_of: dict[str, Any]) -> None:
        self._path = folder / "journal.json"
        self.made_of = made_of
        done = self._read()
        self.done = done or 0
        if done is None:
            if folder.exists():
                shutil.rmtree(folder)
            self.record(0)

    def _read(self) -> int | None:
        before = read_if_sound(self._path, _JournalFile)
        return before.done if before is not None and before.made_of == self.made_of else None

    def record(self, done: int) -> None:
        """Record that the first ``done`` sources are copied and on disk."""
        self.done = done
        write_atomically(self._path, orjson.dumps(_JournalFile(self.made_of, done)))


def copy_identity(sources: Sequence[Source], plan: Plan) -> dict[str, Any]:
    """Everything that decides the bytes of the new shards, for the journal."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(np.ascontiguousarray(source.positions).data)
    return {
        "format": 1,
        **plan.identity_fields(),
        "sources": [fingerprint(source.path) for source in sources],
        "places": digest.hexdigest(),
    }
