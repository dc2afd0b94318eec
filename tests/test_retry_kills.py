"""Retries and resharding that are killed again and again lose nothing of what was there."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from runs import PATIENCE_S, Run, dying_at_a_step, listed
from test_kills import Victim

from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import write_pictures

IMAGES = 72
AS_CUT, RESHARDED = ("--no-reshard",), ("--world-size", "2")
_FLAKY_EVERY = 6
_KILLED = -9
_RETRY = " retry "


@dataclass(frozen=True, slots=True)
class Healing:
    """A dataset of which some images fail when they are first asked for.

    Attributes:
        origin: Who serves it.
        source: Its manifest.
        root: The trainer's data folder.
        layout: Options that say how the shards are to lie.
    """

    origin: Origin
    source: CoyoSource
    root: Path
    layout: tuple[str, ...]

    @property
    def out(self) -> Path:
        """What the trainer reads."""
        return self.root / "coyo-700m" / "pkl03-split"

    def prepare(self, root: Path | None = None) -> list[str]:
        """The command that fetches it."""
        return [
            *(sys.executable, "-m", "datafetch", "prepare", "coyo"),
            *("--source", str(self.source.folder), "--ids", str(self.source.ids), "--root", str(root or self.root)),
            *("--allow-net", "127.0.0.0/8", "--processes", "1", "--retries", "0", "--connections", "8"),
            *self.layout,
        ]

    def retry(self) -> list[str]:
        """The command that tries again what failed."""
        return [sys.executable, "-m", "datafetch", "retry", str(self.out)]

    def files(self, root: Path | None = None) -> dict[str, bytes]:
        """What the trainer sees."""
        out = self.out if root is None else root / self.out.relative_to(self.root)
        return {path.name: path.read_bytes() for path in listed(out)}

    def requests(self) -> dict[str, int]:
        """URL → how often it was asked for."""
        by_path = self.origin.requests()
        return {url: by_path.get("/" + url.split("/", 3)[3], 0) for url in self.source.urls.values()}


@pytest.fixture(params=["as cut", pytest.param("resharded", marks=pytest.mark.slow)])
def healing(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Healing]:
    """The dataset on a server of its own, for its counts."""
    layout = AS_CUT if request.param == "as cut" else RESHARDED
    with serve_healing(tmp_path, layout) as served:
        yield served


@contextmanager
def serve_healing(folder: Path, layout: tuple[str, ...]) -> Iterator[Healing]:
    """Make the dataset, and serve it."""
    names = [name for name in write_pictures(folder / "pictures", 22) if name.endswith(".jpg")]
    with Origin(folder / "pictures") as origin:
        urls = [
            origin.url("flaky" if number % _FLAKY_EVERY == 1 else "well", names[number % len(names)], number)
            for number in range(IMAGES)
        ]
        source = write_coyo_source(folder / "source", urls, files=2)
        yield Healing(origin, source, folder / "root", layout)


def kill_until_done(command: list[str], victim: str, healing: Healing, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """Run a command that dies before a step further on each time, until it is complete; yields what is there then."""
    rng = random.Random(victim)
    steps, kills, code = 0, 0, _KILLED
    while code != 0:
        steps += rng.randrange(5, 17) if victim != Victim.COMMIT else rng.randrange(3, 9)  # it takes fewer
        with Run(command, dying_at_a_step(tmp_path, victim, steps, healing.root)) as run:
            code = run.end()
        kills += code != 0
        assert code in (0, 4, _KILLED), run
        yield healing.files()
    assert kills >= 3


@pytest.mark.slow
@pytest.mark.parametrize("healing", ["resharded"], indirect=True)
def test_a_run_killed_during_resharding(healing: Healing, tmp_path: Path) -> None:
    """Until all are resharded, the shards lie as the manifest cut them; nothing that was kept is asked for again."""
    undisturbed = tmp_path / "undisturbed"
    for _ in range(2):  # once for the faults to heal
        subprocess.run([*healing.prepare(undisturbed), "--fresh"], check=True, capture_output=True, timeout=PATIENCE_S)
    before = healing.requests()
    for _ in kill_until_done(healing.prepare(), Victim.PARENT, healing, tmp_path):
        pass
    assert healing.files() == healing.files(undisturbed)
    asked = {url: times - before[url] for url, times in healing.requests().items()}
    assert min(asked.values()) == 1
    assert not [path for path in healing.out.with_name("pkl03-split.datafetch").rglob("*.pkl") if path.is_file()]


@pytest.mark.parametrize("victim", [_RETRY, pytest.param(Victim.COMMIT, marks=pytest.mark.slow)])
def test_a_retry_killed_at_any_step_loses_nothing(healing: Healing, tmp_path: Path, victim: str) -> None:
    """Whenever it dies, the trainer sees the shards as they were or as they shall be, and rows never get fewer."""
    subprocess.run(healing.prepare(), check=True, capture_output=True, timeout=PATIENCE_S)
    old, before = healing.files(), healing.requests()
    assert set(before.values()) == {1}
    seen = list(kill_until_done(healing.retry(), victim, healing, tmp_path))
    new = healing.files()
    healed = tmp_path / "healed"
    asked = {url: times - before[url] for url, times in healing.requests().items() if times > before[url]}
    assert set(asked) == {url for url in healing.source.urls.values() if "/flaky/" in url}
    subprocess.run(healing.prepare(healed), check=True, capture_output=True, timeout=PATIENCE_S)
    assert new == healing.files(healed)
    for files in seen:
        assert all(content in (old.get(name), new.get(name)) for name, content in files.items())
        if "--no-reshard" in healing.layout:  # each shard for itself, a count coming last
            assert {name for name in files if name.endswith(".pkl")} == {name for name in old if name.endswith(".pkl")}
        else:
            assert files in (old, new, {})
