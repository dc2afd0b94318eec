"""What a user of the library imports, and the modules that this loads."""

import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from pkgutil import iter_modules
from typing import get_args

import pytest

import datafetch
from datafetch.process.child import child_command

ROOT = Path(__file__).parent.parent
PATIENCE_S = 120


def test_every_public_name_can_be_imported() -> None:
    """No submodule that is imported later replaces a name of the package."""
    modules = {module.name for module in iter_modules(datafetch.__path__)}
    assert not modules & set(datafetch.__all__)
    for module in modules - {"__main__"}:
        import_module(f"datafetch.{module}")
    for name in datafetch.__all__:
        value = getattr(datafetch, name)
        assert value.__module__.startswith("datafetch.") or get_args(value), name  # an alias has parts


def test_importing_the_package_loads_nothing() -> None:
    """A codec process imports one package of the project and must not load the others."""
    code = "import sys, datafetch; print(*[name for name in sys.modules if name.startswith('datafetch')])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert loaded.stdout.split() == ["datafetch"]


@pytest.mark.parametrize(
    ("module", "loads"),
    [
        ("datafetch.transcode.pool.forkserver", set()),  # and Pillow once it is told what its workers do
        ("datafetch.output.commit_process", {"numpy", "pyarrow"}),
        ("datafetch.datasets.sources.hub_process", set()),  # and huggingface_hub when it is asked something
        ("datafetch.demo.origin", set()),
    ],
)
def test_a_child_loads_only_what_it_needs(module: str, loads: set[str]) -> None:
    """Such processes are started often, and each of these libraries takes a tenth of a second and more."""
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert {"PIL", "aiohttp", "huggingface_hub", "numpy", "pyarrow", "rich", "typer"} & {
        *loaded.stdout.split()
    } == loads


@pytest.mark.rotating
def test_a_run_loads_no_decoder_and_no_verification() -> None:
    """What the command loads before its first request is most of the time until then."""
    code = "import sys, datafetch.cli.commands.prepare; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=PATIENCE_S
    ).stdout.split()
    assert "datafetch.engine.session" in loaded
    unneeded = {"PIL", "pyarrow.compute", "rich.table", "datafetch.verify", "datafetch.engine.dry_run"}
    assert not {*unneeded, "datafetch.engine.source_check", "datafetch.monitor.status"} & set(loaded)


def test_a_child_imports_the_same_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child process finds the package in the folder of its parent, and no subfolder of it is on its path."""
    (tmp_path / "child_under_test.py").write_text("def main(): import sys; print(*sys.path, sep='\\n')\n")
    monkeypatch.syspath_prepend(tmp_path)
    command = child_command("child_under_test")
    finished = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_S)
    first, *others = finished.stdout.splitlines()
    assert Path(first) == ROOT
    assert str(ROOT / "datafetch") not in others


def test_the_package_has_few_entries() -> None:
    """It has at most 13 folders and files, and the import contracts cover all of them."""
    entries = {path.name for path in (ROOT / "datafetch").iterdir()} - {
        "__init__.py",
        "__main__.py",
        "py.typed",
        "__pycache__",
    }
    assert len(entries) <= 13
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (house,) = [one for one in contracts if one.get("containers") == ["datafetch"]]
    *layers, _ = house["layers"]
    assert len(layers) == 6
    assert house["exhaustive"]
    assert {name for layer in house["layers"] for name in re.split(r" [|:] ", layer)} == {
        Path(entry).stem for entry in entries
    }


def test_the_map_names_every_module_and_no_other() -> None:
    """``docs/design.md`` lists all of them, except commands and the demo's behaviours, which it lists as folders."""
    page = (ROOT / "docs" / "design.md").read_text()
    modules = {
        path.name
        for path in (ROOT / "datafetch").rglob("*.py")
        if not path.name.startswith("__") and path.parent.name not in ("commands", "behaviours")
    }
    named = set(re.findall(r"\b[a-z]\w*\.py\b", page.partition("## The map")[2].partition("\n## ")[0]))
    assert modules == named


def test_instructions_install_this_project() -> None:
    """The package index has another project called datafetch, so instructions must name this one's URL."""
    name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
    assert [point.value for point in distribution(name).entry_points] == ["datafetch.__main__:main"]
    folders = [ROOT / folder for folder in ("benchmarks", "datafetch", "docs", "scripts")]
    texts = [ROOT / "README.md", *(path for folder in folders for path in folder.rglob("*") if path.suffix != ".pyc")]
    named = [
        word
        for path in texts
        if path.is_file()
        for word in re.findall(r"pip install [^\n]*?([\w-]*datafetch)\b", path.read_text())
    ]
    assert len(named) >= 3
    assert set(named) == {name}
