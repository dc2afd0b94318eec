"""Retries and resharding that are killed repeatedly lose nothing that was there."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from preloaded import PreloadedCommand
from runs import Run, dying_at_a_step, listed, run_undisturbed
from test_kills import Victim

from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import paint

IMAGES = 72
_PICTURES = 17
AS_CUT, RESHARDED = ("--no-reshard",), ("--world-size", "2")
_FLAKY_EVERY = 6
_KILLED = -9
_RETRY = " retry "


@dataclass(frozen=True, slots=True)
class FlakyDataset:
    """A dataset of which some images fail when they are requested for the first time.

    Attributes:
        origin: The server of its images.
        source: Its manifest.
        root: The trainer's data folder.
        layout: The options that decide whether the shards are resharded.
    """

    origin: Origin
    source: CoyoSource
    root: Path
    layout: tuple[str, ...]

    @property
    def out(self) -> Path:
        """The folder that the trainer reads."""
        return self.root / "coyo-700m" / "pkl03-split"

    def prepare(self, root: Path | None = None) -> list[str]:
        """Return the command that fetches the dataset."""
        return [
            *(sys.executable, "-m", "datafetch", "prepare", "coyo"),
            *("--source", str(self.source.folder), "--ids", str(self.source.ids), "--root", str(root or self.root)),
            *("--allow-net", "127.0.0.0/8", "--processes", "1", "--retries", "0", "--connections", "8"),
            *self.layout,
        ]

    def retry(self) -> list[str]:
        """Return the command that retries the failures."""
        return [sys.executable, "-m", "datafetch", "retry", str(self.out)]

    def files(self, root: Path | None = None) -> dict[str, bytes]:
        """Return the files that the trainer reads."""
        out = self.out if root is None else root / self.out.relative_to(self.root)
        return {path.name: path.read_bytes() for path in listed(out)}

    def requests(self) -> dict[str, int]:
        """Return the number of requests for each URL."""
        by_path = self.origin.requests()
        return {url: by_path.get("/" + url.split("/", 3)[3], 0) for url in self.source.urls.values()}


@pytest.fixture(params=["as cut", pytest.param("resharded", marks=pytest.mark.slow)])
def dataset(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[FlakyDataset]:
    """The dataset on a server of its own, for its counts of requests."""
    layout = AS_CUT if request.param == "as cut" else RESHARDED
    with serve_flaky_dataset(tmp_path, layout) as served:
        yield served


@contextmanager
def serve_flaky_dataset(folder: Path, layout: tuple[str, ...]) -> Iterator[FlakyDataset]:
    """Create the dataset and serve it."""
    (folder / "pictures").mkdir()
    names = [f"{number:05d}.jpg" for number in range(_PICTURES)]
    for number, name in enumerate(names):
        paint((64, 48), number).save(folder / "pictures" / name)
    with Origin(folder / "pictures") as origin:
        urls = [
            origin.url("flaky" if number % _FLAKY_EVERY == 1 else "well", names[number % len(names)], number)
            for number in range(IMAGES)
        ]
        source = write_coyo_source(folder / "source", urls, files=2)
        yield FlakyDataset(origin, source, folder / "root", layout)


def kill_until_done(
    command: list[str], victim: str, steps_between: tuple[int, int], dataset: FlakyDataset, preloaded: PreloadedCommand
) -> Iterator[dict[str, bytes]]:
    """Repeat a command, killing it ever later, until it is complete; yield the files after each run."""
    rng = random.Random(victim)
    steps, kills, code = 0, 0, _KILLED
    while code != 0:
        steps += rng.randrange(*steps_between)
        with Run(command, dying_at_a_step(victim, steps, dataset.root), preloaded) as run:
            code = run.end()
        kills += code != 0
        assert code in (0, 4, _KILLED), run
        yield dataset.files()
    assert kills >= 3


@pytest.mark.rotating
@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["resharded"], indirect=True)
def test_a_run_killed_during_resharding(dataset: FlakyDataset, preloaded: PreloadedCommand, tmp_path: Path) -> None:
    """Until all shards are resharded, they stay as the manifest cut them; no stored image is requested again."""
    undisturbed = tmp_path / "undisturbed"
    for _ in range(2):  # in the second run, no image fails any more
        run_undisturbed([*dataset.prepare(undisturbed), "--fresh"], preloaded)
    before = dataset.requests()
    for _ in kill_until_done(dataset.prepare(), Victim.PARENT, (5, 17), dataset, preloaded):
        pass
    assert dataset.files() == dataset.files(undisturbed)
    requests = {url: times - before[url] for url, times in dataset.requests().items()}
    assert min(requests.values()) == 1
    assert not [path for path in dataset.out.with_name("pkl03-split.datafetch").rglob("*.pkl") if path.is_file()]


@pytest.mark.rotating
@pytest.mark.parametrize(
    ("victim", "steps_between"),
    [
        (_RETRY, (12, 30)),
        pytest.param(_RETRY, (5, 17), marks=pytest.mark.slow),
        pytest.param(Victim.COMMIT, (3, 9), marks=pytest.mark.slow),
    ],
)
def test_a_retry_killed_at_any_step_loses_nothing(
    dataset: FlakyDataset, preloaded: PreloadedCommand, tmp_path: Path, victim: str, steps_between: tuple[int, int]
) -> None:
    """At every moment the trainer sees each shard as it was before or as it will be after, and no row gets lost."""
    run_undisturbed(dataset.prepare(), preloaded)
    old, before = dataset.files(), dataset.requests()
    assert set(before.values()) == {1}
    seen = list(kill_until_done(dataset.retry(), victim, steps_between, dataset, preloaded))
    new = dataset.files()
    healed = tmp_path / "healed"
    requests = {url: times - before[url] for url, times in dataset.requests().items() if times > before[url]}
    assert set(requests) == {url for url in dataset.source.urls.values() if "/flaky/" in url}
    run_undisturbed(dataset.prepare(healed), preloaded)
    assert new == dataset.files(healed)
    for files in seen:
        assert all(content in (old.get(name), new.get(name)) for name, content in files.items())
        if "--no-reshard" in dataset.layout:  # each shard is replaced by itself, its count last
            assert {name for name in files if name.endswith(".pkl")} == {name for name in old if name.endswith(".pkl")}
        else:
            assert files in (old, new, {})
