"""The examples of docs/library.md work; the dataset for PyTorch on PyTorch itself, where it is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from conftest import LOOPBACK
from PIL import Image

from datafetch import FetchPolicy
from datafetch.demo.origin import Origin

ROOT = Path(__file__).parent.parent
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "library.md").read_text(), re.MULTILINE | re.DOTALL)
POLICY = FetchPolicy(allow_net=LOOPBACK, backoff_s=0.01, connections=8, per_host=8, retries=0)
_PATIENCE_S = 200
_HAS_TORCH = find_spec("torch") is not None


@pytest.fixture
def urls(own_origin: Origin, small_pictures: tuple[Path, list[str]]) -> list[str]:
    """Twelve URLs, of which every fourth has no image."""
    names = small_pictures[1]
    return [own_origin.url("well" if number % 4 else "missing", names[number], "page") for number in range(12)]


def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make importable what the example takes from PyTorch."""
    data: Any = ModuleType("torch.utils.data")
    data.IterableDataset, data.get_worker_info = object, lambda: None
    for name, module in (
        ("torch", ModuleType("torch")),
        ("torch.utils", ModuleType("torch.utils")),
        (data.__name__, data),
    ):
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.rotating
def test_the_dataset_yields_the_images_that_can_be_had(urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, fitted as the page says; iterating again does it again, and breaking out leaves no process."""
    if not _HAS_TORCH:
        _stand_in(monkeypatch)
    names: dict[str, Any] = {}
    exec(compile(EXAMPLES[1], "web_images.py", "exec"), names)  # noqa: S102 - the example
    dataset = names["WebImages"](urls, fetch=POLICY, processes=1)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    for _ in range(2):
        images = dict(dataset)
        assert sorted(images) == [number for number in range(12) if number % 4]
        assert {Image.open(BytesIO(jpeg)).size for jpeg in images.values()} == {(224, 224)}
    iterator = iter(dataset)
    next(iterator)
    iterator.close()
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


_WITH_LOADER = """
import sys
from torch.utils.data import DataLoader
from datafetch import FetchPolicy
from web_images import WebImages
policy = FetchPolicy(allow_net=("127.0.0.0/8",), retries=0, connections=8)
loader = DataLoader(WebImages(sys.argv[1:], fetch=policy, processes=1), batch_size=None, num_workers=2)
print(sorted(index for index, _ in loader))
"""


@pytest.mark.rotating
@pytest.mark.skipif(not _HAS_TORCH, reason="PyTorch is not installed")
def test_the_workers_of_a_loader_share_the_urls(urls: list[str], tmp_path: Path) -> None:
    """Each takes its part, and together they have all images once."""
    (tmp_path / "web_images.py").write_text(EXAMPLES[1])
    (tmp_path / "program.py").write_text(_WITH_LOADER)
    finished = subprocess.run(
        [sys.executable, "program.py", *urls],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
    )
    assert finished.stdout == f"{[number for number in range(12) if number % 4]}\n"


@pytest.mark.rotating
def test_the_first_example_runs(urls: list[str]) -> None:
    """With other URLs, and a network that is allowed."""
    program = EXAMPLES[0].replace("FetchPolicy(retries=1)", f"FetchPolicy(retries=1, allow_net={LOOPBACK!r})")
    program = re.sub(r'\["https://example.*\]', repr(urls), program)
    finished = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=_PATIENCE_S
    )
    lines = sorted(finished.stdout.splitlines(), key=lambda line: int(line.split()[0]))
    assert [line.split()[1:3] for line in lines] == [
        ["JPEG", "256"] if number % 4 else ["http_status", "HTTP"] for number in range(12)
    ]
