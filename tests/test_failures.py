"""The list of failed images, as a terminal, a spreadsheet and a program read it."""

import csv
import io
import json
import os
import pty
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from outputs import line, publish, spool, write_heartbeat, write_job
from rich.cells import cell_len

from datafetch.cli.app import main
from datafetch.cli.failure_list import _SHORT_TITLES
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import Permission
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_format import SCHEMA

EVIL = "http://evil.example/\x1b[2J\u202e=1+1\n"


def failed(sample: int, kind: str, url: str, **fields: Any) -> LedgerLine:
    """Return the ledger line of a failed image."""
    return replace(line(sample, url, kind), detail=f"because of {kind}", **{"status": None, **fields})


@pytest.fixture
def layout(tmp_path: Path) -> OutputLayout:
    """An output with two published shards and, between them, one that is in progress and one that was not begun."""
    made = OutputLayout(tmp_path / "out")
    write_job(made, "a", "b", "c", "d")
    publish(
        made,
        "a",
        [
            line(0, "http://x.org/0"),
            failed(1, "timeout", "http://写真.example/富士山.jpg", key="富士山-0001"),
            failed(2, "http_status", "http://X.org:81/2", status=404),
        ],
    )
    # In the order in which they ended, with an image that was fetched again since its entry had been damaged.
    spool(
        made,
        "b",
        [
            failed(7, "tls", "https://x.org/7"),
            line(4, "http://x.org/4"),
            failed(3, "connect", "http://y.org/3"),
            failed(3, "timeout", "http://y.org/3"),
        ],
    )
    publish(made, "d", [failed(0, "not_an_image", EVIL, key="=cmd|' /C calc'!A0", status=200)])
    return made


KEYS = ["富士山-0001", "2", "3", "7", "=cmd|' /C calc'!A0"]


def listed(capfd: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Run the command, and return the lines that it prints; it reports nothing on standard error."""
    assert main(["failures", *words]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    return printed.out.splitlines()


def test_a_file_gets_whole_lines_in_the_order_of_the_manifest(
    layout: OutputLayout, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is cut, columns are aligned, and what can't be printed is replaced. Nothing is written."""
    monkeypatch.setenv("COLUMNS", "40")
    before = {path: path.stat().st_mtime_ns for path in layout.out.parent.rglob("*")}
    title, *lines = listed(capfd, str(layout.out))
    assert title.split() == ["key", "image", "kind", "status", "URL", "detail"]
    assert [one.split("  ")[0].strip() for one in lines] == KEYS
    assert "http://写真.example/富士山.jpg" in lines[0]
    assert lines[0].endswith("because of timeout")
    assert "timeout" in lines[2]
    assert all(one.isprintable() for one in lines)
    assert {cell_len(one.partition("because")[0]) for one in lines} == {cell_len(title.partition("detail")[0])}
    assert {path: path.stat().st_mtime_ns for path in layout.out.parent.rglob("*")} == before


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, *words: str, columns: int = 80) -> list[str]:
    """Run the command on a terminal, and return the lines that it shows."""
    screen, shell = pty.openpty()
    with os.fdopen(shell, "w") as stdout, monkeypatch.context() as patched:
        patched.setenv("COLUMNS", str(columns))
        patched.setattr(sys, "stdout", stdout)
        assert main(["failures", *words]) == 0
    shown = b""
    with os.fdopen(screen, "rb", buffering=0) as lines, suppress(OSError):  # at its end, as the other side is closed
        while True:
            shown += lines.read(1 << 16)
    return shown.decode().replace("\r\n", "\n").splitlines()


