"""scripts/quickstart says in one line what it lacks."""

import hashlib
import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# All that the script needs before it looks for a compiler.
_COMMANDS = ("bash", "basename", "cat", "dirname", "grep", "mktemp", "rm", "sed", "sha256sum")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the scripts with an environment that counts as up to date, and has what that of the tests has."""
    root = tmp_path / "project"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    venv.create(root / ".venv")
    content = (root / "pyproject.toml").read_bytes() + (root / "constraints.txt").read_bytes()
    (root / ".venv" / "installed").write_text(f"{hashlib.sha256(content).hexdigest()}  - \n")
    (packages,) = (root / ".venv" / "lib").glob("python3*/site-packages")
    (packages / "tests.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return root


def quickstart(project: Path, *arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    """Run the script of a copy with its environment alone."""
    environment = {"PATH": path, "HOME": str(project)}
    command = [str(project / "scripts" / "quickstart"), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=120)


def test_simd_without_a_compiler_is_refused_in_one_line(project: Path, tmp_path: Path) -> None:
    """Nothing is changed, and the demo does not run: who asks for Pillow-SIMD would wonder which Pillow it shows."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name in _COMMANDS:
        (commands / name).symlink_to(shutil.which(name) or name)
    finished = quickstart(project, "--simd", path=str(commands))
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert finished.stderr == (
        "install-pillow-simd: no C compiler; on Debian and Ubuntu: apt-get install build-essential\n"
    )
    assert not (project / "datafetch-demo").exists()


def test_a_wrong_option_is_refused_in_one_line(project: Path) -> None:
    """The line is the script's usage."""
    finished = quickstart(project, "--sind")
    assert finished.returncode == 1
    assert finished.stderr == "quickstart: usage: scripts/quickstart [--simd]\n"
