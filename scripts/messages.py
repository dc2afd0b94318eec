#!/usr/bin/env python3
"""Writes docs/messages.md, the list of every message that a user can meet, from the code.

With --check it writes nothing, and fails if the page is not what it would write. In both cases it fails if a message
does not say what to do, and nothing here says it, or if what is said here belongs to no message any more.
Needs Python 3.11.

Theory of operation. A message is a text of three words or more in the package's source. What it is called with says of
what kind it is: an error that stops a command (its class decides the exit code), a log message, the detail of a
failure. All other texts that are not help are lines of summaries and reports, or parts of the messages above. So a new
message is in the list without anybody's doing, and --check, which is among the tests, finds what has changed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lib.messages_in_code import MISUSE_GROUP, Message, collect

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "datafetch"
PAGE = ROOT / "docs" / "messages.md"
_KINDS = ROOT / "docs" / "files.md"
_PARTS_OF = {
    "cli": (
        "Lines of summaries, of status and of dry runs",
        "They say how things stand; where something is to be done, the line has the command.",
    ),
    "datasets": (
        "Why a record, a name or a file is refused",
        "The second half of a message of exit 2, which says what to do, or the reason in `dropped.jsonl` why a record is not in the trainer's list: such records are lost by what was published, and nothing is to be done. What begins with `no --ids` or names a choice is a line at the start of a run.",
    ),
    "engine": (
        "Parts of messages about jobs and outputs",
        "What differs, or what else can be done; the message around it says which file or output it is about.",
    ),
    "fetch": (
        "Why an image was not fetched",
        "In column `detail` of the ledger, or behind the name of a file that is read by ranges. The failure kind says what helps (see *Failure kinds*). What speaks of this machine, its name servers or a proxy is the first half of a message of exit 4.",
    ),
    "model": (
        "Parts of messages and of advice",
        "What they say to do, such as an option to give, stands in the line that has them.",
    ),
    "monitor": (
        "What `datafetch explain` and `status` say",
        "Nothing is to be done, except where the line has a command.",
    ),
    "output": (
        "Why a shard can't be read, or was written as it was",
        "Reasons that begin with *it* and are about pickles mean that the file is not one of plain values: it is from elsewhere, or damaged. Nothing of it was run. Get a sound copy.",
    ),
    "process": ("Parts of messages about processes", "See *Exit 4*."),
    "store": ("Parts of messages about files", "The message around it says what to do."),
    "transcode": (
        "Why an image was not transcoded",
        "In column `detail` of the ledger; the failure kind says what helps (see *Failure kinds*). Some name what a sandbox does not keep a decoder from, or are the second half of a message of exit 4.",
    ),
    "verify": (
        "What `datafetch verify` finds",
        (
            "Behind the name of the file, or the record. The trainer would crash on it, or read something else than is meant. If datafetch made the output: delete the shard's `.pkl` (of an image or a list, the file), and run the command that made it, "
            "which makes it again. If not, get a sound copy, or make the shards again as they were made. What follows from the number of ranks, `datafetch reshard` mends."
        ),
    ),
}

_INTRODUCTION = """# Messages

<!-- Written by scripts/messages.py from the code; change the code, and run that. -->

Every message that a command shows, or that the library raises, logs or records. What to do stands in the message itself, mostly after a semicolon, or here behind it; and each section says what all of its messages have in common.
`{name}` stands for a value, and of `{a|b}` one is shown, or none if one of them is empty. An option is named as it is given: on the command line `--limit`, in Python `limit`. Messages are one line each, at most 2,000 characters long, on standard error;
in the library, errors are exceptions, and log messages go to the loggers `datafetch.…`. In front of each message stands the module that has it, for a search in the code. Parts that say nothing by themselves are left out.

