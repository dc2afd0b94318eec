"""The manners of the library: what its values look like, and what it says when it is used in a wrong way."""

from __future__ import annotations

import asyncio
import logging
import pickle
import pydoc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sources import place_source

import datafetch
from datafetch import (
    Body,
    Check,
    ConfigurationError,
    DatafetchError,
    Encoded,
    Failure,
    FailureKind,
    Fetched,
    Fetcher,
    FetchPolicy,
    ImageSpec,
    InvalidFieldError,
    Job,
    Observer,
    Outcome,
    Payload,
    Request,
    ReshardRequest,
    RetryFilter,
    Statistics,
    Transcoder,
    __version__,
    read_status,
    run,
)
from datafetch.cli.app import main
from datafetch.cli.exit_code import message_of
from datafetch.datasets.coyo import CoyoOptions
from datafetch.datasets.mmc4 import Mmc4CoreOptions
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.observers import observed_by
from datafetch.model.sample import Sample
from datafetch.output.reshard.ranks import Ranks
from datafetch.process.event_loop import run_to_end
from datafetch.store.spool_format import ImageResult

_LONG_URL = "https://example.org/" + "猫" * 60_000
_MAX_REPR_CHARS = 250
_PATIENCE_S = 300


def _job(**fields: Any) -> Job:
    return Job(**{"dataset": "coyo", "source": "in", "out": "out", **fields})


def test_a_body_shows_its_size_and_where_it_came_from() -> None:
    """Its bytes would fill a screen for each image."""
    body = Body(b"\xff" * 105_168, "https://example.org/cat.jpg")
    assert repr(body) == "Body(105,168 bytes, 'https://example.org/cat.jpg')"
    encoded = Encoded(b"\xff" * 30_000, 336, 448, "WEBP")
    assert repr(encoded) == "Encoded(30,000 bytes, 336×448 px, from 'WEBP')"
    failure = Failure(FailureKind.HTTP_STATUS, "HTTP 404", 404, final_url="https://example.org/gone.jpg")
    assert repr(failure) == "Failure(http_status, 'HTTP 404', 'https://example.org/gone.jpg')"


