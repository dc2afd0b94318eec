"""A client for ``subprocess_client``: libcurl's multi interface, driven by ``perform`` and ``select``."""

from __future__ import annotations

from benchmarks.fetch.client_libcurl import Multi
from benchmarks.fetch.subprocess_client import client_main

_PATIENCE_S = 1.0


def main() -> None:
    """Fetch the workload."""
    client_main(lambda workload: _Selecting(workload).fetch_all())


class _Selecting(Multi):
    def step(self) -> None:
        self._multi.perform()
        self._multi.select(_PATIENCE_S)
