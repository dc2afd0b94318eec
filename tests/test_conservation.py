"""Every dataset on a web with every fault: nothing is lost, and nothing counts twice."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import LOOPBACK
from in_process import run
from PIL import Image

from datafetch import Check, Job, Report, run_check
from datafetch.datasets import find_dataset
from datafetch.datasets.mmc4 import Mmc4CoreOptions
from datafetch.demo.behaviours import BEHAVIOURS
from datafetch.demo.manifest import write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import paint
from datafetch.fetch import FetchPolicy
from datafetch.model.options import DatasetOptions
from datafetch.store.layout import OutputLayout

_PICTURES = 50
_FAULTY_SHARE = 0.15
_AGAIN_SHARE = 0.1
_BEYOND_A_SHARD = 100  # samples more than a shard of saved files has, which is 2,000
# Faults that keep a client waiting, or send megabytes, are left to the tests of the fetcher.
_FAULTS = sorted(
    name
    for name, behaviour in BEHAVIOURS.items()
    if not behaviour.waits and not any(word in name for word in ("bomb", "endless", "large", "camera", "retry", "busy"))
)
_numbers = count()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    """An origin of small pictures."""
    folder = tmp_path_factory.mktemp("small")
    for number in range(_PICTURES):
        image: Image.Image = paint((24, 24), number)
        image.save(folder / f"{number:05d}.png")
    with Origin(folder) as origin:
        yield origin


class Mix:
    """URLs in a seeded mix: most are good, some occur more than once, and the others have every kind of fault."""

    def __init__(self, origin: Origin, seed: int) -> None:
        self._origin = origin
        self._random = random.Random(seed)
        self._urls: list[str] = []

    def url(self) -> str:
        """Return the next URL."""
        if self._urls and self._random.random() < _AGAIN_SHARE:
            return self._random.choice(self._urls)
        is_faulty = self._random.random() < _FAULTY_SHARE
        behaviour = self._random.choice(_FAULTS) if is_faulty else "well"
        number = len(self._urls)
        # A host that fails is not requested for a while, so each fault has a host of its own.
        host = f"127.9.{number // 200 % 200}.{number % 200 + 1}" if is_faulty else "127.0.0.1"
        url = self._origin.url(behaviour, f"{number % _PICTURES:05d}.png", f"{id(self)}-{number}", host=host)
        self._urls.append(url)
        return url

    def urls(self) -> list[str]:
        """Return the URLs of a document of one image or several."""
        return [self.url() for _ in range(self._random.randint(1, 5))]


def document(number: int, urls: Sequence[str]) -> dict[str, Any]:
    """Return a document with these images."""
    info = [{"raw_url": url, "matched_text_index": position % 2} for position, url in enumerate(urls)]
    matrix = [[0.25, 0.5]] * len(urls)
    return {"n": number, "image_info": info, "similarity_matrix": matrix, "text_list": ["一", "二"]}


def write_lines(folder: Path, names: Sequence[str], records: Sequence[object]) -> None:
    """Write records as JSON lines, spread over files."""
    folder.mkdir()
    for first, name in enumerate(names):
        lines = [json.dumps(record, ensure_ascii=False) for record in records[first :: len(names)]]
        (folder / name).write_text("\n".join(lines) + "\n")


def write_source(dataset: str, folder: Path, mix: Mix, samples: int) -> int:
    """Write a source in its published form, and return its number of images."""
    if dataset == "coyo":
        write_coyo_source(folder, [mix.url() for _ in range(samples)], files=3)
        return samples
    if dataset in ("mmc4-core", "llm-jp-interleaved"):
        documents = [document(number, mix.urls()) for number in range(samples)]
        write_lines(folder, [f"docs_shard_{number}_v3.jsonl" for number in range(20)], documents)
        return sum(len(one["image_info"]) for one in documents)
    if dataset == "llm-jp-pairs-step1":
        records = [{"url": mix.url(), "text": f"絵 {number}"} for number in range(samples)]
        write_lines(folder, [f"pairs_{number}.jsonl" for number in range(5)], records)
        return samples
    folder.mkdir()
    if dataset == "ocr-vqa":
        covers = {f"{number:010d}": {"imageURL": mix.url()} for number in range(samples)}
        (folder / "dataset.json").write_text(json.dumps(covers))
        return samples
    turns = [{"from": "human", "value": "<image>\na"}, {"from": "gpt", "value": "b"}]
    published = [
        {"image": f"{number % 7}/{number:09d}.jpg", "url": mix.url(), "conversations": turns}
        for number in range(samples + _BEYOND_A_SHARD)
    ]
    (folder / "llm-jp_mm_pair_step0_558k.json").write_text(json.dumps(published))
    return len(published)


@pytest.mark.rotating
@pytest.mark.parametrize("samples", [300, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("dataset", "options"),
    [
        ("coyo", None),
        ("mmc4-core", None),
        ("mmc4-core", Mmc4CoreOptions(keep_at_least=1)),
        ("llm-jp-interleaved", None),
        ("llm-jp-pairs-step1", None),
        ("llm-jp-pairs-step0", None),
        ("ocr-vqa", None),
    ],
)
def test_no_image_is_lost_or_counted_twice(
    tmp_path: Path, web: Origin, dataset: str, options: DatasetOptions | None, samples: int
) -> None:
    """Images = ok + failed = ledger lines, samples = rows + dropped, no URL is requested twice, and verify passes."""
    images = write_source(dataset, tmp_path / "source", Mix(web, next(_numbers)), samples)
    job = Job(
        dataset=dataset,
        source=str(tmp_path / "source" / ("data" if dataset == "coyo" else "")),
        ids=str(tmp_path / "source" / "ids.txt") if dataset == "coyo" else None,
        out=str(tmp_path / "root" / find_dataset(dataset).path),
        fetch=FetchPolicy(allow_net=LOOPBACK, connections=64, per_host=64, retries=0, max_body_bytes=1 << 20),
        processes=2,
        world_size=4,
        options=options,
    )
    report = run(job)
    assert report.totals.samples == samples + (_BEYOND_A_SHARD if dataset == "llm-jp-pairs-step0" else 0)
    lines = check_counts(job, report, images)
    requests = Counter(line["url"] for line in lines if line["attempts"])
    assert max(requests.values()) == 1
    assert report.reused > 0
    verdict = run_check(Check(job.out, world_size=4))
    assert verdict.is_sound, verdict.problems[:5]
    assert verdict.samples == report.totals.rows
    assert 0 < report.totals.rows < report.totals.samples


def check_counts(job: Job, report: Report, images: int) -> list[dict[str, Any]]:
    """Check the conservation law by the report and by the ledgers, and return the ledger lines."""
    totals = report.totals
    assert totals.ok + totals.failed == totals.images == images
    paths = sorted(OutputLayout(Path(job.out)).ledgers.glob("*.parquet"))
    lines = [line for path in paths for line in pq.read_table(path).to_pylist()]
    assert Counter(line["outcome"] for line in lines) == totals.outcomes
    positions = [(line["shard"], line["sample"], line["image"]) for line in lines]
    assert positions == sorted(
        set(positions), key=lambda position: (paths.index(OutputLayout(Path(job.out)).ledger(position[0])), position)
    )
    return lines