Words that messages use: a **manifest** is the published files that name the images, and an **id list** selects of them; a **shard** is a slice of a dataset's samples, published at once; the **state folder** is `OUT.datafetch`, next to
the output; the **ledger** in it has a line for each image, and a **spool** holds the images of a shard in progress; a **codec process** decodes and encodes images; a **rank** is one of the training processes (`--world-size` of them) that share
the shards; an output is **resharded** when its rows were written again as shards that give every rank the same number.
"""

_EXITS = {
    "ConfigurationError": (
        "Exit 2: the command or a setting",
        "An option, a path or a job can't be carried out as it was given. Most are noticed before anything is fetched; the others, such as a file of someone else's in the way, stop a run that can be resumed. What was fetched and what was there is kept. Change what the message names, and run the command again.",
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
_MISUSE = (
    "Wrong use of the library",
    "`TypeError`, `RuntimeError` or `ValueError`, as Python's own functions raise them: the program that calls datafetch has to be changed.",
)
_LOGS = {
    "warning": "Something needs your attention, and the run goes on.",
    "info": "What is being done, or was chosen. Nothing is to be done.",
    "info or warning": "For your information if all is well, and a warning if it is not.",
    "error": "Something failed, or is less than was asked for; the rest of the run is not affected.",
}
_IF_ALL = "nothing, if some images have it; if nearly all have, check this machine's network"
_HELPS = {
    "dns_not_found": f"{_IF_ALL}, and whether `--trust-env` or `--nameserver` is needed; then `datafetch retry OUT --kinds dns_not_found`",
    "too_many_redirects": f"{_IF_ALL} for a page to log in; then `datafetch retry OUT --kinds too_many_redirects`",
    "not_an_image": f"{_IF_ALL} for a page to log in, a proxy or a filter that sends its own page; then `datafetch retry OUT --kinds not_an_image`",
    "blocked_address": "`--allow-net CIDR`, if you trust that network",
    "tls": "`--insecure`, which also accepts invalid certificates",
    "opted_out": "`--opt-out ignore`, if you may use such images",
    "too_large": "a larger `--max-body` or `--max-sample`",
    "too_many_pixels": "a larger `--max-pixels`",
    "too_small": "nothing: `--min-size` leaves such images out",
    "area_too_large": "nothing: `--max-area` leaves such images out",
    "aspect_ratio_too_large": "nothing: `--max-aspect-ratio` leaves such images out",
    "missing_member": "another archive as `--source`; of a training list: prepare the image set, and the list again",
    "worker_crashed": "the body is kept in `quarantine/` of the state folder, for inspection",
}
_WHAT_TO_DO = {
    "{usage_message}": "correct the command; the help that it names lists what there is",
    "is required, not '{value}'": "give one",
    "is less than the minimum": "give a larger number",
    "is not among the datasets": "correct the name, or name that dataset, too",
    "does not take {ids}": "leave out `--ids`",
    "there is no run in {out}: {job}": "give the folder that a run writes to, not its state folder",
    "the shards do not hold the rows": "a shard was changed by hand, or is of another run: put back a copy, or start over with `--fresh`",
    "rows are too few for {world_size} {world_size}": "fewer ranks, or a smaller batch or group, or more rows",
    "can't read {out}": "check the path, and that you may read it",
    "can't read {folder}": "check the path, and that you may read it",
    "verify can't read {output_format}": "no command checks such an output; look at its ledger",
    "is neither a folder of shards or images nor a JSON file": "give the output, or the trainer's list",
    "{file}, line {number}: {reason}": "what the reason says; or correct that line",
    "{path} has more than {max_ids} ids": "the file is damaged, or is no list of ids: get it again",
    "has a record that": "it is no published list, or damaged: download it again",
    "has changed since it was opened (no record": "leave the file alone during a run, and run the same command again",
    "has data after its": "it is damaged: download it again",
    "has more records than a file of its size": "it is damaged: download it again",
    "blanks in a row": "it is damaged: download it again",
    "has no comma between two records": "it is damaged, or was edited: download it again",
    "is cut short": "download it again",
    "is not UTF-8": "download it again",
    "is not a JSON {what}": "give the published list",
    "{why_refused}: {strange}": "a file listed there has a name that can't be used: download the others, and give their folder",
    "{name} is empty": "the server has an empty file there: check the URL, or try again later",
    "central directory that is damaged": "download the archive again",
    "is damaged or cut short at byte": "delete the shard's `.pkl`, and run the command that made it; of a shard from elsewhere, get it again",
    "is not a number": "a `.count` holds the number of rows of its shard: delete the shard, and run the command that made it; or write the number",
    "is not a pickled list of dicts": "it is no shard: move it away, or get it again",
    "has rows that are not plain values": "it is not one that datafetch or VILA wrote, and nothing of it was run: get it from who made it, as plain values",
    "holds a row of more than 4 GiB": "such rows can't be resharded: leave that shard out",
    "rows, its {count_suffix} says": "one of the two is of another shard, or damaged: delete both, and run the command that made them",
    "can't be read: {reason}": "check that you may read it; if the disk is damaged, put back a copy",
    "cannot start the process that asks the hub": "free memory or processes (`ulimit -a` shows limits), and run the same command again",
    "the process that asks the hub ended": "if memory ran out, free some; if `huggingface_hub` could not be loaded, install it again",
    "missing or changed since, will be made again": "nothing, unless you want to put back copies: then stop the run first",
    "they are fetched again": "nothing",
    "was damaged, and is kept as": "look at it if you like, and delete it; the images of its rows are fetched again",
    "are requested again": "nothing; the images come from the web instead",
    "sent an invalid reply and was killed": "nothing: its images are decoded by others. If it happens often, report it",
    "are no longer kept in": "free space, if you want to look at such bodies; no image is affected",
    "fewer images than --min-success requires": "`datafetch retry` for each output that is named, or a lower `--min-success` (exit 3)",
    "will not be built: {problem}": "what the problem says; the other targets are built",
    "an observer is a coroutine function": "write `async def observe(take_snapshot): …`",
    "a byte range needs": "correct the numbers: the first byte, and the one behind the last",
    "if_range needs a byte_range": "give both, or none",
    "the process that writes shards ended with status": "a bug: report it with the traceback; the same command may be run again",
    "a worker process ended with status": "a bug: report it with the traceback; the same command may be run again",
}
"""What to do, by a part of the messages that do not say it themselves."""
_SAYS_WHAT_TO_DO = re.compile(
    r"; (?!its traceback)|\bgive\b|(?<!which )\btakes |\bmust be\b|\bis a share from\b|\bis given (as|by)\b|\bhas a bucket: |check the output with|advice\}|remedy\}"
)
_HAVE_TO_SAY_IT = ("warning", "error", MISUSE_GROUP)
_RETRY = "`datafetch retry OUT`, now or later"
_NOTHING = "nothing: the web has no such image any more, or it is not one that can be used"


def page() -> str:
    """The page."""
    by_group: dict[str, list[Message]] = {}
    for message in _collected():
        by_group.setdefault(message.group, []).append(message)
    lines = [_INTRODUCTION]
    for group, (title, introduction) in _EXITS.items():
        lines += _section(f"## {title}", introduction, by_group.get(group, []))
    lines += _section(f"## {_MISUSE[0]}", _MISUSE[1], by_group[MISUSE_GROUP])
    lines += ["## Log messages", ""]
    for level, introduction in _LOGS.items():
        if level in by_group:
            lines += _section(f"### {level.capitalize()}", introduction, by_group[level])
    lines += _failure_kinds()
    details = [message for group in sorted(by_group) if group.startswith("`") for message in by_group[group]]
    lines += ["### Details", ""]
    lines += ["The detail of a failure, by its kind; in the ledger, in column `detail`. The kind says what helps.", ""]
    lines += [f"* {message.group} {_code(message.text)}" for message in details]
    lines += [""]
    lines += ["## Other lines, and parts of messages", ""]
    for package, (title, introduction) in _PARTS_OF.items():
        if package in by_group:
            lines += _section(f"### {title}", introduction, by_group[package])
    return "\n".join(lines).rstrip() + "\n"


def _section(title: str, introduction: str, messages: list[Message]) -> Iterator[str]:
    yield from (title, "")
    if introduction:
        yield from (introduction, "")
    yield from map(_item, messages)
    yield ""


def _item(message: Message) -> str:
    advice = "" if message.group in _PARTS_OF else next(map(_WHAT_TO_DO.__getitem__, _keys(message)), "")
    return f"* {message.module.removesuffix('.py')}: {_code(message.text)}" + (f": {advice}" if advice else "")


def _keys(message: Message) -> list[str]:
    """The keys of what to do about a message that does not say it itself."""
    if _SAYS_WHAT_TO_DO.search(message.text):
        return []
    return [key for key in _WHAT_TO_DO if key in message.text]


@cache
def _collected() -> list[Message]:
    return collect(PACKAGE, _EXITS)


def faults() -> list[str]:
    """Messages that do not say what to do, where nothing here says it, and keys here that no message has any more."""
    messages = [message for message in _collected() if message.group not in _PARTS_OF]
    needed = [message for message in messages if message.group in (*_EXITS, *_HAVE_TO_SAY_IT)]
    silent = [
        message.text
        for message in needed
        if message.group != "ConservationError" and not (_SAYS_WHAT_TO_DO.search(message.text) or _keys(message))
    ]
    used = {key for message in needed for key in _keys(message)[:1]}
    return [f"says not what to do: {text}" for text in silent] + [
        f"no message has this part: {key}" for key in _WHAT_TO_DO if key not in used
    ]


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
        helps = next((text for kind, text in _HELPS.items() if f"`{kind}`" in kinds), _NOTHING)
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
    if wrong := faults():
        sys.stderr.writelines(f"{line}\n" for line in wrong)
        return 1
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
