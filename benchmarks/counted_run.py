"""A whole run as a child process of ``instructions``: with the codec and the commit in threads of this process."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.append(str(_TESTS))

from in_process import run  # noqa: E402 - found through the line above


def main() -> None:
    """Run the pickled job that the command line names."""
    report = run(pickle.loads(Path(sys.argv[1]).read_bytes()))
    if report.totals.failed:
        raise SystemExit(f"{report.totals.failed} images failed")
