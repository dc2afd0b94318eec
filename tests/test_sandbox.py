"""A compromised decoder gains no files, no network and no privileges, and an honest one needs none of them."""

import asyncio
import ctypes
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from kinds import KINDS
from sandbox_codecs import DONE, attempt

from datafetch.demo.pictures import paint
from datafetch.model.outcome import Encoded, Outcome
from datafetch.transcode import ImageSpec, Pixels, Transcoder
from datafetch.transcode.codec import transcode as transcode_here
from datafetch.transcode.pool.sandbox import MAX_DESCRIPTORS, kept_environment

LANDLOCK: int = ctypes.CDLL(None).syscall(444, None, 0, 1)
FILES, SIGNALS = 1, 6
"""The versions of Landlock that first deny access to each."""


async def attempt_in_worker(name: str, argument: object = "", *, is_sandboxed: bool = True) -> bytes:
    """Make an attempt in a worker, and return how it went."""
    async with Transcoder(processes=1, codec=attempt, is_sandboxed=is_sandboxed) as transcode:
        outcome = await transcode(f"{name} {argument}".encode())
    assert isinstance(outcome, Encoded), outcome
    return outcome.jpeg


@contextmanager
def provide_target(name: str, tmp_path: Path) -> Iterator[object]:
    """Provide what an attempt is made on: a file, a folder, a listening socket, or this process."""
    (tmp_path / "secret").write_bytes(b"x")
    if name not in ("tcp", "udp", "unix", "abstract"):
        yield {"list": tmp_path, "signal": os.getpid()}.get(name, tmp_path / "secret")
        return
    family = socket.AF_INET if name in ("tcp", "udp") else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_DGRAM if name == "udp" else socket.SOCK_STREAM) as listener:
        at = {"unix": str(tmp_path / "socket"), "abstract": f"\0{tmp_path.name}-{os.getpid()}"}.get(name)
        listener.bind(at or ("127.0.0.1", 0))
        if name != "udp":
            listener.listen()
        yield at.removeprefix("\0") if at else listener.getsockname()[1]


ATTEMPTS = {
    **dict.fromkeys(["read", "list", "write", "create", "delete", "rename", "link"], FILES),
    **dict.fromkeys(["environ-of-parent", "memory-of-parent"], FILES),
    **dict.fromkeys(["run", "tcp", "udp", "unix", "abstract", "grow"], 0),
    **dict.fromkeys(["limit-of-parent", "fork", "shared-memory", "keyring", "namespace"], 0),
    "signal": SIGNALS,
}
"""The attempts, and the version of Landlock from which on they fail; 0 if they fail without it."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Outcome]:
    """How each attempt went, one after another in the same pool."""

    async def attempt_all() -> dict[str, Outcome]:
        found = {}
        async with Transcoder(processes=1, codec=attempt) as transcode:
            for name in ATTEMPTS:
                with provide_target(name, tmp_path_factory.mktemp("target")) as target:
                    found[name] = await transcode(f"{name} {target}".encode())
        return found

    return asyncio.run(attempt_all())


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_worker_reaches_nothing(name: str, outcomes: Mapping[str, Outcome]) -> None:
    """It can't read, create, change or run files, connect to or signal processes, or fill memory with files."""
    if ATTEMPTS[name] > LANDLOCK:
        pytest.skip(f"needs Landlock {ATTEMPTS[name]}, and this kernel has {LANDLOCK}")
    outcome = outcomes[name]
    assert isinstance(outcome, Encoded), outcome
    assert outcome.jpeg in (b"PermissionError", b"OSError")


async def test_missing_protections_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """There is one line for all workers, at level INFO, and none if nothing is missing."""
    caplog.set_level("INFO", "datafetch")
    await attempt_in_worker("limits")
    lines = [record.message for record in caplog.records if "could still reach" in record.message]
    assert len(lines) == (LANDLOCK < SIGNALS)
    assert all(("signals" in line, "files" in line) == (True, LANDLOCK < FILES) for line in lines)


