"""How child processes are started."""

import subprocess
import sys
from pathlib import Path

import pytest

import datafetch
from datafetch.process.child import child_command

PATIENCE_S = 20.0
PROBE = """
import importlib.util
import datafetch

def main():
    print(datafetch.__file__)
    print(importlib.util.find_spec("transcode"))
"""


def test_a_child_imports_what_its_parent_imports() -> None:
    """A child process imports from the same places as its parent, whatever its working directory."""
    command = child_command("datafetch.transcode.pool.forkserver")
    ended = subprocess.run(
        command, cwd="/", capture_output=True, stdin=subprocess.PIPE, check=False, timeout=PATIENCE_S
    )
    assert b"ModuleNotFoundError" not in ended.stderr
    assert b"on non-socket" in ended.stderr


def test_a_child_finds_the_package_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent may have imported datafetch from its working directory; the package's own modules shadow no others."""
    (tmp_path / "probe.py").write_text(PROBE)
    elsewhere = [entry for entry in sys.path if not Path(entry, "datafetch").exists()]
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *elsewhere])
    ended = subprocess.run(
        child_command("probe"), cwd="/", capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert ended.stdout.splitlines() == [datafetch.__file__, "None"]
