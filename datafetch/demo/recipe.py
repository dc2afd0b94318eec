"""run_recipe_demo(): the whole recipe in miniature, served as it is published, built, and checked file by file.

Rules: it is what ``datafetch prepare step-0 step-1 step-2`` does, over real HTTP and with the hub's own library. What
is published comes from the demo's server, and nothing of it gets into the operator's cache of the hub.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from rich.table import Table
from rich.text import Text

from datafetch.datasets import find_dataset
from datafetch.datasets.recipes import STEPS
from datafetch.demo.origin import Origin
from datafetch.demo.published_files import STORE_ADDRESS
from datafetch.demo.recipe_expectation import DatasetFinding, check_tree, expect
from datafetch.demo.recipe_source import SYNTHDOG_ROWS, RecipeSource, write_recipe_source
from datafetch.demo.run import DEFAULT_FOLDER, prepare_folder
from datafetch.engine.job import Job
from datafetch.engine.recipe import BuiltDataset, Observe, PlannedDataset, build_recipe, plan_recipe
from datafetch.errors import ConfigurationError
from datafetch.fetch import FetchPolicy
from datafetch.model.observers import Observer
from datafetch.model.statistics import Statistics

WORLD_SIZE = 2
"""For how many ranks the miniature's rows are arranged."""

_log = logging.getLogger(__name__)
_POLICY = FetchPolicy(allow_net=("127.0.0.0/8",), per_host=64, backoff_s=0.2)


@dataclass(frozen=True, slots=True)
class RecipeDemoResult:
    """What was built, and the results of the checks.

    Attributes:
        built: What became of each dataset.
        findings: How the tree compares with what is expected, and what a second run asked for.
    """

    built: tuple[BuiltDataset, ...]
    findings: tuple[DatasetFinding, ...]

    @property
    def is_passed(self) -> bool:
        """Whether all checks passed."""
        return all(finding.is_passed for finding in self.findings)

    def table(self) -> Table:
        """Return the results of the checks as a table for people."""
        table = Table(title=f"the recipe: {'all checks passed' if self.is_passed else 'SOME CHECKS FAILED'}")
        table.add_column("dataset", no_wrap=True)
        for title in ("expected", "there", "check"):
            table.add_column(title)
        for finding in self.findings:
            style = None if finding.is_passed else "bold red"
            cells = (finding.dataset, finding.expected, finding.there, finding.problem or "the same")
            table.add_row(*map(Text, cells), style=style)  # as text, because rich reads what is in brackets
        return table


def run_recipe_demo(folder: Path = DEFAULT_FOLDER, observe: Observe = lambda _, __: ()) -> RecipeDemoResult:
    """Paint the recipe's datasets in miniature, serve them as they are published, build them twice, and check the tree.

    Args:
        folder: The output folder: new, empty, or that of an earlier demo, which is replaced.
        observe: Returns the observers of each run.

    Raises:
        ConfigurationError: The folder contains something else, or the library that reads the hub is missing.
    """
    if find_spec("huggingface_hub") is None:
        raise ConfigurationError("demo --recipe reads from a hub; pip install 'vlm-datafetch[hub]'")
    prepare_folder(folder)
    pictures, root = folder / "pictures", folder / "playground/data"
    pictures.mkdir()
    with Origin(pictures, published=folder / "published") as origin:
        source = write_recipe_source(folder, origin, pictures)
        with _environment(demo_environment(folder)):
            built = _build(source, origin.mirror, root, observe)
            findings = [*_stopped(built), *check_tree(root, expect(source), WORLD_SIZE)]
            before = origin.contents()
            _log.info("building all of it once more, for which nothing may be requested")
            findings += _stopped(_build(source, origin.mirror, root, lambda _, __: ()))
            findings.append(_check_contents(before, origin.contents()))
    return RecipeDemoResult(built, tuple(findings))


def demo_environment(folder: Path) -> dict[str, str]:
    """The environment in which a folder of the demo holds what is downloaded, and no proxy is used."""
    return {
        "HF_ENDPOINT": "https://huggingface.co",  # where it is published, which the mirror stands in for
        "HF_HOME": str(folder.absolute() / "hub"),
        "HF_HUB_CACHE": str(folder.absolute() / "hub/cache"),
        "HF_HUB_OFFLINE": "0",
        "XDG_CACHE_HOME": str(folder.absolute() / "cache"),
        "NO_PROXY": f"127.0.0.1,{STORE_ADDRESS}",
        "no_proxy": f"127.0.0.1,{STORE_ADDRESS}",
    }


def handed_in(source: RecipeSource) -> dict[str, str]:
    """The sources of what is not read where it is published."""
    return {"mmc4-core": str(source.mmc4), "ocr-vqa": str(source.ocr_vqa)}


def _build(source: RecipeSource, mirror: str, root: Path, observe: Observe) -> tuple[BuiltDataset, ...]:
    def change(job: Job) -> Job:
        """For a miniature: on this machine, for a few ranks, and of synthdog-ja as many rows as it has."""
        options = find_dataset(job.dataset, job.options).options_for_limit(SYNTHDOG_ROWS)
        return replace(job, mirror=mirror, fetch=_POLICY, world_size=WORLD_SIZE, options=options)

    def observe_miniature(number: int, planned: Sequence[PlannedDataset]) -> Iterable[Observer[Statistics]]:
        """Observe datasets that are far smaller than those of the recipe, so that its numbers don't hold."""
        return observe(number, [replace(one, part=replace(one.part, images=0, listed_images=0)) for one in planned])

    return tuple(build_recipe(plan_recipe(STEPS, root, handed_in(source), {}, change), observe_miniature))


def _stopped(built: tuple[BuiltDataset, ...]) -> list[DatasetFinding]:
    return [DatasetFinding(one.part.name, "", "", str(one.error)) for one in built if one.error is not None]


def _check_contents(before: Mapping[str, int], after: Mapping[str, int]) -> DatasetFinding:
    again = [path for path, count in after.items() if count != before.get(path, 0)]
    there = f"{len(again)} contents asked for" if again else "nothing asked for"
    return DatasetFinding("second run", "nothing asked for", there, again[0] if again else "")


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment, which the hub's library takes its settings from, until the context ends."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
