"""The demo's server in place of those that publish datasets: ranges, lists of the hub and GitLab, what it counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from urllib.parse import urlsplit

import pytest

from datafetch.demo.origin import Origin

CONTENT = bytes(range(256)) * 8
HUB_FILE = "/huggingface.co/datasets/owner/name/resolve/1234567"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    """An origin with a few published files."""
    folder = tmp_path_factory.mktemp("published")
    for place in (
        "host.invalid/a/b c.bin",
        "huggingface.co/datasets/owner/name/list.json",
        "huggingface.co/datasets/owner/name/data/part 1.parquet",
        *(f"gitlab.invalid/datasets/project/file-{number}.jsonl" for number in range(3)),
        "raw.githubusercontent.com/owner/name/ids.gz",
    ):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(CONTENT)
    with Origin(folder, published=folder) as origin:
        yield origin


def ask(origin: Origin, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    """Request a published file."""
    mirror = urlsplit(origin.mirror)
    connection = HTTPConnection(mirror.netloc)
    connection.request(
        method, mirror.path + path, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def test_ranges_are_of_the_file_that_the_client_knows(served: Origin) -> None:
    """A range of the same file, the whole file if it is another, and a refusal behind its end."""
    whole, body = ask(served, "/host.invalid/a/b%20c.bin")
    assert (whole.status, body) == (200, CONTENT)
    etag = whole.headers["ETag"]
    part, body = ask(served, "/host.invalid/a/b%20c.bin", Range="bytes=10-19", If_Range=etag)
    assert (part.status, body, part.headers["Content-Range"]) == (206, CONTENT[10:20], "bytes 10-19/2048")
    assert ask(served, "/host.invalid/a/b%20c.bin", Range="bytes=250-")[1] == CONTENT[250:]
    other, body = ask(served, "/host.invalid/a/b%20c.bin", Range="bytes=10-19", If_Range='"other"')
    assert (other.status, body) == (200, CONTENT)
    assert ask(served, "/host.invalid/a/b%20c.bin", Range="bytes=2048-")[0].status == 416


def test_the_hub_lists_its_files_and_redirects_to_large_ones(served: Origin) -> None:
    """Small ones it sends itself, with the commit that its library requires."""
    _, listed = ask(served, "/huggingface.co/api/datasets/owner/name/tree/1234567?recursive=true")
    assert [one["path"] for one in json.loads(listed)] == ["data/part 1.parquet", "list.json"]
    small, body = ask(served, f"{HUB_FILE}/list.json", "HEAD")
    assert (small.status, body, small.headers["Content-Length"]) == (200, b"", "2048")
    assert len(small.headers["X-Repo-Commit"]) == 40
    large, _ = ask(served, f"{HUB_FILE}/data/part%201.parquet", "HEAD")
    assert (large.status, large.headers["X-Linked-Size"]) == (302, "2048")
    location = urlsplit(large.headers["Location"])
    assert location.hostname != urlsplit(served.mirror).hostname
    assert ask(served, location.path.removeprefix(urlsplit(served.mirror).path))[1] == CONTENT


def test_gitlab_lists_its_files_page_by_page(served: Origin) -> None:
    """And says which page comes next, if one does; raw files are there in any revision, as are GitHub's."""
    path = "/gitlab.invalid/api/v4/projects/datasets%2Fproject/repository/tree?recursive=true&per_page=2&page="
    pages = [ask(served, f"{path}{page}") for page in (1, 2)]
    assert [response.headers["X-Next-Page"] for response, _ in pages] == ["2", ""]
    files = [one for _, body in pages for one in json.loads(body)]
    assert [one["path"] for one in files] == [f"file-{number}.jsonl" for number in range(3)]
    assert {one["id"] for one in files} == {"e57fd5b4e8e07e39a62591e0851986e97116111c"}
    assert ask(served, "/gitlab.invalid/datasets/project/-/raw/main/file-2.jsonl")[1] == CONTENT
    assert ask(served, "/raw.githubusercontent.com/owner/name/0123abc/ids.gz")[1] == CONTENT


@pytest.mark.parametrize("path", ["/host.invalid/none", f"{HUB_FILE}/none.json", f"{HUB_FILE}/none.zip", "/a/../../b"])
def test_what_is_not_published_is_not_found(served: Origin, path: str) -> None:
    """Whatever is asked for."""
    assert ask(served, path)[0].status == 404


def test_requests_for_content_are_counted_and_others_are_not(served: Origin) -> None:
    """Neither lists nor headers nor redirects are content, nor is what shows whether a file is the same."""
    before = served.contents()
    ask(served, f"{HUB_FILE}/list.json", "HEAD")
    ask(served, f"{HUB_FILE}/data/part%201.parquet")
    ask(served, "/huggingface.co/api/datasets/owner/name/tree/main")
    ask(served, "/host.invalid/a/b%20c.bin", Range="bytes=0-1023")
    ask(served, "/host.invalid/a/b%20c.bin", Range="bytes=200-")
    assert served.contents() == before
    ask(served, f"{HUB_FILE}/list.json")
    ask(served, "/host.invalid/a/b%20c.bin", Range="bytes=0-1024")
    assert {path for path, count in served.contents().items() if count != before.get(path, 0)} == {
        f"/published{HUB_FILE}/list.json",
        "/published/host.invalid/a/b%20c.bin",
    }