def test_the_length_of_what_is_shown_is_bounded() -> None:
    """Whatever the web and the manifest put into URLs, reasons and names."""
    content = b"\xff" * 105_168
    sample = Sample(0, "17", (_LONG_URL,), {}, content=content)
    encoded = Encoded(content, 336, 448, _LONG_URL)
    values = [
        Body(content, _LONG_URL),
        Failure(FailureKind.TIMEOUT, _LONG_URL, final_url=_LONG_URL),
        encoded,
        ImageResult(LedgerLine.of(sample, 0, Body(content, _LONG_URL), encoded), content),
    ]
    assert [len(repr(value)) < _MAX_REPR_CHARS for value in values] == [True] * len(values)
    assert r"\xff" not in repr(sample)


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (_job, {"limit": 2.5}, "limit must be a whole number or None, not 2.5"),
        (_job, {"limit": True}, "limit must be a whole number or None, not True"),
        (_job, {"limit": 0}, "limit must be from 1 to 9,223,372,036,854,775,807, not 0"),
        (_job, {"source": 5}, "source must be a string, not 5"),
        (_job, {"source": None}, "source must be a string, not None"),
        (_job, {"fetch": 64}, "fetch must be a FetchPolicy, not 64"),
        (_job, {"image": {"quality": 75}}, "image must be an ImageSpec or None, not {'quality': 75}"),
        (
            _job,
            {"options": {"keep_at_least": 2}},
            "options must be a DatasetOptions or None, not {'keep_at_least': 2}",
        ),
        (_job, {"fresh": "no"}, "fresh must be True or False, not 'no'"),
        (_job, {"memory_bytes": "1GiB"}, "memory_bytes must be a whole number, not '1GiB'"),
        (_job, {"ids": ""}, "ids is empty; give a path, or leave it out"),
        (FetchPolicy, {"connections": "64"}, "connections must be a whole number or None, not '64'"),
        (FetchPolicy, {"timeout_s": "30"}, "timeout_s must be a number, not '30'"),
        (FetchPolicy, {"timeout_s": 0}, "timeout_s must be above 0 seconds and at most a day, not 0"),
        (FetchPolicy, {"allow_net": "10.0.0.0/8"}, "allow_net must be a tuple of strings, not '10.0.0.0/8'"),
        (
            FetchPolicy,
            {"allow_net": ("10.0.0.0/8", 5)},
            "allow_net must be a tuple of strings, not ('10.0.0.0/8', 5)",
        ),
        (
            FetchPolicy,
            {"allow_net": ("{10}",)},
            (
                "allow_net takes addresses in CIDR form, such as 10.0.0.0/8: '{10}' does not appear to be an "
                "IPv4 or IPv6 network"
            ),
        ),
        (FetchPolicy, {"opt_out": "never"}, "opt_out must be obey or ignore, not 'never'"),
        (ImageSpec, {"quality": "75"}, "quality must be a whole number, not '75'"),
        (ImageSpec, {"min_pixels": 0}, "min_pixels must be from 1 to max_pixels, not 0"),
        (Mmc4CoreOptions, {"keep_at_least": "2"}, "keep_at_least must be a whole number or None, not '2'"),
        (Mmc4CoreOptions, {"max_tokens": 2}, "max_tokens and tokenizer must be given together"),
        (Check, {"out": "out", "world_size": "64"}, "world_size must be a whole number or None, not '64'"),
        (Check, {"out": "out", "processes": 0}, "processes must be from 1 to 1,024, not 0"),
        (ReshardRequest, {"source": Path("in"), "out": 5}, "out must be a path, not 5"),
        (Ranks, {"batch": 0}, "batch must be from 1 to 1,000,000, not 0"),
        (RetryFilter, {"kinds": "timeout"}, "kinds must be a set of FailureKind or None, not 'timeout'"),
        (RetryFilter, {"kinds": {"time_out"}}, "kinds must be a set of FailureKind or None, not {'time_out'}"),
    ],
)
def test_a_wrong_value_is_refused_with_its_field_and_what_that_takes(
    cls: Callable[..., Any], fields: dict[str, Any], message: str
) -> None:
    """One sentence, in the words of Python: there is no ``--option`` in it."""
    with pytest.raises(ConfigurationError) as refused:
        cls(**fields)
    assert str(refused.value) == message
    assert "--" not in message
    assert str(pickle.loads(pickle.dumps(refused.value))) == message


def test_the_length_of_a_message_is_bounded() -> None:
    """A caller may mistake a body for a path."""
    with pytest.raises(ConfigurationError) as refused:
        _job(source=b"x" * 1_000_000)
    assert len(str(refused.value)) < _MAX_REPR_CHARS


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (FetchPolicy, {"timeout_s": 0}, "--timeout must be above 0 seconds and at most a day, not 0"),
        (FetchPolicy, {"nameservers": ("dns",)}, "--nameserver takes ADDRESS or ADDRESS:PORT, with [] around"),
        (_job, {"max_sample_bytes": 0}, "--max-sample must be from 1 to"),
        (
            ImageSpec,
            {"encode": "received", "quality": 50, "short_side_px": 5},
            "--encode received keeps images as they are: it takes --short-side none and --pixels recipe",
        ),
        (Mmc4CoreOptions, {"max_tokens": 2}, "--max-tokens and --tokenizer must be given together"),
    ],
)
def test_the_command_line_names_options(cls: Callable[..., Any], fields: dict[str, Any], message: str) -> None:
    """The same errors, in the words of whoever typed the value."""
    with pytest.raises(InvalidFieldError) as refused:
        cls(**fields)
    assert message_of(refused.value).startswith(message)


