#!/usr/bin/env python3
"""Writes docs/messages.md, the list of every message that a user can meet, from the code.

With --check it writes nothing, and fails if the page is not what it would write.
Needs Python 3.11.

Theory of operation. A message is a text of three words or more in the package's source. What it is called with says of
what kind it is: an error that stops a command (its class decides the exit code), a log message, the detail of a
failure. All other texts that are not help are lines of summaries and reports, or parts of the messages above. So a new
message is in the list without anybody's doing, and --check, which is among the tests, finds what has changed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from lib.messages_in_code import Message, collect

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "datafetch"
PAGE = ROOT / "docs" / "messages.md"
_KINDS = ROOT / "docs" / "files.md"
_PARTS_OF = {
    "cli": "Lines of summaries, of status and of dry runs, and parts of messages",
    "datasets": "Why a record, a name or a file is refused: parts of messages, and reasons in `dropped.jsonl`",
    "engine": "Parts of messages about jobs and outputs",
    "fetch": "Why an image was not fetched: parts of details",
    "model": "Parts of messages and details",
    "monitor": "Parts of messages about runs",
    "output": "Parts of messages about outputs",
    "process": "Parts of messages about processes",
    "store": "Parts of messages about files",
    "transcode": "Why an image was not transcoded: parts of details",
    "verify": "What `datafetch verify` finds",
}

_INTRODUCTION = """# Messages

<!-- Written by scripts/messages.py from the code; change the code, and run that. -->

Every message that a command shows, or that the library raises, logs or records. What it means and what to do stands in the message itself, mostly after a semicolon; what stands here besides is what all
messages of a kind have in common. `{{name}}` stands for a value, and of `{{a|b}}` one is shown, or none if one of them is empty. Messages are one line each, at most 2,000 characters long, on standard error;
in the library, errors are exceptions, and log messages go to the loggers `datafetch.…`. In front of each message stands the module that has it, for a search in the code.

Words that messages use: a **shard** is a slice of a dataset's samples, published at once; the **state folder** is `OUT.datafetch`, next to the output; the **ledger** in it has a line for each image, and **spools** hold what is in
progress; a **codec process** decodes and encodes images; an output is **resharded** when its rows were written again as shards of equal size, one set for all ranks; a **place** is where a dataset is published.
"""

_EXITS = {
    "ConfigurationError": (
        "Exit 2: the command or a setting",
        "An option, a path or a job can't be carried out as it was given. Nothing was fetched, and nothing that was there is lost. Change what the message names, and run the command again.",
    ),
    "ManifestError": (
        "Exit 2: a manifest, an id list or another published file",
        "A file that is read is missing, damaged, or not of the form in which its dataset is published, or its server does not give it. Images that were fetched before are kept; once the file is as it should be, the same command goes on.",
    ),
    "ResourceError": (
        "Exit 4: this machine",
        "The disk is full or can't be written, or memory, threads, processes, descriptors or the filesystem's locks are lacking. No image is blamed for it. Free or raise what the message names, and run the same command again, which resumes.",
    ),
    "ConservationError": (
        "Exit 1: a bug",
        "Counts that have to agree don't: an image or a sample would be lost, or counted twice. Nothing was published. Please report it, with the message; the same command may be run again.",
    ),
}
_LOGS = {
    "warning": "Something needs your attention, and the run goes on.",
    "info": "What is being done, or was chosen.",
    "info or warning": "For your information if all is well, and a warning if it is not.",
    "error": "Something failed that the run can do without.",
}
_HELPS = {
    "blocked_address": "`--allow-net CIDR`, if you trust that network",
    "tls": "`--insecure`, which also accepts invalid certificates",
    "opted_out": "`--opt-out ignore`, if you may use such images",
    "too_large": "a larger `--max-body` or `--max-sample`",
    "too_many_pixels": "a larger `--max-pixels`",
    "missing_member": "another archive as `--source`; of a training list: prepare the image set, and the list again",
    "worker_crashed": "the body is kept in `quarantine/` of the state folder, for inspection",
}
_RETRY = "`datafetch retry OUT`, now or later"
_NOTHING = "nothing: the web has no such image any more, or it is not one that can be used"


def page() -> str:
    """The page."""
    by_group: dict[str, list[Message]] = {}
    for message in collect(PACKAGE, _EXITS):
        by_group.setdefault(message.group, []).append(message)
    lines = [_INTRODUCTION.replace("{{", "{").replace("}}", "}")]
    for group, (title, introduction) in _EXITS.items():
        lines += _section(f"## {title}", introduction, by_group.get(group, []))
    lines += ["## Log messages", ""]
    for level, introduction in _LOGS.items():
        if level in by_group:
            lines += _section(f"### {level.capitalize()}", introduction, by_group[level])
    lines += _failure_kinds()
    details = [message for group in sorted(by_group) if group.startswith("`") for message in by_group[group]]
    lines += ["### Details", "", "The detail of a failure, by its kind; in the ledger, in column `detail`.", ""]
    lines += [f"* {message.group} {_code(message.text)}" for message in details]
    lines += [""]
    lines += ["## Other lines, and parts of messages", ""]
    for package, title in _PARTS_OF.items():
        if package in by_group:
            lines += _section(f"### {title}", "", by_group[package])
    return "\n".join(lines).rstrip() + "\n"


def _section(title: str, introduction: str, messages: list[Message]) -> Iterator[str]:
    yield from (title, "")
    if introduction:
        yield from (introduction, "")
    yield from (f"* {message.module.removesuffix('.py')}: {_code(message.text)}" for message in messages)
    yield ""


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"


def _failure_kinds() -> Iterator[str]:
    """The kinds of failures, with what docs/files.md says of them, and what helps."""
    yield from ("## Failure kinds", "")
    yield (
        "Faults of the web are no errors: each is recorded for its image, with one of these kinds and a detail, and the run goes on. `datafetch status OUT` counts them, and a line of "
        "the summary says what would fetch some of them."
    )
    yield from ("", "| kind | means | what helps |", "|---|---|---|")
    table = _KINDS.read_text().partition("## Failure kinds")[2].partition("\n\n")[2].partition("\n\n")[0]
    for row in table.splitlines()[2:]:
        kinds, meaning, temporary = (cell.strip() for cell in row.strip("|").split("|"))
        helps = next((text for kind, text in _HELPS.items() if kind in kinds), _NOTHING)
        if helps == _NOTHING and temporary != "no":
            helps = _RETRY if temporary == "yes" else f"{_RETRY} ({temporary})"
        yield f"| {kinds} | {meaning} | {helps} |"
    yield ""


def main() -> int:
    """Write the page, or check it."""
    words = sys.argv[1:]
    if words not in ([], ["--check"]):
        sys.stdout.write(__doc__ or "")
        return 0 if words in (["-h"], ["--help"]) else 2
    written = page()
    if not words:
        PAGE.write_text(written)
        return 0
    if PAGE.exists() and PAGE.read_text() == written:
        return 0
    sys.stderr.write(f"{PAGE} is not what the code says; run scripts/messages.py\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
