"""Environments: what the comparison installs beside the project, in its cache folder, at pinned versions.

Rules: nothing is installed into the environment that runs the benchmark. What is complete has a stamp with its
requirements; anything else is made again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

IMG2DATASET = ("img2dataset==1.47.0",)
DAFT = ("daft==0.7.26",)
PHOTOGRAPHS = ("scikit-image==0.26.0", "scikit-learn==1.9.1")
"""The packages that ship the photographs; only their files are used."""

_STAMP = "installed"


def make_environment(folder: Path, requirements: Sequence[str]) -> Path:
    """Make a virtual environment, unless it is there, and return its interpreter.

    Raises:
        subprocess.CalledProcessError: pip failed; it has printed why.
    """
    python = folder / "bin" / "python"
    if not _is_complete(folder, requirements):
        _announce(requirements, folder)
        venv.create(folder, with_pip=True, clear=True)
        _pip(python, "install", *requirements)
        _complete(folder, requirements)
    return python


def unpack_packages(folder: Path, requirements: Sequence[str]) -> Path:
    """Unpack packages without what they depend on, unless they are there, and return the folder.

    Raises:
        subprocess.CalledProcessError: pip failed; it has printed why.
    """
    if not _is_complete(folder, requirements):
        _announce(requirements, folder)
        shutil.rmtree(folder, ignore_errors=True)
        _pip(Path(sys.executable), "install", "--no-deps", "--target", str(folder), *requirements)
        _complete(folder, requirements)
    return folder


def _is_complete(folder: Path, requirements: Sequence[str]) -> bool:
    stamp = folder / _STAMP
    return stamp.is_file() and stamp.read_text().split() == [*requirements]


def _complete(folder: Path, requirements: Sequence[str]) -> None:
    (folder / _STAMP).write_text("\n".join(requirements))


def _announce(requirements: Sequence[str], folder: Path) -> None:
    print(f"installing {' '.join(requirements)} into {folder}, once; this takes minutes", file=sys.stderr)


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, stdout=sys.stderr)