def test_a_command_shows_the_option_that_was_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on standard error, and exit 2."""
    command = ["prepare", "coyo", "--source", str(tmp_path), "--root", str(tmp_path / "データ"), "--user-agent", "\t"]
    assert main(command) == 2
    assert capsys.readouterr().err == "datafetch: --user-agent must be one line of printable text\n"


def test_paths_and_choices_may_be_given_in_any_form() -> None:
    """A path as a string or a Path, a choice as a string, several values as any collection, numbers as NumPy's."""
    folder: Any = Path("データ/coyo")
    values: dict[str, Any] = {"payload": "bytes", "limit": np.int64(3)}
    job = Job("coyo", folder, folder, ids=folder, **values)
    assert (job.source, job.out, job.ids) == (str(folder),) * 3
    assert (type(job.limit), job.payload) == (int, Payload.BYTES)
    path: Any = "in"
    assert ReshardRequest(path, path).source == Path("in")
    networks: Any = ["10.0.0.0/8"]
    assert FetchPolicy(allow_net=networks).allow_net == ("10.0.0.0/8",)
    kinds: Any = ["timeout"]
    assert RetryFilter(kinds) == RetryFilter(frozenset({FailureKind.TIMEOUT}))


def test_what_is_no_job_is_refused() -> None:
    """With what to write instead; so are the options of another dataset."""
    job: Any = "coyo"
    with pytest.raises(
        ConfigurationError, match=r"^a Job is needed, not 'coyo'; write Job\(dataset=…, source=…, out=…\)$"
    ):
        datafetch.run(job)
    message = (
        r"^coyo takes CoyoOptions, not Mmc4CoreOptions; write options=CoyoOptions\(…\), "
        rf"which is in {CoyoOptions.__module__}$"
    )
    with pytest.raises(ConfigurationError, match=message):
        datafetch.run(_job(options=Mmc4CoreOptions()))


@pytest.mark.parametrize(
    ("call", "instead"),
    [
        (lambda: datafetch.run(_job()), "await fetch_dataset(job)"),
        (lambda: datafetch.fetch_shards(_job()), "await fetch_dataset_shards(job, shards)"),
        (lambda: datafetch.finish(_job()), "await finish_dataset(job)"),
        (lambda: datafetch.retry("out"), "await retry_failed(out)"),
        (lambda: datafetch.shard_names(_job()), "await asyncio.to_thread(shard_names, job)"),
        (lambda: datafetch.run_check(Check("out")), "await verify_output(check)"),
    ],
)
async def test_a_running_loop_is_told_what_to_await(call: Callable[[], Any], instead: str) -> None:
    """As in a notebook, where no second loop can be started."""
    with pytest.raises(RuntimeError) as refused:
        call()
    where = "an event loop is running here, as in a notebook or an async function"
    assert str(refused.value) == f"{where}; write: {instead}"


async def test_a_thread_may_have_a_loop_of_its_own() -> None:
    """What the message says for ``shard_names`` works."""
    with pytest.raises(DatafetchError, match="there is no dataset"):
        await asyncio.to_thread(datafetch.shard_names, _job(dataset="none"))


async def test_a_fetcher_that_is_not_open_says_what_to_write() -> None:
    """Before it is entered, and after it is left."""
    message = (
        r"^a Fetcher works only while it is open; write: async with Fetcher\(policy\) as fetch: await fetch\(url\)$"
    )
    fetch = Fetcher(FetchPolicy())
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            await fetch("http://127.0.0.1/")
        with pytest.raises(RuntimeError, match=message):
            fetch.statistics()
        async with fetch:
            assert fetch.statistics().attempts == 0
            url: Any = Path("cat.jpg")
            assert repr(fetch) == "<Fetcher, open, 0 attempts>"
            with pytest.raises(TypeError, match=r"^a Fetcher takes a URL as a string, or a Request, not PosixPath\("):
                await fetch(url)


def test_observers_that_are_no_list_and_an_output_that_is_no_path_are_named(tmp_path: Path) -> None:
    """Each in words, with what to write."""

    async def observe(_: object) -> None:
        raise AssertionError

    wrong: Any = observe
    source = place_source("coyo", tmp_path)
    job = Job("coyo", str(source.folder), str(tmp_path / "out"), ids=str(source.ids))
    with pytest.raises(TypeError, match=r"^observers are given as a list, not as <function .*; write \[observe\]$"):
        run(job, wrong)
    number: Any = 3
    with pytest.raises(TypeError, match=r"^an output is given by its path, not 3; give a string or a Path$"):
        read_status(number)