@pytest.mark.rotating
@pytest.mark.slow
@pytest.mark.parametrize("name", ATTEMPTS)
async def test_attempts_succeed_without_the_sandbox(name: str, tmp_path: Path) -> None:
    """The same attempts succeed in a worker that is not sandboxed."""
    with provide_target(name, tmp_path) as target:
        assert await attempt_in_worker(name, target, is_sandboxed=False) == DONE


@pytest.mark.rotating
async def test_its_limits_are_low_and_cannot_be_raised() -> None:
    """It may open few descriptors, and can't raise that limit."""
    async with Transcoder(processes=1, codec=attempt) as transcode:
        outcomes = [await transcode(name) for name in (b"limits ", b"more-limits ", b"descriptors ", b"map ")]
    assert [outcome.jpeg for outcome in outcomes if isinstance(outcome, Encoded)] == [
        b"%d" % MAX_DESCRIPTORS,
        b"ValueError",
        b"OSError",
        DONE,
    ]


@pytest.mark.rotating
async def test_it_may_have_threads() -> None:
    """Libraries create threads, which end with the worker."""
    assert await attempt_in_worker("thread") == DONE


@pytest.mark.rotating
async def test_it_has_no_privileges() -> None:
    """No capability is left, even if root runs datafetch, and no program that it starts could gain any."""
    async with Transcoder(processes=1, codec=attempt) as transcode:
        outcomes = [await transcode(name) for name in (b"capabilities ", b"privileges ")]
    assert [outcome.jpeg for outcome in outcomes if isinstance(outcome, Encoded)] == [b"0", b"1"]


@pytest.mark.rotating
async def test_it_has_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cloud credentials and the like stay with the parent; not even /proc/self/environ shows them."""
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "HTTPS_PROXY", "SSH_AUTH_SOCK", "HOME"):
        monkeypatch.setenv(name, "hunter2")
    names = (await attempt_in_worker("environment", is_sandboxed=False)).split()
    assert {name.decode() for name in names} <= kept_environment(os.environ).keys() | {"LC_CTYPE"}
    assert b"hunter2" not in await attempt_in_worker("own-environ", is_sandboxed=False)


def test_variables_that_python_needs_are_kept() -> None:
    """These name the places of modules and libraries, and the encoding of text."""
    kept = {"PYTHONHOME": "/python", "LD_LIBRARY_PATH": "/lib", "LANG": "C.UTF-8", "LC_ALL": "C", "PYTHONPATH": "/x"}
    assert kept_environment({**kept, "GITHUB_TOKEN": "hunter2", "PATH": "/bin", "LANGUAGES": "x"}) == kept


async def test_pictures_are_the_same_as_outside_of_it(pictures: tuple[Path, list[str]]) -> None:
    """The codec needs nothing that the sandbox denies: every format and mode gives the same bytes."""
    folder, names = pictures
    await check_same_outcomes([(folder / name).read_bytes() for name in names], ImageSpec(short_side_px=40))


@pytest.mark.rotating
@pytest.mark.slow
@pytest.mark.parametrize("pixels", Pixels)
async def test_every_kind_of_file_is_the_same_as_outside_of_it(pixels: Pixels) -> None:
    """The same holds for every kind of test file, whole and cut short, with profiles, orientation and depth."""
    bodies = [kind(paint((61, 47), seed)) for seed, kind in enumerate(KINDS.values())]
    bodies += [body[: len(body) * 7 // 10] for body in bodies]
    await check_same_outcomes(bodies, ImageSpec(short_side_px=24, pixels=pixels))


async def check_same_outcomes(bodies: list[bytes], spec: ImageSpec) -> None:
    """Check that the outcomes in a worker equal those in this process."""
    with warnings.catch_warnings(action="ignore"):
        here = [transcode_here(body, spec) for body in bodies]
    async with Transcoder(spec, processes=1) as transcode:
        assert [await transcode(body) for body in bodies] == here
