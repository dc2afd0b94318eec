"""Who takes over a decoder finds no files, no network and no rights; and the decoder misses none of them."""

import ctypes
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from kinds import KINDS
from sandbox_codecs import DONE, attempt

from datafetch.demo.pictures import paint
from datafetch.model.outcome import Encoded
from datafetch.transcode import ImageSpec, Pixels, Transcoder
from datafetch.transcode.codec import transcode as transcode_here
from datafetch.transcode.pool.sandbox import MAX_DESCRIPTORS, kept_environment

LANDLOCK: int = ctypes.CDLL(None).syscall(444, None, 0, 1)
FILES, SIGNALS = 1, 6
"""The versions of Landlock that first deny them."""


async def tried(name: str, argument: object = "", *, is_shut_in: bool = True) -> bytes:
    """How an attempt went in a codec process."""
    async with Transcoder(processes=1, codec=attempt, is_shut_in=is_shut_in) as transcode:
        outcome = await transcode(f"{name} {argument}".encode())
    assert isinstance(outcome, Encoded), outcome
    return outcome.jpeg


@pytest.fixture
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[object]:
    """What an attempt is made on: a file, a folder, somebody who listens, this process."""
    name: str = request.getfixturevalue("name")
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
"""What is tried, and from which version of Landlock on it fails; 0 where that does not depend on it."""


@pytest.mark.parametrize("name", ATTEMPTS)
async def test_a_codec_process_reaches_nothing(name: str, target: object) -> None:
    """No file can be read, made, changed or run, nobody be connected to or ended, no memory be hoarded in files."""
    if ATTEMPTS[name] > LANDLOCK:
        pytest.skip(f"needs Landlock {ATTEMPTS[name]}, and this kernel has {LANDLOCK}")
    assert await tried(name, target) in (b"PermissionError", b"OSError")


async def test_what_the_kernel_can_not_deny_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """One line for all codec processes, for those who ask for it; none where nothing is missing."""
    caplog.set_level("INFO", "datafetch")
    await tried("limits")
    said = [record.message for record in caplog.records if "could still reach" in record.message]
    assert len(said) == (LANDLOCK < SIGNALS)
    assert all(("signals" in line, "files" in line) == (True, LANDLOCK < FILES) for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTEMPTS)
async def test_without_a_sandbox_it_does(name: str, target: object) -> None:
    """The same attempts succeed where a codec of one's own asks to be let out."""
    assert await tried(name, target, is_shut_in=False) == DONE


async def test_its_limits_are_low_and_stay_so() -> None:
    """Descriptors are few, and who would raise their number may not."""
    async with Transcoder(processes=1, codec=attempt) as transcode:
        said = [await transcode(name) for name in (b"limits ", b"more-limits ", b"descriptors ", b"map ")]
    assert [outcome.jpeg for outcome in said if isinstance(outcome, Encoded)] == [
        b"%d" % MAX_DESCRIPTORS,
        b"ValueError",
        b"OSError",
        DONE,
    ]


async def test_it_may_have_threads() -> None:
    """Libraries make them, and they end with it."""
    assert await tried("thread") == DONE


async def test_it_has_no_rights() -> None:
    """No capability is left, also where the run is root's, and no program that is run could get any."""
    async with Transcoder(processes=1, codec=attempt) as transcode:
        said = [await transcode(name) for name in (b"rights ", b"privileges ")]
    assert [outcome.jpeg for outcome in said if isinstance(outcome, Encoded)] == [b"0", b"1"]


async def test_it_does_not_know_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys to clouds and the like stay with the parent; not even where a process's environment first lay are they."""
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "HTTPS_PROXY", "SSH_AUTH_SOCK", "HOME"):
        monkeypatch.setenv(name, "hunter2")
    names = (await tried("environment", is_shut_in=False)).split()
    assert {name.decode() for name in names} <= kept_environment(os.environ).keys() | {"LC_CTYPE"}
    assert b"hunter2" not in await tried("own-environ", is_shut_in=False)


def test_what_python_goes_by_is_kept() -> None:
    """Where its modules and libraries lie, and how text is encoded."""
    kept = {"PYTHONHOME": "/python", "LD_LIBRARY_PATH": "/lib", "LANG": "C.UTF-8", "LC_ALL": "C", "PYTHONPATH": "/x"}
    assert kept_environment({**kept, "GITHUB_TOKEN": "hunter2", "PATH": "/bin", "LANGUAGES": "x"}) == kept


async def test_pictures_come_out_of_it_as_they_do_outside(pictures: tuple[Path, list[str]]) -> None:
    """The codec needs nothing that is shut out: every format and mode, the same bytes."""
    folder, names = pictures
    await check_the_same([(folder / name).read_bytes() for name in names], ImageSpec(short_side_px=40))


@pytest.mark.slow
@pytest.mark.parametrize("pixels", Pixels)
async def test_every_kind_of_file_comes_out_of_it_as_it_does_outside(pixels: Pixels) -> None:
    """The same for all that the codec is held to, whole and cut short, with profiles, orientation and depth."""
    bodies = [kind(paint((61, 47), seed)) for seed, kind in enumerate(KINDS.values())]
    bodies += [body[: len(body) * 7 // 10] for body in bodies]
    await check_the_same(bodies, ImageSpec(short_side_px=24, pixels=pixels))


async def check_the_same(bodies: list[bytes], spec: ImageSpec) -> None:
    """The outcomes in a codec process are those in this one."""
    with warnings.catch_warnings(action="ignore"):
        here = [transcode_here(body, spec) for body in bodies]
    async with Transcoder(spec, processes=1) as transcode:
        assert [await transcode(body) for body in bodies] == here