async def test_a_transcoder_that_is_not_open_says_what_to_write() -> None:
    """A failure is returned even then, for it needs no process."""
    transcode = Transcoder()
    with pytest.raises(
        RuntimeError, match=r"write: async with Transcoder\(spec\) as transcode: await transcode\(body\)$"
    ):
        await transcode(b"\xff\xd8")
    path: Any = "cat.jpg"
    with pytest.raises(TypeError, match=r"^a Transcoder takes what a Fetcher returned, or bytes, not 'cat.jpg'$"):
        await transcode(path)


def test_an_observer_that_exits_does_not_end_the_work(caplog: pytest.LogCaptureFixture) -> None:
    """``sys.exit()`` in an observer, or in what it calls, would end the run without a word and with exit code 0."""

    async def observe(take_snapshot: Callable[[], int]) -> None:
        take_snapshot()
        await asyncio.sleep(0)
        sys.exit()

    async def work() -> str:
        async with observed_by([observe], lambda: 5):
            for _ in range(5):
                await asyncio.sleep(0)
            return "done"

    with caplog.at_level(logging.ERROR):
        assert run_to_end(work()) == "done"
    assert [record.message for record in caplog.records] == [
        "an observer failed (SystemExit: ); the work itself continues"
    ]


def test_help_shows_what_the_package_has() -> None:
    """``help(datafetch)`` and ``dir(datafetch)`` have every public name, although all are loaded lazily."""
    text = pydoc.plain(pydoc.render_doc(datafetch))
    assert set(datafetch.__all__) <= set(dir(datafetch))
    assert [name for name in datafetch.__all__ if name not in text] == []
    assert "Run a job, or resume it, on an event loop of its own." in text
    assert f"VERSION\n    {__version__}" in text


_PROGRAM = """
import asyncio
from collections.abc import Callable
from datafetch import (
    ConfigurationError, ConservationError, DatafetchError, Encoded, Fetched, Fetcher, FetchPolicy, ImageSpec, Job,
    ManifestError, Observer, Outcome, Report, ResourceError, Statistics, Transcoder, __version__, run,
)

async def watch(take_snapshot: Callable[[], Statistics]) -> None:
    print(take_snapshot().ok)

def build(observers: list[Observer[Statistics]]) -> Report | None:
    try:
        return run(Job(dataset="coyo", source="in", out="out"), observers)
    except (ConfigurationError, ConservationError, ManifestError, ResourceError, DatafetchError) as error:
        print(error, __version__.partition("."))
    return None

async def encode(url: str) -> Outcome:
    async with Fetcher(FetchPolicy(connections=64)) as fetch, Transcoder(ImageSpec(short_side_px=336)) as transcode:
        body: Fetched = await fetch(url)
        return await transcode(body)

outcome = asyncio.run(encode("http://example.org/cat.jpg"))
size: int = len(outcome.jpeg) if isinstance(outcome, Encoded) else outcome.attempts
build([watch])
"""


@pytest.mark.rotating
@pytest.mark.slow
def test_a_users_program_passes_a_strict_type_checker(tmp_path: Path) -> None:
    """With what the package declares, although it loads its names lazily."""
    (tmp_path / "program.py").write_text(_PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "program.py"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
    assert checked.stdout == "Success: no issues found in 1 source file\n"


def test_the_types_of_a_users_program_have_names() -> None:
    """What annotations name is there at run time, too."""

    async def observe(take_snapshot: Callable[[], Statistics]) -> None:
        take_snapshot()

    def describe(fetched: Fetched, outcome: Outcome) -> str:
        ending = outcome.kind if isinstance(outcome, Failure) else outcome.source_format
        return f"{fetched.attempts} {ending}"

    observer: Observer[Statistics] = observe
    version: str = __version__
    assert asyncio.iscoroutinefunction(observer)
    assert version == datafetch.__version__
    assert describe(Body(b"x"), Failure(FailureKind.TIMEOUT)) == "1 timeout"
    assert Request("http://example.org/").byte_range is None
