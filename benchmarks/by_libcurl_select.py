"""An errand done by libcurl's multi interface in its simple form: ``perform`` and ``select`` over all transfers."""

from __future__ import annotations

from errand import run
from libcurl import Multi

_PATIENCE_S = 1.0


def main() -> None:
    """Do the errand."""
    run(lambda errand: _Selecting(errand).fetch_all())


class _Selecting(Multi):
    def step(self) -> None:
        self._multi.perform()
        self._multi.select(_PATIENCE_S)