def test_a_terminal_gets_a_table_that_fits(layout: OutputLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts take the place of URLs, and long values end with an ellipsis, wide characters counting as two cells."""
    long_key = "日本語の名前" * 9
    publish(layout, "c", [failed(0, "too_many_redirects", f"http://{'long.' * 30}org/", key=long_key)])
    lines = on_a_terminal(monkeypatch, str(layout.out))
    assert lines[0].split() == ["key", "kind", "status", "host", "detail"]
    assert max(map(cell_len, lines)) <= 80
    assert "写真.example " in lines[1]
    (long_line,) = (one for one in lines if one.startswith("日本語の名前日…  "))
    assert "  long.long.long.…  because of" in long_line
    assert lines[lines.index(long_line) + 1].strip() == "too_many_redirects"[:16]
    assert all(one.isprintable() for one in lines)


def test_a_terminal_gets_whole_details(layout: OutputLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are wrapped at words, and below each other."""
    detail = (
        "resolves to 10.0.0.7, which is not public, in a network that only this company has: 社内の画像サーバー" * 2
    )
    publish(layout, "c", [replace(failed(0, "blocked_address", "http://x.org/"), detail=detail)])
    lines = on_a_terminal(monkeypatch, str(layout.out), "--kinds", "blocked_address")
    assert lines[0].split() == ["key", "kind", "host", "detail"]
    column = lines[0].index("detail")
    assert max(map(cell_len, lines)) <= 80
    assert "".join(one[column:] for one in lines[1:]).replace(" ", "") == detail.replace(" ", "")
    assert all(not one[:column].strip() for one in lines[2:])
    narrow = on_a_terminal(monkeypatch, str(layout.out), "--kinds", "blocked_address", columns=40)
    assert len(narrow) == 2
    assert max(map(cell_len, narrow)) <= 40
    assert narrow[1].endswith("…")


def test_a_column_that_says_nothing_is_left_out_until_it_does(
    layout: OutputLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table then begins again, with all columns that have said something."""
    many = [failed(number, "timeout", f"http://x.org/{number}") for number in range(150)]
    many[120] = replace(many[120], status=504, outcome="http_status")
    many[130] = replace(many[130], image=7)
    publish(layout, "c", many)
    lines = on_a_terminal(monkeypatch, str(layout.out), "--host", "x.org", "--kinds", "timeout,http_status")
    titles = {number: one.split() for number, one in enumerate(lines) if one.startswith("key")}
    assert titles == {0: ["key", "kind", "status", "host", "detail"], 132: [*_SHORT_TITLES]}
    assert lines[133].split()[:4] == ["130", "7", "timeout", "x.org"]
    assert len(lines) == 2 + 151
    publish(layout, "a", [])
    lines = on_a_terminal(monkeypatch, str(layout.out), "--host", "x.org", "--kinds", "timeout,http_status")
    titles = {number: one.split() for number, one in enumerate(lines) if one.startswith("key")}
    assert titles == {0: ["key", "kind", "host", "detail"], 121: [*_SHORT_TITLES]}
    assert lines[122].split()[:5] == ["120", "0", "http_status", "504", "x.org"]


def test_json_lines_have_every_column_of_the_ledger(layout: OutputLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """Texts come back exactly, whatever they hold, and no line controls a terminal."""
    surrogate = replace(
        failed(1, "bad_url", "http://x.org/\ud83d\U000e0001"), permitted=(Permission.INSECURE,), status=404
    )
    spool(layout, "c", [surrogate])
    lines = listed(capfd, str(layout.out), "--jsonl")
    assert all(one.isprintable() for one in lines)
    parsed = [json.loads(one) for one in lines]
    assert [one["key"] for one in parsed] == [*KEYS[:4], "1", KEYS[4]]
    assert all(list(one) == ["key", *(name for name in SCHEMA.names if name != "key")] for one in parsed)
    assert parsed[5]["url"] == EVIL
    expected = {name: getattr(surrogate, name) for name in SCHEMA.names if name != "shard"}
    assert parsed[4] == {**expected, "shard": "c", "permitted": ["insecure"]}


def test_csv_cells_are_no_formulas(layout: OutputLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """A cell that a spreadsheet would compute begins with an apostrophe; there is a header, the key first."""
    publish(layout, "c", [failed(0, "tls", f"{start}1") for start in "=+-@\t\r"])
    lines = listed(capfd, str(layout.out), "--csv")
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))
    assert lines[0].startswith("key,shard,sample,image,url,")
    assert [row["key"] for row in rows] == [*KEYS[:4], *("0" * 6), f"'{KEYS[4]}"]
    assert [row["url"] for row in rows[4:10]] == ["'=1", "'+1", "'-1", "'@1", "'\ufffd1", "'\ufffd1"]
    assert (rows[0]["status"], rows[0]["is_skipped"]) == ("", "false")


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        (["--kinds", "timeout"], ["富士山-0001", "3"]),
        (["--kinds", "timeout,tls", "--kinds", "not_an_image"], ["富士山-0001", "3", "7", "=cmd|' /C calc'!A0"]),
        (["--host", "x.org"], ["2", "7"]),
        (["--host", "X.org:8080, 写真.example"], ["富士山-0001", "2", "7"]),
        (["--host", "http://y.org/"], ["3"]),
        (["--host", "x.org", "--kinds", "tls"], ["7"]),
        (["--status", "404"], ["2"]),
        (["--status", "503, 404", "--status", "200"], ["2", "=cmd|' /C calc'!A0"]),
        (["--status", "404,200", "--kinds", "http_status,timeout"], ["2"]),
    ],
)
def test_failures_are_selected_by_kind_host_and_status(
    layout: OutputLayout, options: list[str], keys: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """All are repeatable, and take several values each."""
    lines = listed(capfd, str(layout.out), "--jsonl", *options)
    assert [json.loads(one)["key"] for one in lines] == keys


def test_that_nothing_failed_is_said_on_standard_error(layout: OutputLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """Standard output stays empty, but for the header of CSV, and the exit code is 0."""
    assert main(["failures", str(layout.out), "--kinds", "empty,corrupt", "--host", "x.org"]) == 0
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == f"datafetch: no image of {layout.out} has failed as corrupt or empty at x.org\n"
    assert main(["failures", str(layout.out), "--status", "503,410", "--host", "x.org"]) == 0
    assert capfd.readouterr().err.endswith("has failed with HTTP status 410 or 503 at x.org\n")
    assert main(["failures", str(layout.out), "--kinds", "empty", "--csv"]) == 0
    assert capfd.readouterr().out.startswith("key,shard,")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kinds", "time_out"], "there is no failure kind 'time_out'; did you mean 'timeout'? there are: bad_url,"),
        (["--status", "404,"], "--status takes HTTP statuses, such as 404,503, not ''"),
        (["--status", "4xx"], "--status takes HTTP statuses, such as 404,503, not '4xx'"),
        (["--csv", "--jsonl"], "give --csv or --jsonl, not both"),
    ],
)
def test_wrong_options_are_one_line(
    layout: OutputLayout, options: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 2, and the nearest name is given."""
    assert main(["failures", str(layout.out), *options]) == 2
    (complaint,) = capfd.readouterr().err.splitlines()
    assert complaint.startswith(f"datafetch: {message}")


def test_it_works_while_a_run_is_at_work(layout: OutputLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """The spools are where the run says, and an entry that is half written is left out."""
    write_heartbeat(layout)
    (path,) = layout.all_spools.glob("*/b.spool")
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert len(listed(capfd, str(layout.state_folder), "--jsonl")) == len(KEYS)


def test_it_works_when_the_output_was_moved(layout: OutputLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """Its spools are then no longer where the last heartbeat says, but in its state folder."""
    write_heartbeat(layout)
    moved = OutputLayout(layout.out.with_name("移動"))
    layout.state_folder.rename(moved.state_folder)
    layout.out.rename(moved.out)
    assert len(listed(capfd, str(moved.out), "--jsonl")) == len(KEYS)


def test_a_damaged_ledger_is_named(layout: OutputLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """Its shard is left out, and the lines of all others are printed; the exit code is 2."""
    layout.ledger("a").write_bytes(b"garbage")
    assert main(["failures", str(layout.out), "--jsonl"]) == 2
    printed = capfd.readouterr()
    assert [json.loads(one)["key"] for one in printed.out.splitlines()] == KEYS[2:]
    assert printed.err == (
        f"datafetch: {layout.ledger('a')} is not a ledger of datafetch, so shard a is left out; put back a copy\n"
    )
    assert main(["explain", str(layout.out), "https://x.org/7"]) == 2
    printed = capfd.readouterr()
    assert "https://x.org/7" in printed.out
    assert "so shard a is left out; put back a copy" in printed.err


def test_a_closed_pipe_is_no_error(layout: OutputLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ``| head``: the command ends with 0, and reads no more than it can print."""
    publish(layout, "c", [failed(number, "timeout", f"http://x.org/{number}") for number in range(5000)])
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stdout)
        assert main(["failures", str(layout.out)]) == 0
